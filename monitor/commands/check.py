"""``mailsonde check``."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from monitor.assembly import Assembly, assembled
from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.config.models import Configuration
from monitor.logs import set_up_logs
from monitor.runner import Result
from probes.clock import SystemClock
from probes.message_life import LedgerError
from probes.probe import Probe
from probes.reasons import Outcome

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "magenta"}
_NAGIOS_WORDS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
_FROM_BAD_TO_GOOD = (2, 3, 1, 0)


@click.command()
@config_option
@click.argument("probes", nargs=-1, metavar="[PROBE]...")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "nagios"]), default="text", show_default=True
)
def check(config: Path, probes: tuple[str, ...], form: str) -> None:
    """Run probes once, now: all of them, or those named.

    Round trips take until their message arrives or its deadline passes. A running agent is
    not disturbed. Exit status: 0 ok, 1 warning, 2 failed, 3 unknown; the worst decides.

    \b
    Examples:
      mailsonde check --config mailsonde.yaml
      mailsonde check --config mailsonde.yaml hq-mx --format json
      mailsonde check --config mailsonde.yaml hq-roundtrip --format nagios
    """
    configuration = load_or_exit(config)
    _require_known(probes, configuration)
    set_up_logs("auto")
    try:
        results = run_on_loop(_check(configuration, probes, form))
    except LedgerError as error:
        if form == "nagios":
            click.echo(f"MAILSONDE UNKNOWN - {error}")
        else:
            click.echo(f"mailsonde cannot check: {error}", err=True)
        sys.exit(3)
    except KeyboardInterrupt:
        click.echo("stopped; messages under way stay in the ledger, and the agent takes them up", err=True)
        sys.exit(3)
    if form == "nagios":
        click.echo(nagios_line(results))
    sys.exit(worst(severity(result) for result in results))


def _require_known(names: Sequence[str], configuration: Configuration) -> None:
    known = [probe.name for probe in configuration.probes]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            click.echo(f"no probe is named {name!r}{hint}; the probes are: {', '.join(known)}", err=True)
            sys.exit(UNUSABLE)


async def _check(configuration: Configuration, names: Sequence[str], form: str) -> list[Result]:
    async with assembled(configuration, SystemClock(), "check") as assembly:
        chosen = [probe for name, probe in assembly.probes.items() if not names or name in names]
        if form == "text" and sys.stdout.isatty():
            return await _with_live_table(assembly, chosen)

        def show(result: Result) -> None:
            if form == "json":
                click.echo(json.dumps(result.as_object()))
            elif form == "text":
                click.echo(plain_line(result))

        return await _results(assembly, chosen, show)


async def _results(
    assembly: Assembly, probes: Iterable[Probe], show: Callable[[Result], None]
) -> list[Result]:
    """Run the probes at the same time; show each result when it is there, and keep it in the ledger."""
    results: list[Result] = []

    def take_in(result: Result) -> None:
        results.append(result)
        assembly.ledger.record_run(result.with_transcript())
        show(result)

    async with asyncio.TaskGroup() as group:
        for probe in probes:
            group.create_task(assembly.run(probe, take_in))
    return results


async def _with_live_table(assembly: Assembly, probes: Sequence[Probe]) -> list[Result]:
    ended: dict[tuple[str, str], Result] = {}
    with Live(_table(probes, ended), console=Console(), refresh_per_second=8) as live:

        def show(result: Result) -> None:
            ended[result.probe, result.target] = result
            live.update(_table(probes, ended))

        return await _results(assembly, probes, show)


def _table(probes: Iterable[Probe], ended: Mapping[tuple[str, str], Result]) -> Table:
    table = Table("probe", "kind", "target", "result", "time", "detail")
    for probe in chain.from_iterable((probe, *probe.parts) for probe in probes):
        settings, result = probe.settings, ended.get((probe.settings.name, probe.target))
        if result is None:
            table.add_row(settings.name, settings.kind, probe.target, Text("running …", style="dim"), "", "")
            continue
        word = _word(result)
        table.add_row(
            settings.name,
            settings.kind,
            probe.target,
            Text(word, style=_STYLES[word]),
            time_of(result),
            Text(_explanation(result)),
        )
    return table


def time_of(result: Result) -> str:
    """Return the time that matters: a round trip's delivery with its error, else how long the run took."""
    message = result.verdict.message
    if (
        message is not None
        and message.delivery_seconds is not None
        and message.uncertainty_seconds is not None
    ):
        return f"{message.delivery_seconds:.3f} s ± {message.uncertainty_seconds:.3f} s"
    return f"{result.duration_seconds:.3f} s"


def plain_line(result: Result) -> str:
    """Return a result as one line of text."""
    parts = [result.probe, result.kind, result.target, _word(result), time_of(result), _explanation(result)]
    return "  ".join(part for part in parts if part)


def _explanation(result: Result) -> str:
    verdict = result.verdict
    if verdict.outcome is Outcome.OK and not verdict.is_warning:
        return ""
    return f"{verdict.reason}: {verdict.detail or verdict.reason.meaning}"


def _word(result: Result) -> str:
    return "warning" if result.verdict.is_warning else str(result.verdict.outcome)


def severity(result: Result) -> int:
    """Return the exit status that a result stands for."""
    return {"ok": 0, "warning": 1, "failed": 2, "unknown": 3}[_word(result)]


def worst(severities: Iterable[int]) -> int:
    """Return the exit status for several results: failed before unknown before warning before ok."""
    return min(severities, key=_FROM_BAD_TO_GOOD.index, default=0)


def nagios_line(results: Sequence[Result]) -> str:
    """Return the line of a Nagios plugin: state, what is wrong, and performance data in seconds."""
    code = worst(severity(result) for result in results)
    wrong = [f"{result.probe} {_explanation(result)}" for result in results if severity(result)]
    text = "; ".join(wrong) or f"{len(results)} probe{'s' if len(results) != 1 else ''} ok"
    data = []
    for result in results:
        data.append(f"'{result.probe}'={result.duration_seconds:.6f}s;;;0")
        message = result.verdict.message
        if message is not None and message.delivery_seconds is not None:
            data.append(f"'{result.probe}_delivery'={message.delivery_seconds:.6f}s;;;0")
            data.append(f"'{result.probe}_uncertainty'={message.uncertainty_seconds or 0.0:.6f}s;;;0")
    # The plugin interface splits text from data at the first bar and reads one line.
    return f"MAILSONDE {_NAGIOS_WORDS[code]} - {text.replace('|', '/')} | {' '.join(data)}"
