"""The output of results, in which text from servers is harmless."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from monitor.commands.results import (
    LiveTable,
    nagios_line,
    nagios_long_text,
    nagios_unknown,
    plain_line,
    severity,
    show_line,
    worst,
)
from monitor.runner import Result
from probes.core.finding import Check, Finding, Severity
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.remedies import GENERAL
from probes.core.transcript import Transcript
from probes.core.verdict import MessageReport, MessageState, Run, Verdict
from probes.smtp import SmtpSettings
from tests.fakes.clock import InstantClock

HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]loud[/bold] [/] \x9b2J\u202egnp \r\nagain | end"
"""Escapes (ECMA-48), markup of our own table, text direction, line ends, and what divides a Nagios line."""


def _result(
    reason: Reason, detail: str = "", target: str = "out", message: MessageReport | None = None
) -> Result:
    return Result(
        run="0" * 32,
        probe="smtp",
        kind="smtp",
        target=target,
        location="here",
        verdict=Verdict(reason, detail, message=message),
        started_at=1_700_000_000.0,
        duration_seconds=0.25,
        transcript=Transcript(InstantClock()),
    )


class _Still(Probe):
    """A probe that is only in a table."""

    def __init__(self, target: str = "out", sub_probes: tuple[Probe, ...] = ()) -> None:
        self.settings = SmtpSettings(name="smtp", kind="smtp", interval="60s", server="out")
        self._target, self._sub_probes = target, sub_probes

    target = property(lambda self: self._target)
    sub_probes = property(lambda self: self._sub_probes)

    async def run(self, run: Run) -> Verdict:
        raise NotImplementedError


def _rendered(table: LiveTable, *, terminal: bool = False) -> str:
    output = io.StringIO()
    Console(
        file=output, width=200, force_terminal=terminal, color_system="truecolor" if terminal else None
    ).print(table)
    return output.getvalue()


def test_running_probe_shows_how_long_it_runs() -> None:
    """A row shows how long its probe has been running, and the last line how many are done."""
    clock = InstantClock()
    table = LiveTable([_Still("out"), _Still("other")], clock)
    assert "0 of 2 done after 0.0 s\n" in _rendered(table)
    clock.now += 7.25
    assert _rendered(table).count("7.2 s") == 3
    table.show(_result(Reason.AUTH_FAILED, "535 no"))
    clock.now += 1
    shown = _rendered(table)
    assert "0.250 s" in shown
    assert "auth_failed: 535 no" in shown
    assert "1 of 2 done after 8.2 s: 1 failed" in shown
    table.show(_result(Reason.NONE, target="other"))
    shown = _rendered(table)
    assert "running" not in shown
    assert "2 of 2 done after 8.2 s: 1 ok, 1 failed" in shown


def test_sub_probe_runs_from_when_it_was_found() -> None:
    """A sub-probe, such as an MX host, has its own row, with the time since it appeared."""
    clock = InstantClock()
    probe = _Still("example.com")
    table = LiveTable([probe], clock)
    assert "of 1 done" in _rendered(table)
    clock.now += 60.0
    probe._sub_probes = (_Still("mx1.example.com"),)
    table.show(_result(Reason.NONE, target="example.com"))
    _rendered(table)
    clock.now += 2.0
    shown = _rendered(table)
    (row,) = (line for line in shown.splitlines() if "mx1.example.com" in line)
    assert " 2.0 s" in row
    assert "1 of 2 done after 62.0 s" in shown


@pytest.mark.parametrize("reason", [Reason.SMTP_REJECTED, Reason.NONE])
def test_hostile_text_is_only_read(reason: Reason) -> None:
    """No escape, markup or line end from a server or DNS reaches terminal, pipe or Nagios."""
    result = _result(reason, HOSTILE, target=HOSTILE)
    table = LiveTable([_Still(HOSTILE)], InstantClock())
    running = _rendered(table)
    table.show(result)
    texts = [running, _rendered(table), plain_line(result), nagios_line([result]), nagios_unknown(HOSTILE)]
    for text in texts:
        assert all(c.isprintable() for c in text.replace("\n", "")), ascii(text)
    assert all("\n" not in text for text in texts[2:])
    assert "[bold]loud[/bold] [/]" in running
    assert json.dumps(result.as_object()).isascii()


def _with_findings(*findings: Finding) -> Result:
    result = _result(Reason.MX_MISSING, "example.com has none")
    return replace(result, verdict=replace(result.verdict, findings=findings))


def test_every_finding_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each finding has a line below the result: severity, check, seen, expected, remedy."""
    missing = Finding(
        Check.MX_MISSING, Severity.CRITICAL, "example.com", "example.com has none", "MX records"
    )
    alias = Finding(Check.MX_TARGET_CNAME, Severity.WARNING, "mx1", "mx1 is an alias", "a host")
    show_line(_with_findings(missing, alias))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  critical mx_missing: example.com has none; expected: MX records. " + Check.MX_MISSING.remedy,
        "  warning mx_target_cname: mx1 is an alias; expected: a host. " + Check.MX_TARGET_CNAME.remedy,
    ]
    table = LiveTable([_Still("out")], InstantClock())
    table.show(_with_findings(missing, alias))
    shown = _rendered(table)
    assert "critical mx_missing:" in shown
    assert "warning mx_target_cname:" in shown


