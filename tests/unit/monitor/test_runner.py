"""The result of each way in which a run can end."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import ClassVar, Literal

import pytest

from monitor.runner import Runner
from probes.core.faults import ProbeFault
from probes.core.finding import Check, Finding, Severity
from probes.core.probe import Probe
from probes.core.reasons import Area, Outcome, Reason
from probes.core.redaction import WITHHELD
from probes.core.settings import ProbeSettings
from probes.core.verdict import (
    MX_LOOKUP,
    QUEUE,
    RESOLVE,
    TICKET,
    TOKEN,
    TURN,
    MessageReport,
    MessageState,
    Run,
    Verdict,
)
from tests.fakes.clock import InstantClock


class ScriptedSettings(ProbeSettings):
    kind: Literal["scripted"] = "scripted"


class Scripted(Probe):
    """A probe that does what the test says."""

    settings_model = ScriptedSettings
    areas: ClassVar[frozenset[Area]] = frozenset({Area.AGENT})
    target = "target"

    def __init__(self, act: Callable[[Run], Awaitable[Verdict]], deadline: str = "30s") -> None:
        self.settings = ScriptedSettings(name="scripted", deadline=deadline)
        self.act = act

    async def run(self, run: Run) -> Verdict:
        return await self.act(run)


async def test_verdict_comes_with_its_phases() -> None:
    """A result has the probe's verdict and the measured phases."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        with run.phases.phase("connect"):
            await clock.sleep(1.5)
        return Verdict(Reason.NONE)

    result = await Runner(clock, "fra1").run(Scripted(act))
    assert result.verdict.outcome is Outcome.OK
    assert result.verdict.phases == {"connect": 1.5}
    assert result.duration_seconds == 1.5
    assert result.location == "fra1"


async def test_what_repeats_a_secret_of_the_run_is_withheld() -> None:
    """Detail and values of every verdict are free of the run's credentials."""

    async def act(run: Run) -> Verdict:
        run.phases.transcript.redaction.add("s3cret-Pa55word")
        values = {"capabilities": ["IDLE", "X-S3CRET-PA55WORD"], "junk": {"name": "s3cret-Pa55word"}, "n": 3}
        return Verdict(Reason.CERTIFICATE_EXPIRING, "mail.example.com s3cret-Pa55word", values=values)

    result = await Runner(InstantClock(), "fra1").run(Scripted(act))
    assert result.verdict.detail == WITHHELD
    assert result.verdict.values == {"capabilities": ["IDLE", WITHHELD], "junk": {"name": WITHHELD}, "n": 3}


async def test_findings_are_reported_without_secrets_the_worst_first() -> None:
    """All findings are in the result and its JSON, sorted, without the run's credentials."""

    async def act(run: Run) -> Verdict:
        run.phases.transcript.redaction.add("s3cret-Pa55word")
        alias = Finding(Check.MX_TARGET_CNAME, Severity.WARNING, "mx1", "mx1 is s3cret-Pa55word", "a host")
        missing = Finding(Check.MX_MISSING, Severity.CRITICAL, "example.com", "it has none", "MX records")
        return Verdict(Reason.MX_MISSING, findings=(alias, missing))

    shown = (await Runner(InstantClock(), "fra1").run(Scripted(act))).as_object()
    assert [(one["severity"], one["check"], one["seen"]) for one in shown["findings"]] == [
        ("critical", "mx_missing", "it has none"),
        ("warning", "mx_target_cname", WITHHELD),
    ]


async def test_a_run_that_did_not_judge_shows_no_findings() -> None:
    """JSON has an empty list for no findings, and no list for a run that could not judge."""

    async def sound(_: Run) -> Verdict:
        return Verdict(Reason.NONE, findings=())

    async def broken(_: Run) -> Verdict:
        raise ProbeFault(Reason.DNS_SERVFAIL)

    runner = Runner(InstantClock(), "fra1")
    assert (await runner.run(Scripted(sound))).as_object()["findings"] == []
    assert "findings" not in (await runner.run(Scripted(broken))).as_object()


async def test_fault_is_failed_with_phase_and_codes() -> None:
    """An expected failure keeps its reason, its phase, and the server's codes."""

    async def act(run: Run) -> Verdict:
        with run.phases.phase("rcpt"):
            raise ProbeFault(
                Reason.SMTP_REJECTED, "550 no such user", reply_code=550, enhanced_status_code="5.1.1"
            )

    shown = (await Runner(InstantClock(), "here").run(Scripted(act))).as_object()
    assert (shown["outcome"], shown["reason"]) == ("failed", "smtp_rejected")
    assert shown["detail"] == "in phase rcpt: 550 no such user"
    assert shown["values"] == {"reply_code": 550, "enhanced_status_code": "5.1.1"}


