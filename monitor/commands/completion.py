"""``mailsonde completion``, and what a shell offers for the name of a probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class
from pydantic import TypeAdapter, ValidationError

from monitor.config.document import Mistake, read_document
from probes.core.settings import Name

READ_LIMIT = 128 * 1024
"""Longest file, in bytes, that is read for names: about 2,000 probes, a second of a typist's time."""

_SHELLS = ("bash", "zsh", "fish")
_NAMES = TypeAdapter(Name)


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes SHELL complete command lines.

    It completes commands, options, files, and names of probes.

    \b
    Examples:
      mailsonde completion bash > /etc/bash_completion.d/mailsonde
      mailsonde completion zsh > ~/.mailsonde.zsh
      mailsonde completion fish > ~/.config/fish/completions/mailsonde.fish

    bash and fish find the file there when they start next. For zsh, add "source
    ~/.mailsonde.zsh" to ~/.zshrc, after compinit. Names of probes come from the file after
    --config, or from MAILSONDE_CONFIG, where it has no more than 128 KB.
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 # click has all of _SHELLS
    click.echo(made(context.find_root().command, {}, "mailsonde", "_MAILSONDE_COMPLETE").source())


def probe_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the probes that the configuration names and the command line does not yet.

    The file is read as data, because the shell need not have the secrets in its environment; from
    one that cannot be read come no names, and no complaint into the line that is being typed.
    """
    given = context.params.get("probes") or ()
    return [
        CompletionItem(name)
        for name in _names_in(context.params.get("config"))
        if name.startswith(incomplete) and name not in given
    ]


def _names_in(config: str | Path | None) -> Iterator[str]:
    """Yield the fit names of probes: one that is not fit could do harm in a shell."""
    if config is None:
        return
    try:
        path = Path(config).expanduser()
        if not path.is_file():  # reading from a named pipe would keep the shell waiting
            return
    except (OSError, RuntimeError):  # not to be looked at, or no such user's home
        return
    document = read_document(path, limit=READ_LIMIT)
    probes = None if isinstance(document, Mistake) else document.data.get("probes")
    for probe in probes if isinstance(probes, list) else ():
        with suppress(ValidationError):
            yield _NAMES.validate_python(probe.get("name") if isinstance(probe, dict) else None)
