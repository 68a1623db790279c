"""``mailsonde check``."""

from __future__ import annotations

import asyncio
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.live import Live

from monitor.collector import AgentCollector
from monitor.commands.completion import probe_names
from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.commands.results import (
    LiveTable,
    nagios_line,
    nagios_long_text,
    nagios_unknown,
    severity,
    show_dialogue,
    show_json,
    show_json_dialogue,
    show_line,
    worst,
)
from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration
from monitor.logs import set_up_logs
from monitor.runner import Result
from monitor.runtime import Runtime, open_runtime
from monitor.textfile import SUFFIX, TextfileError, one_shot_text, write_textfile
from probes.core.clock import SystemClock
from probes.core.probe import Probe
from probes.delivery.message_life import LedgerError

UNKNOWN = 3
"""Exit status when a check cannot be made."""

_SHOWN: dict[tuple[str, bool], Callable[[Result], None]] = {
    ("text", False): show_line,
    ("text", True): show_dialogue,
    ("json", False): show_json,
    ("json", True): show_json_dialogue,
    ("nagios", False): lambda _: None,  # one line at the end covers all
}
"""The function that shows a result, by format and with or without its dialogue."""


def _prom_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix != SUFFIX:
        raise click.BadParameter(
            f"{path.name!r} does not end in {SUFFIX}, and node_exporter reads only such files; "
            f"name it {path.with_suffix(SUFFIX).name if path.name else 'mailsonde' + SUFFIX}"
        )
    return path


@click.command()
@config_option
@click.argument("probes", nargs=-1, metavar="[PROBE]...", shell_complete=probe_names)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "nagios"]),
    default="text",
    show_default=True,
    help=(
        "text: a live table on a terminal, otherwise one line per run; json: one object per run; nagios: "
        "one line."
    ),
)
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Show the dialogue with the servers, without credentials and mail.",
)
@click.option(
    "--textfile",
    type=click.Path(path_type=Path),
    callback=_prom_file,
    help=f"Also write metrics to this file, whose name ends in {SUFFIX}, for node_exporter.",
)
def check(config: Path, probes: tuple[str, ...], form: str, verbose: bool, textfile: Path | None) -> None:
    """Run all probes, or the named ones, once and now.

    A round trip takes until its message arrives or its deadline passes. A running agent is
    not affected. Exit status: 0 ok, 1 warning, 2 failed, 3 unknown; the worst result decides.
    Mistakes in the configuration exit 2, or 3 for Nagios. If the textfile cannot be written,
    the exit status is 3.

    \b
    Examples:
      mailsonde check --config mailsonde.yaml
      mailsonde check --config mailsonde.yaml hq-smtp --verbose
      mailsonde check --config mailsonde.yaml hq-mx --format json
      mailsonde check --config mailsonde.yaml hq-roundtrip --format nagios
      mailsonde check --config mailsonde.yaml --textfile /var/lib/node_exporter/mailsonde.prom
    """
    if (form, verbose) not in _SHOWN:
        raise click.UsageError(
            f"--verbose shows a dialogue, and {form} is one line; use --format text or json"
        )
    configuration = _configuration(config, form)
    _require_known(probes, configuration, form)
    set_up_logs("auto")
    try:
        results = run_on_loop(_check(configuration, probes, (form, verbose), textfile))
    except LedgerError as error:
        _end_unknown(f"cannot check: {error}", form)
    except TextfileError as error:
        _end_unknown(str(error), form)
    except KeyboardInterrupt:
        click.echo(
            ("stopped; messages in flight stay in the ledger, and the agent resumes watching for them"),
            err=True,
        )
        sys.exit(UNKNOWN)
    except ExceptionGroup as errors:
        if errors.subgroup(BrokenPipeError) is None:
            raise
        sys.exit(UNKNOWN)  # the reader of the results is gone
    if form == "nagios":
        click.echo("\n".join([nagios_line(results), *nagios_long_text(results)]))
    sys.exit(worst(severity(result) for result in results))


def _configuration(path: Path, form: str) -> Configuration:
    if form != "nagios":
        return load_or_exit(path)
    try:
        return load(path)
    except ConfigurationError as error:
        _end_unknown(f"cannot check: {error.mistakes[0]}", form)


def _require_known(names: Sequence[str], configuration: Configuration, form: str) -> None:
    known = [probe.name for probe in configuration.enabled_probes]
    disabled = {probe.name for probe in configuration.probes} - set(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            text = f"no probe is named {name!r}{hint}; the probes are: {', '.join(known)}"
            if name in disabled:
                text = f"the probe {name!r} is not enabled; remove enabled: false"
            if form == "nagios":
                _end_unknown(text, form)
            click.echo(text, err=True)
            sys.exit(UNUSABLE)


def _end_unknown(why: str, form: str) -> NoReturn:
    """Say why a check cannot be made, in the requested format: a fault of ours is not a mail outage."""
    if form == "nagios":
        click.echo(nagios_unknown(why))
    else:
        click.echo(f"mailsonde {why}", err=True)
    sys.exit(UNKNOWN)


async def _check(
    configuration: Configuration, names: Sequence[str], shown: tuple[str, bool], textfile: Path | None
) -> list[Result]:
    async with open_runtime(configuration, SystemClock(), "check") as runtime:
        chosen = [probe for name, probe in runtime.assembly.probes.items() if not names or name in names]
        console = Console()
        # FORCE_COLOR asks for colours but does not turn a file or pipe into a terminal.
        if shown == ("text", False) and sys.stdout.isatty() and not console.is_dumb_terminal:
            table = LiveTable(chosen, runtime.clock)
            with Live(table, console=console, refresh_per_second=8):
                results = await _results(runtime, chosen, table.show)
        else:
            results = await _results(runtime, chosen, _SHOWN[shown])
        if textfile is not None:
            collector = AgentCollector(runtime.state, lambda: runtime.ledger.counters)
            text = one_shot_text(collector, {probe.settings.name for probe in chosen})
            await asyncio.to_thread(write_textfile, textfile, text)
        return results


async def _results(runtime: Runtime, probes: Iterable[Probe], show: Callable[[Result], None]) -> list[Result]:
    """Run the probes concurrently; show each result when it is ready, and keep it in state and ledger."""
    results: list[Result] = []

    def take_in(result: Result) -> None:
        results.append(result)
        runtime.state.ran(
            result.probe,
            result.target,
            result.verdict,
            ended_at=runtime.clock.time(),
            duration=result.duration_seconds,
        )
        runtime.ledger.record_run(result.with_transcript())
        show(result)

    async with asyncio.TaskGroup() as group:
        for probe in probes:
            group.create_task(runtime.run(probe, take_in))
    return results
