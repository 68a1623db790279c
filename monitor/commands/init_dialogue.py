"""What the parts of `mailsonde init` say and ask on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from monitor.commands.init_options import Wishes
from monitor.commands.options import UNUSABLE


def ask(wishes: Wishes, option: str, question: str, **how: Any) -> str:
    """Return the answer to a question; ends the command if none may be asked."""
    if wishes.yes:
        end(f"{option} is needed with --yes")
    return str(click.prompt(question, **how))


def require_new(path: Path) -> None:
    """End the command if ``path`` exists, or cannot be made."""
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        end(f"{path} cannot be written: {error.strerror}; name another file with --out")
    else:
        end(f"{path} already exists; move it away, or name another file with --out")
    if not path.absolute().parent.is_dir():
        end(f"directory {path.absolute().parent} does not exist; create it, or name another file with --out")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, with an animation on a terminal."""
    click.echo(what)
    console = Console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield
        return
    with console.status(what):
        yield


def end(why: str) -> NoReturn:
    """Exit with a reason."""
    click.echo(f"mailsonde cannot continue: {why}", err=True)
    sys.exit(UNUSABLE)
