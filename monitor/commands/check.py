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
"""Exit status when nothing can be said about the mail."""

_SHOWN: dict[tuple[str, bool], Callable[[Result], None]] = {
    ("text", False): show_line,
    ("text", True): show_dialogue,
    ("json", False): show_json,
    ("json", True): show_json_dialogue,
    ("nagios", False): lambda _: None,  # one line at the end stands for all
}
"""How a result is shown, by format and whether its dialogue is wanted."""


def _prom_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix != SUFFIX:
        raise click.BadParameter(
            f"{path.name!r} does not end in {SUFFIX}, and node_exporter reads no other file; "
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
    help="text: a live table on a terminal, a line a run elsewhere; json: an object a run; nagios: one line.",
)
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Show what mailsonde and the servers said to each other; credentials and mail are withheld.",
)
@click.option(
    "--textfile",
    type=click.Path(path_type=Path),
    callback=_prom_file,
    help=f"Also write metrics to this file, whose name ends in {SUFFIX}, for node_exporter.",
)
def check(config: Path, probes: tuple[str, ...], form: str, verbose: bool, textfile: Path | None) -> None:
    """Run probes once, now: all of them, or those named.

    Round trips take until their message arrives or its deadline passes. A running agent is
    not disturbed. Exit status: 0 ok, 1 warning, 2 failed, 3 unknown; the worst decides. A
    configuration with mistakes is 2, or 3 for Nagios; a textfile that cannot be written is 3.

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
        click.echo("stopped; messages under way stay in the ledger, and the agent takes them up", err=True)
        sys.exit(UNKNOWN)
    except ExceptionGroup as errors:
        if errors.subgroup(BrokenPipeError) is None:
            raise
        sys.exit(UNKNOWN)  # who read the results went away
    if form == "nagios":
        click.echo(nagios_line(results))
    sys.exit(worst(severity(result) for result in results))


def _configuration(path: Path, form: str) -> Configuration:
    if form != "nagios":
        return load_or_exit(path)
    try:
        return load(path)
    except ConfigurationError as error:
        _end_unknown(f"cannot check: {error.mistakes[0]}", form)


def _require_known(names: Sequence[str], configuration: Configuration, form: str) -> None:
    known = [probe.name for probe in configuration.probes]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            text = f"no probe is named {name!r}{hint}; the probes are: {', '.join(known)}"
            if form == "nagios":
                _end_unknown(text, form)
            click.echo(text, err=True)
            sys.exit(UNUSABLE)


def _end_unknown(why: str, form: str) -> NoReturn:
    """Say why nothing is known, in the form that was asked for: a fault of ours is no outage of mail."""
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
        # What asks for colours elsewhere (FORCE_COLOR) does not make a terminal of a file or pipe.
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
    """Run the probes at the same time; show each result when it is there, and keep it in state and ledger."""
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
