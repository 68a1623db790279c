"""The command line: one module per command, imported when the command is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

import click


class _Commands(Mapping[str, click.Command]):
    """The commands by name. To import them all takes a second, which `--version` and TAB must not cost."""

    _names = (
        *("demo", "init", "run", "reload", "health", "check", "validate", "pause", "resume"),
        *("doctor", "login", "hash-password", "render", "schema", "completion"),
    )

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._names:
            raise KeyError(name)
        module = name.replace("-", "_")
        command = getattr(import_module(f"{__name__}.{module}"), module)
        assert isinstance(command, click.Command)  # noqa: S101 # each module has the command of its name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@click.group(
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="mailsonde", prog_name="mailsonde")
def main() -> None:
    """Know within a minute when mail is late, lost or stuck, and where.

    mailsonde sends test messages through your mail servers, watches for their arrival, and exports
    the measured delivery latency to Prometheus.

    \b
    Examples:
      mailsonde demo                             # try everything on this machine
      mailsonde init                             # find your servers, write a configuration
      mailsonde validate mailsonde.yaml          # check a configuration
      mailsonde check --config mailsonde.yaml    # run every probe once, now
      mailsonde run --config mailsonde.yaml      # run the agent
    """
