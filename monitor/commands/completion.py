"""``mailsonde completion``, and the completion of probe names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class
from pydantic import TypeAdapter, ValidationError

from monitor.config.composition import compose
from probes.core.setting_types import Name

READ_LIMIT = 128 * 1024
"""Maximum file size, in bytes, for completion: about 2,000 probes, which take a second to read."""

_SHELLS = ("bash", "zsh", "fish")
_NAMES = TypeAdapter(Name)


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a completion script for SHELL.

    It completes commands, options, files, and probe names.

    \b
    Examples:
      mailsonde completion bash > /etc/bash_completion.d/mailsonde
      mailsonde completion zsh > ~/.mailsonde.zsh
      mailsonde completion fish > ~/.config/fish/completions/mailsonde.fish

    bash and fish find these files at their next start. For zsh, add "source ~/.mailsonde.zsh"
    to ~/.zshrc after compinit. Probe names come from the file in --config or MAILSONDE_CONFIG,
    if it is not larger than 128 KB.
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 # click has all of _SHELLS
    click.echo(made(context.find_root().command, {}, "mailsonde", "_MAILSONDE_COMPLETE").source())


def probe_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the probes in the configuration that are not on the command line yet.

    The file is read as plain data, because the secrets may not be in the shell's environment. If it
    cannot be read, there are no names, and no error disturbs the command line.
    """
    given = context.params.get("probes") or ()
    return [
        CompletionItem(name)
        for name in _names_in(context.params.get("config"))
        if name.startswith(incomplete) and name not in given
    ]


def _names_in(config: str | Path | None) -> Iterator[str]:
    """Yield the valid probe names: an invalid one could do harm in a shell."""
    if config is None:
        return
    try:
        path = Path(config).expanduser()
        if not path.is_file():  # reading from a named pipe would block the shell
            return
    except (OSError, RuntimeError):  # no permission, or a ~user that does not exist
        return
    probes = compose(path, limit=READ_LIMIT).data.get("probes")
    for probe in probes if isinstance(probes, list) else ():
        with suppress(ValidationError):
            yield _NAMES.validate_python(probe.get("name") if isinstance(probe, dict) else None)
