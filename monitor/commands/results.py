"""The output of `mailsonde check`: a live table, plain lines, JSON, or the line of a Nagios plugin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitor.runner import Result
from probes.core.clock import Clock
from probes.core.faults import legible
from probes.core.probe import Probe
from probes.core.reasons import Outcome

_SEVERITIES = {"ok": 0, "warning": 1, "failed": 2, "unknown": 3}
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "magenta"}
_NAGIOS_WORDS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
_FROM_BAD_TO_GOOD = (2, 3, 1, 0)


def show_line(result: Result) -> None:
    """Print a result as one line of text, followed by the remedy and one line per finding."""
    click.echo(plain_line(result))
    for line in (*remedy_lines(result), *finding_lines(result)):
        click.echo(f"  {line}")


def show_dialogue(result: Result) -> None:
    """Print a result with its findings, followed by its transcript."""
    show_line(result)
    for line in result.transcript.lines():
        click.echo(f"  {line}")


def show_json(result: Result) -> None:
    """Print a result as one JSON object on one line."""
    click.echo(json.dumps(result.as_object()))


def show_json_dialogue(result: Result) -> None:
    """Print the same object with the run's id and transcript, as in the ledger's history."""
    click.echo(json.dumps(result.with_transcript()))


class LiveTable:
    """A row for each probe and sub-probe, with its running time, and a summary below.

    Rich renders it in its own thread while results come in on the event loop.
    """

    def __init__(self, probes: Sequence[Probe], clock: Clock) -> None:
        self._probes = probes
        self._clock = clock
        self._began = clock.monotonic()
        self._started: dict[tuple[str, str], float] = {}
        self._ended: dict[tuple[str, str], Result] = {}

    def show(self, result: Result) -> None:
        """Add a result for the next rendering."""
        self._ended[result.probe, result.target] = result

    def __rich__(self) -> RenderableType:
        """Return the current table, with a summary of finished runs below."""
        table = Table("probe", "kind", "target", "result", "time", "detail")
        now, ended = self._clock.monotonic(), dict(self._ended)
        rows = list(
            chain.from_iterable((probe, *probe.siblings, *probe.sub_probes) for probe in self._probes)
        )
        for probe in rows:
            key = probe.settings.name, probe.target
            # Text, not str, because names from DNS are not markup.
            names = [Text(legible(name)) for name in (probe.settings.name, probe.settings.kind, probe.target)]
            result = ended.get(key)
            if result is None:
                elapsed = now - self._started.setdefault(key, now)
                table.add_row(*names, Text("running …", style="dim"), f"{elapsed:.1f} s", "")
                continue
            word = result.verdict.reason.word
            detail = "\n".join(
                filter(None, [explanation(result), *remedy_lines(result), *finding_lines(result)])
            )
            table.add_row(*names, Text(word, style=_STYLES[word]), time_of(result), Text(detail))
        words = Counter(result.verdict.reason.word for result in ended.values())
        counts = ", ".join(f"{words[word]} {word}" for word in _SEVERITIES if words[word])
        summary = f"{len(ended)} of {len(rows)} done after {now - self._began:.1f} s"
        return Group(table, Text(f"{summary}: {counts}" if counts else summary))


def time_of(result: Result) -> str:
    """Return the delivery latency of a round trip with its error, or the duration of any other run."""
    message = result.verdict.message
    if (
        message is not None
        and message.delivery_seconds is not None
        and message.uncertainty_seconds is not None
    ):
        return f"{message.delivery_seconds:.3f} s ± {message.uncertainty_seconds:.3f} s"
    return f"{result.duration_seconds:.3f} s"


def plain_line(result: Result) -> str:
    """Return a result as one line of text, without control characters."""
    parts = [
        *(legible(name) for name in (result.probe, result.kind, result.target)),
        *(result.verdict.reason.word, time_of(result), explanation(result)),
    ]
    return "  ".join(part for part in parts if part)


def explanation(result: Result) -> str:
    """Return the reason and its detail, without control characters; empty if the run is ok."""
    verdict = result.verdict
    if verdict.outcome is Outcome.OK and not verdict.is_warning:
        return ""
    return f"{verdict.reason}: {legible(verdict.detail or verdict.reason.meaning)}"


def remedy_lines(result: Result) -> list[str]:
    """Return the line that says what to do, if the run calls for anything and the remedy is known."""
    return [f"remedy: {result.verdict.remedy}"] if severity(result) and result.verdict.remedy else []


def finding_lines(result: Result) -> list[str]:
    """Return a line for each finding, the worst first: what was seen, what was expected, the remedy."""
    return [
        f"{finding.severity} {finding.check}: {finding.seen}; expected: {finding.expected}. {finding.remedy}"
        for finding in result.verdict.findings or ()
    ]


def severity(result: Result) -> int:
    """Return the exit status for a result."""
    return _SEVERITIES[result.verdict.reason.word]


def worst(severities: Iterable[int]) -> int:
    """Return the exit status for several results: failed before unknown before warning before ok."""
    return min(severities, key=_FROM_BAD_TO_GOOD.index, default=0)


def nagios_line(results: Sequence[Result]) -> str:
    """Return the line of a Nagios plugin: state, problems, and performance data in seconds."""
    code = worst(severity(result) for result in results)
    wrong = [f"{result.probe} {explanation(result)}" for result in results if severity(result)]
    text = "; ".join(wrong) or f"{len(results)} probe{'s' if len(results) != 1 else ''} ok"
    data = []
    for result in results:
        data.append(f"'{result.probe}'={result.duration_seconds:.6f}s;;;0")
        message = result.verdict.message
        if message is not None and message.delivery_seconds is not None:
            data.append(f"'{result.probe}_delivery'={message.delivery_seconds:.6f}s;;;0")
            data.append(f"'{result.probe}_uncertainty'={message.uncertainty_seconds or 0.0:.6f}s;;;0")
    # The plugin interface separates text from data at the first bar and reads one line.
    return f"MAILSONDE {_NAGIOS_WORDS[code]} - {text.replace('|', '/')} | {' '.join(data)}"


def nagios_long_text(results: Sequence[Result]) -> list[str]:
    """Return the lines below a Nagios plugin's first one: a remedy for each problem that has one."""
    return [
        f"{result.probe}: {line}".replace("|", "/")
        for result in results
        for line in dict.fromkeys(remedy_lines(result))
    ]


def nagios_unknown(text: str) -> str:
    """Return the line of a Nagios plugin for a check that could not be made."""
    return f"MAILSONDE UNKNOWN - {legible(text, 1000).replace('|', '/')}"