def test_hostile_findings_are_only_read(capsys: pytest.CaptureFixture[str]) -> None:
    """No escape, markup or line end in a zone reaches a terminal or a pipe."""
    result = _with_findings(Finding(Check.MX_UNEXPECTED, Severity.CRITICAL, HOSTILE, HOSTILE, HOSTILE))
    show_line(result)
    table = LiveTable([_Still("out")], InstantClock())
    table.show(result)
    for text in (capsys.readouterr().out, _rendered(table)):
        assert all(c.isprintable() for c in text.replace("\n", "")), ascii(text)
        assert "[bold]loud[/bold] [/]" in text
    assert json.dumps(result.as_object()).isascii()


def test_a_remedy_follows_its_problem(capsys: pytest.CaptureFixture[str]) -> None:
    """What to do is below the result, and in Nagios' long text; an ok result has none."""
    refused, fine = _result(Reason.AUTH_DISABLED, "535 no"), _result(Reason.NONE)
    told = replace(refused, verdict=replace(refused.verdict, remedy="Turn it on | now."))
    show_line(told)
    show_line(fine)
    assert capsys.readouterr().out.splitlines()[1:] == ["  remedy: Turn it on | now.", plain_line(fine)]
    table = LiveTable([_Still("out")], InstantClock())
    table.show(told)
    assert "remedy: Turn it on | now." in _rendered(table)
    assert nagios_long_text([told, fine]) == ["smtp: remedy: Turn it on / now."]
    assert told.as_object()["remedy"] == "Turn it on | now."
    assert refused.as_object()["remedy"] == GENERAL[Reason.AUTH_DISABLED]
    assert "remedy" not in fine.as_object()


def test_nagios_has_one_bar() -> None:
    """A server's text cannot begin the performance data."""
    assert nagios_line([_result(Reason.SMTP_REJECTED, HOSTILE)]).count("|") == 1
    assert "|" not in nagios_unknown(HOSTILE)


def test_long_text_is_cut() -> None:
    """A server's long text is cut to fit on one line."""
    assert len(plain_line(_result(Reason.SMTP_REJECTED, "x" * 10_000))) < 400


def test_colour_tells_what_went_wrong() -> None:
    """On a terminal, a failure is red and an ok result is green."""
    table = LiveTable([_Still("out"), _Still("other")], InstantClock())
    table.show(_result(Reason.AUTH_FAILED))
    table.show(_result(Reason.NONE, target="other"))
    shown = _rendered(table, terminal=True)
    assert "\x1b[1;31mfailed" in shown
    assert "\x1b[32mok" in shown


def test_delivery_comes_with_its_error() -> None:
    """A round trip shows its delivery latency with the error, not the duration of its run."""
    report = MessageReport("1" * 32, MessageState.DELIVERED, 0.1, 1.9, 2.0, 0.004)
    assert "2.000 s ± 0.004 s" in plain_line(_result(Reason.NONE, message=report))
    assert "'smtp_delivery'=2.000000s" in nagios_line([_result(Reason.NONE, message=report)])


@pytest.mark.parametrize(
    ("severities", "status"),
    [((), 0), ((0, 0), 0), ((0, 1), 1), ((0, 1, 3), 3), ((1, 3, 2), 2)],
)
def test_the_worst_decides(severities: tuple[int, ...], status: int) -> None:
    """Failed before unknown before warning before ok."""
    assert worst(severities) == status


def test_severity_is_the_exit_status_of_a_result() -> None:
    """0 ok, 2 failed, 3 unknown."""
    assert [severity(_result(r)) for r in (Reason.NONE, Reason.AUTH_FAILED, Reason.INTERNAL)] == [0, 2, 3]