async def test_defect_is_unknown_with_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A defect of ours is unknown, never an outage, and the log has the traceback."""

    async def act(run: Run) -> Verdict:
        raise KeyError("a defect")

    with caplog.at_level(logging.ERROR):
        result = await Runner(InstantClock(), "here").run(Scripted(act))
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, Reason.INTERNAL)
    assert "Traceback" in caplog.text


async def test_deadline_ends_a_run_and_names_the_phase() -> None:
    """A run that hangs is ended at its deadline, and the detail has the phase."""

    async def act(run: Run) -> Verdict:
        with run.phases.phase("greeting"):
            await asyncio.Event().wait()
        raise AssertionError

    result = await Runner(InstantClock(), "here").run(Scripted(act, deadline="100ms"))
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, Reason.TIMEOUT)
    assert result.verdict.detail == "in phase greeting: not done after 0.1 s"


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        (RESOLVE, Reason.DNS_TIMEOUT),
        (MX_LOOKUP, Reason.DNS_TIMEOUT),
        (TOKEN, Reason.TOKEN_UNAVAILABLE),
        (TICKET, Reason.TICKET_UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("held", [0.0, 5.0])
async def test_a_deadline_that_was_used_up_before_the_mail_server_is_no_outage(
    held: float, phase: str, reason: Reason
) -> None:
    """A timeout before any mail system was involved is unknown under any load."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        with run.phases.phase(phase):
            clock.now += held
            await asyncio.Event().wait()
        raise AssertionError

    result = await Runner(clock, "here").run(Scripted(act, deadline="100ms"))
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, reason)
    assert result.verdict.detail == f"in phase {phase}: not done after 0.1 s"


@pytest.mark.parametrize(
    ("phase", "seconds", "reason"),
    [
        (RESOLVE, 0.04, Reason.TIMEOUT),
        (RESOLVE, 0.06, Reason.DNS_TIMEOUT),
        (TOKEN, 0.04, Reason.TIMEOUT),
        (TOKEN, 0.06, Reason.TOKEN_UNAVAILABLE),
        (TICKET, 0.06, Reason.TICKET_UNAVAILABLE),
    ],
)
async def test_what_left_the_server_too_little_time_is_no_outage(
    phase: str, seconds: float, reason: Reason
) -> None:
    """If DNS or a token took over half of a run's time, a timeout is not blamed on the server."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        with run.phases.phase(phase):
            await clock.sleep(seconds)
        with run.phases.phase("greeting"):
            await asyncio.Event().wait()
        raise AssertionError

    verdict = (await Runner(clock, "here").run(Scripted(act, deadline="100ms"))).verdict
    assert verdict.reason is reason
    assert verdict.detail.startswith("in phase greeting: not done after 0.1 s")


@pytest.mark.parametrize(("held", "outcome"), [(0.0, Outcome.FAILED), (5.0, Outcome.UNKNOWN)])
async def test_a_run_that_this_machine_kept_from_its_time_is_no_outage(held: float, outcome: Outcome) -> None:
    """A timeout while the event loop was blocked says nothing about the mail system."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        with run.phases.phase("login"):
            clock.now += held  # as if other work had blocked the loop
            await asyncio.Event().wait()
        raise AssertionError

    verdict = (await Runner(clock, "here").run(Scripted(act, deadline="100ms"))).verdict
    assert verdict.outcome is outcome
    if held:
        assert verdict.reason is Reason.LOCAL_RESOURCES
        assert verdict.detail == (
            "in phase login: not done after 0.1 s; this machine was too busy to continue it for 4.9 s"
        )


