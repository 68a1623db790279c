"""What delays ourselves widens an interval, is told with its cause, and counts against nobody."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import MessageReport, MessageState
from probes.delivery.arrivals import Settled
from probes.delivery.mailboxes.login_budget import BURST, LoginBudget, Standing
from probes.delivery.own_delays import KEPT, Cause, OwnDelay, OwnDelays
from probes.delivery.reading_pace import MOST_READ
from probes.delivery.service_level import SloSettings
from probes.roundtrip import _undecided, _verdict
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import Stored
from tests.fakes.message import intent
from tests.unit.probes.delivery.conftest import Bench


def _late(call: Callable[..., Any], clock: InstantClock, seconds: float) -> Callable[..., Any]:
    """Return ``call``, which takes so much longer the first time."""
    late = [seconds]

    async def called(*args: Any, **options: Any) -> Any:
        if late:
            clock.now += late.pop()
        return await call(*args, **options)

    return called


async def _settled(bench: Bench, after: float) -> Settled:
    message = await bench.sent()
    bench.arrives(message, after)
    return await bench.watcher.await_arrival(message)


def _is_told(settled: Settled, cause: Cause, seconds: float) -> None:
    assert settled.delay is not None
    assert settled.delay.cause is cause
    assert settled.delay.seconds == pytest.approx(seconds, abs=0.5)
    assert not settled.report.is_measured
    verdict = _verdict(settled, {})
    assert verdict.reason is Reason.LOCAL_RESOURCES
    assert verdict.detail == f"the latency is not known: {settled.delay}"


async def test_a_poll_that_began_late(bench: Bench) -> None:
    """If the agent continues after a pause much later than planned, that is why the interval is wide."""
    bench.clock.sleep = _late(bench.clock.sleep, bench.clock, 10.0)  # type: ignore[method-assign]
    _is_told(await _settled(bench, 0.3), Cause.MACHINE, 10.0)


async def test_a_ledger_that_was_slow(bench: Bench) -> None:
    """If the watcher waits for the ledger meanwhile, that is why the interval is wide."""
    first, second = await bench.sent(), await bench.sent()
    bench.arrives(first, 0.0)
    bench.arrives(second, 3.0)
    bench.ledger.advance = _late(bench.ledger.advance, bench.clock, 10.0)  # type: ignore[method-assign]
    arrivals = [bench.watcher.await_arrival(message) for message in (first, second)]
    assert (await arrivals[0]).report.is_measured
    _is_told(await arrivals[1], Cause.LEDGER, 10.0)


async def test_logins_that_are_used_up(bench: Bench) -> None:
    """If polls have to wait for their logins, that is why the interval is wide."""
    budget = LoginBudget(2.0, bench.clock)
    for _ in range(BURST - 1):
        await budget.take(Standing(is_slow=False))
    bench.watcher._mailbox._budget = budget  # type: ignore[attr-defined] # of a POP3 mailbox
    settled = await _settled(bench, 5.0)
    assert settled.delay is not None
    _is_told(settled, Cause.LOGINS, settled.delay.seconds)
    assert settled.delay.seconds > 20.0


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(Reason.LOCAL_RESOURCES, Cause.RESOURCES), (Reason.LEDGER_UNAVAILABLE, Cause.LEDGER)],
    ids=["resources", "ledger"],
)
async def test_a_poll_that_failed_by_our_fault(bench: Bench, fault: Reason, cause: Cause) -> None:
    """All of the time until the next poll is our own delay, once, whatever kept us from looking."""
    message = await bench.sent()
    bench.arrives(message, 0.3)

    def fails_once() -> None:
        bench.mailbox.on_login = lambda: None
        delays = bench.watcher._arrivals.delays
        with delays.waiting(cause) if fault is Reason.LEDGER_UNAVAILABLE else nullcontext():
            bench.clock.now += 4.0
        raise ProbeFault(fault, "not now")

    bench.mailbox.on_login = fails_once
    begun = bench.clock.now
    settled = await bench.watcher.await_arrival(message)
    blind = bench.clock.now - begun
    delay = bench.watcher.delay(begun - 60.0, bench.clock.now)
    assert 4.0 < delay.seconds <= blind < 8.0
    assert delay.cause is cause
    assert settled.delay is not None
    assert settled.delay.cause is cause


async def test_a_message_that_is_read_by_a_later_poll(bench: Bench) -> None:
    """A copy arrived before the poll that listed it first, even if there were too many to read it then."""
    message = await bench.sent()
    bench.arrives(message, 0.3)
    bench.mailbox.stored += [  # newer, so it is read first
        Stored(f"foreign-{number}", b"Subject: hello\r\n\r\nbody", bench.clock.now + 0.3)
        for number in range(2 * MOST_READ)
    ]

    def slow_after_the_crowd_was_listed() -> None:
        bench.clock.now += 5.0 * bool(bench.mailbox.headers_read)

    bench.mailbox.on_login = slow_after_the_crowd_was_listed
    settled = await bench.watcher.await_arrival(message)
    assert len(bench.mailbox.headers_read) > 2 * MOST_READ
    delivery, uncertainty = settled.message.delivery_seconds, settled.message.uncertainty_seconds
    assert delivery is not None
    assert uncertainty is not None
    assert delivery - uncertainty <= 0.3 <= delivery + uncertainty
    assert uncertainty < 0.2


async def test_a_submission_that_the_agent_held_up(bench: Bench) -> None:
    """The latency may be shorter by our own delay in the submission, and the deadline is later by it."""
    now = bench.clock.now
    times = {"connected_mono": now - 10.0, "dot_mono": now, "accepted_mono": now, "submission_seconds": 4.0}
    message = await bench.sent(deadline=12.0, **times)
    assert message.submission_held_up == pytest.approx(6.0)
    assert message.due_mono == pytest.approx(now + 8.0)
    bench.arrives(message, 0.5)
    report = (await bench.watcher.await_arrival(message)).report
    assert report.delivery_seconds is not None
    assert report.uncertainty_seconds is not None
    assert report.delivery_seconds - report.uncertainty_seconds == pytest.approx(4.5, abs=0.2)
    assert report.delivery_seconds + report.uncertainty_seconds == pytest.approx(10.5, abs=0.2)
    assert report.held_up_seconds == pytest.approx(6.0, abs=0.2)


async def test_times_of_a_submission_that_contradict_each_other(bench: Bench) -> None:
    """A final dot before the connection neither ends the watch nor makes an uncertainty negative."""
    now = bench.clock.now
    times = {"connected_mono": now + 0.1, "dot_mono": now, "accepted_mono": now, "submission_seconds": 0.0}
    message = await bench.sent(**times)
    bench.arrives(message, 0.0)
    report = (await bench.watcher.await_arrival(message)).report
    assert bench.watcher.fault is None
    assert report.uncertainty_seconds is not None
    assert report.uncertainty_seconds >= 0.0


def _delivered(latency: float, uncertainty: float, delay: float, findings: str = "") -> Settled:
    message = intent(
        InstantClock(),
        state=MessageState.DELIVERED,
        delivery_seconds=latency,
        uncertainty_seconds=uncertainty,
        findings=findings,
    )
    return Settled(message, delay=OwnDelay(delay, Cause.LEDGER))


@pytest.mark.parametrize(
    ("settled", "reason"),
    [
        (_delivered(6.0, 6.0, 11.0), Reason.LOCAL_RESOURCES),
        (_delivered(6.0, 6.0, 1.0), Reason.NONE),
        (_delivered(0.4, 0.4, 0.7), Reason.NONE),
        (_delivered(240.0, 6.0, 11.0), Reason.NONE),
        (_delivered(6.0, 6.0, 11.0, "junked"), Reason.MESSAGE_JUNKED),
    ],
    ids=["our delay", "not our delay", "a short pause", "a slow mail system", "junk"],
)
def test_only_a_latency_that_we_hid_is_unknown(settled: Settled, reason: Reason) -> None:
    """A run is unknown if our own delay hid its latency; slow mail is slow, and junk is junk."""
    assert _verdict(settled, {}).reason is reason


@pytest.mark.parametrize(("waits", "reason"), [(25.0, Reason.LOCAL_RESOURCES), (1.0, Reason.TIMEOUT)])
async def test_a_mailbox_that_we_did_not_look_into(bench: Bench, waits: float, reason: Reason) -> None:
    """If our own delay kept us from looking after the deadline, the run is unknown, not failed."""
    message = await bench.sent(deadline=10.0)
    bench.clock.now += 40.0
    bench.watcher._arrivals.delays.add(Cause.LOGINS, bench.clock.now - waits, bench.clock.now)
    verdict = _undecided(message, bench.watcher, bench.clock.now)
    assert verdict.reason is reason
    assert ("logins_per_minute" in verdict.detail) is (reason is Reason.LOCAL_RESOURCES)


@pytest.mark.parametrize(("held_up", "is_good"), [(0.0, False), (0.5, False), (1.5, None)])
def test_our_own_delay_burns_no_objective(held_up: float, is_good: bool | None) -> None:
    """A message that would have been in time without our own delay counts neither as good nor as bad."""
    verdict = _verdict(_delivered(5.5, 0.8, held_up), {})
    slo = SloSettings.model_validate({"objective": "99%", "within": "5s"})
    assert slo.is_good(verdict) is is_good
    assert isinstance(verdict.message, MessageReport)


async def test_delays_in_a_period() -> None:
    """Only delays in the period count, as far as they overlap; those that are going on count too."""
    clock = InstantClock()
    delays = OwnDelays(clock)
    delays.add(Cause.MACHINE, 100.0, 104.0)
    delays.add(Cause.CONNECTIONS, 110.0, 120.0, 5.0)
    assert delays.within(102.0, 105.0) == OwnDelay(2.0, Cause.MACHINE)
    assert delays.within(104.0, 114.0) == OwnDelay(2.0, Cause.CONNECTIONS)
    assert delays.within(0.0, 90.0).seconds == 0.0
    with delays.waiting(Cause.LEDGER), delays.waiting(Cause.LEDGER):
        await clock.sleep(3.0)
        assert delays.within(clock.now - 10.0, clock.now) == OwnDelay(3.0, Cause.LEDGER)
    assert delays.within(clock.now - 10.0, clock.now) == OwnDelay(3.0, Cause.LEDGER)


def test_what_is_remembered_is_bounded() -> None:
    """Thousands of short delays add up without being remembered one by one."""
    delays = OwnDelays(InstantClock())
    for number in range(10_000):
        delays.add(Cause.LEDGER, number * 0.01, number * 0.01 + 0.005)
    assert len(delays._known[Cause.LEDGER].spans) <= KEPT
    assert delays.within(50.0, 100.0).seconds == pytest.approx(25.0, rel=0.02)