@pytest.mark.parametrize("reason", [Reason.CONNECT_TIMEOUT, Reason.COMMAND_TIMEOUT, Reason.CONNECT_REFUSED])
async def test_only_what_was_late_is_put_down_to_this_machine(reason: Reason) -> None:
    """On a busy machine a timeout proves nothing, but a refusal is still a refusal."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        clock.now += 5.0
        raise ProbeFault(reason, "")

    verdict = (await Runner(clock, "here").run(Scripted(act))).verdict
    is_true = reason is Reason.CONNECT_REFUSED
    assert verdict.reason is (reason if is_true else Reason.LOCAL_RESOURCES)


@pytest.mark.parametrize(
    ("state", "uncertainty", "found", "reason"),
    [
        (MessageState.LOST, None, Reason.MESSAGE_LOST, Reason.LOCAL_RESOURCES),
        (MessageState.DELIVERED, 3.0, Reason.NONE, Reason.LOCAL_RESOURCES),
        (MessageState.DELIVERED, 0.5, Reason.NONE, Reason.NONE),
        (MessageState.DELIVERED, 3.0, Reason.MESSAGE_JUNKED, Reason.MESSAGE_JUNKED),
        (MessageState.BOUNCED, None, Reason.BOUNCE_MAILBOX_FULL, Reason.BOUNCE_MAILBOX_FULL),
    ],
)
async def test_a_stopped_machine_loses_no_message_and_measures_none(
    state: MessageState, uncertainty: float | None, found: Reason, reason: Reason
) -> None:
    """If the agent stood still, a missing message says nothing, nor does one that came meanwhile."""
    clock = InstantClock()
    seconds = None if uncertainty is None else 3.0
    report = MessageReport("0" * 32, state, delivery_seconds=seconds, uncertainty_seconds=uncertainty)

    async def act(run: Run) -> Verdict:
        clock.now += 6.0
        return Verdict(found, message=report)

    verdict = (await Runner(clock, "here").run(Scripted(act))).verdict
    assert (verdict.reason, verdict.message) == (reason, report)


async def test_waiting_for_a_turn_excuses_no_loss() -> None:
    """The deadline of a message counts from connecting, so a wait before that does not explain a loss."""

    async def act(run: Run) -> Verdict:
        run.phases.seconds[TURN] = 20.0
        return Verdict(Reason.MESSAGE_LOST, message=MessageReport("0" * 32, MessageState.LOST))

    verdict = (await Runner(InstantClock(), "here").run(Scripted(act, deadline="30s"))).verdict
    assert verdict.reason is Reason.MESSAGE_LOST


@pytest.mark.parametrize("is_late", [True, False])
async def test_a_handshake_that_is_only_late(is_late: bool) -> None:
    """After a wait for a turn, a handshake that took too long proves nothing; one that failed still does."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        with run.phases.phase(TURN):
            await clock.sleep(5.0)
        with run.phases.phase("tls"):
            raise ProbeFault(Reason.TLS_HANDSHAKE) from TimeoutError() if is_late else ssl.SSLError()

    verdict = (await Runner(clock, "here").run(Scripted(act))).verdict
    assert verdict.reason is (Reason.LOCAL_RESOURCES if is_late else Reason.TLS_HANDSHAKE)


@pytest.mark.parametrize(("turn", "reason"), [(1.0, Reason.LOCAL_RESOURCES), (0.1, Reason.COMMAND_TIMEOUT)])
async def test_waiting_for_other_runs(turn: float, reason: Reason, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for a turn is compared with a run's own time, without that in which it waited for other runs."""
    clock = InstantClock()
    monkeypatch.setattr(Runner, "blocked", lambda _: 0.0)  # the clock jumps

    async def act(run: Run) -> Verdict:
        with run.phases.phase(QUEUE):
            await clock.sleep(20.0)
        with run.phases.phase(TURN):
            await clock.sleep(turn)
        with run.phases.phase("first_byte"):
            await clock.sleep(1.0)
            raise ProbeFault(Reason.COMMAND_TIMEOUT)

    assert (await Runner(clock, "here").run(Scripted(act))).verdict.reason is reason


@pytest.mark.parametrize("phase", [TURN, QUEUE])
async def test_a_deadline_while_waiting_for_ourselves(phase: str) -> None:
    """A run that ends while it waits for a limit of our own knows nothing of the server."""

    async def act(run: Run) -> Verdict:
        with run.phases.phase(phase):
            await asyncio.Event().wait()
        raise AssertionError

    verdict = (await Runner(InstantClock(), "here").run(Scripted(act, deadline="100ms"))).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.LOCAL_RESOURCES)


async def test_what_held_up_the_loop_before_a_run_is_not_counted() -> None:
    """An outage counts even if the loop was blocked before, in an earlier run or between runs."""
    clock = InstantClock()

    async def act(run: Run) -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError

    async def busy(run: Run) -> Verdict:
        clock.now += 5.0
        return Verdict(Reason.NONE)

    runner = Runner(clock, "here")
    await runner.run(Scripted(busy))
    clock.now += 5.0
    verdict = (await runner.run(Scripted(act, deadline="100ms"))).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.FAILED, Reason.TIMEOUT)


async def test_stop_ends_waiting_runs_at_once_and_lets_others_finish() -> None:
    """When the agent stops, waiting runs are cancelled, and runs in a dialogue finish."""
    runner = Runner(InstantClock(), "here")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(run: Run) -> Verdict:
        run.can_stop = True
        await asyncio.Event().wait()
        raise AssertionError

    async def talk(run: Run) -> Verdict:
        begun.set()
        await go_on.wait()
        return Verdict(Reason.NONE)

    waiting = asyncio.create_task(runner.run(Scripted(wait)))
    talking = asyncio.create_task(runner.run(Scripted(talk)))
    await begun.wait()
    stopping = asyncio.create_task(runner.stop(grace=3600.0))
    async with asyncio.timeout(60):
        await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not talking.done()
    go_on.set()
    await stopping
    assert (await talking).verdict.reason is Reason.NONE
