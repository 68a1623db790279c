"""Maintenance: which runs and messages do not count, and pauses of a running process."""

from __future__ import annotations

import asyncio
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from monitor.collector import AgentCollector
from monitor.config.maintenance import WindowSettings
from monitor.config.models import Configuration
from monitor.config.selection import chosen
from monitor.ledger.pauses import Pause
from monitor.maintenance import Maintenance
from monitor.pausing import pausing
from monitor.runtime import Runtime, open_runtime
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageReport, MessageState, Verdict
from probes.delivery.arrivals import Settled
from probes.delivery.message_life import Message
from tests.fakes.clock import InstantClock
from tests.fakes.message import intent

DAY = 86400.0
MIDNIGHT = 19_700 * DAY  # 2023-12-09T00:00Z
NIGHT = {"cron": "0 2 * * *", "for": "1h", "comment": "updates"}


def configuration(directory: Path, **windows: Any) -> Configuration:
    server = {"host": "mail.example.test", "tls": "implicit"}
    (directory / "password").write_text("secret")
    login = {"username": "canary", "password": {"file": str(directory / "password")}}
    trip = {"kind": "roundtrip", "from": "canary@example.test", "send_via": "out", "to": "canary"}
    slo = {"slo": {"objective": "99%", "within": "30s"}, "labels": {"team": "messaging"}}
    return Configuration.model_validate(
        {
            "agent": {"ledger": f"sqlite:{directory / 'ledger.db'}"},
            "servers": {"out": {"protocol": "smtp", **server}, "pop": {"protocol": "pop3", **server}},
            "mailboxes": {"canary": {"address": "canary@example.test", "server": "pop", **login}},
            "probes": [{"name": "trip", **trip, **slo}, {"name": "other", **trip}],
            "maintenance": windows,
        }
    )


def run(runtime: Runtime, reason: Reason, *, began: float, ended: float, name: str = "trip") -> None:
    """Record a run that sent a message."""
    state = MessageState.DELIVERED if reason is Reason.NONE else MessageState.LOST
    report = MessageReport("0" * 32, state, None, None, 1.0, 0.1)
    verdict = Verdict(reason, message=report)
    runtime.state.ran(name, "out", verdict, ended_at=ended, duration=ended - began)


async def sent(runtime: Runtime, *, age: float = 0.0) -> Message:
    """Record a message of that age that is in flight."""
    made = intent(runtime.clock, age=age)
    await runtime.ledger.intend(made)
    await runtime.ledger.advance(made.id, MessageState.SENT)
    return made


async def ended(runtime: Runtime, message: Message, state: MessageState) -> Message:
    """Record that a message ends now, and tell the state."""
    measured = (
        {"delivery_seconds": 1.0, "uncertainty_seconds": 0.1} if state is MessageState.DELIVERED else {}
    )
    now = await runtime.ledger.advance(message.id, state, **measured)
    assert now is not None
    runtime.state.settled(Settled(now))
    return now


async def message(runtime: Runtime, state: MessageState, *, age: float) -> Message:
    """Record a message of that age that ends now."""
    return await ended(runtime, await sent(runtime, age=age), state)


def samples(runtime: Runtime, now: float, name: str) -> dict[str, float]:
    """Return the samples of a metric, by probe, and by state if it has one."""
    collector = AgentCollector(runtime.state, lambda: runtime.ledger.counters, now=lambda: now)
    return {
        f"{sample.labels['probe']} {sample.labels.get('state', '')}".strip(): sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_when_counting_begins_again() -> None:
    """What began before the end of the last maintenance does not count, and during one nothing does."""
    window = WindowSettings.model_validate({**NIGHT, "probes": ["hq"]})
    made = Maintenance({"hq": {}, "other": {}}, {"night": window})
    hours = {hour: made.counts_from("hq", MIDNIGHT + hour * 3600) for hour in (1, 2, 2.5, 3, 5, 27)}
    ended = MIDNIGHT + 3 * 3600
    assert hours == {1: ended - DAY, 2: math.inf, 2.5: math.inf, 3: ended, 5: ended, 27: ended + DAY}
    assert made.counts_from("other", MIDNIGHT + 2.5 * 3600) == -math.inf
    paused = made.paused([Pause("o*", MIDNIGHT, MIDNIGHT + 60, "", "me")])
    assert paused.counts_from("other", MIDNIGHT + 30) == math.inf
    assert paused.counts_from("other", MIDNIGHT + 90) == MIDNIGHT + 60
    assert paused.counts_from("hq", MIDNIGHT + 2.5 * 3600) == math.inf


def test_many_windows_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two changes, a question looks at no window, however many windows and probes there are."""
    looks = []
    latest = WindowSettings.latest
    monkeypatch.setattr(WindowSettings, "latest", lambda *asked: looks.append(asked) or latest(*asked))
    settings = [{"cron": f"{minute} 2 * * *", "for": "1m", "probes": ["*"]} for minute in range(60)]
    windows = {f"at-{number}": WindowSettings.model_validate(each) for number, each in enumerate(settings)}
    probes = {f"hq-{number}": {} for number in range(1000)}
    looks.clear()  # those of the validation
    made = Maintenance(probes, windows).paused([Pause("hq-1?", MIDNIGHT, MIDNIGHT + 60, "", "me")])
    for now in (MIDNIGHT + 90.0, MIDNIGHT + 100.0):
        assert [made.current(probe, now) for probe in probes] == [None] * 1000
        assert {made.counts_from(probe, now) for probe in probes} == {MIDNIGHT + 60, MIDNIGHT - 75600}
    assert len(looks) == 60
    begun = MIDNIGHT + 7200
    assert [period.name for probe in probes if (period := made.current(probe, begun))] == ["at-0"] * 1000
    assert len(looks) == 61


def test_the_maintenance_that_ends_last_is_shown() -> None:
    """If a window and a pause overlap, people see when both are over, and why."""
    window = WindowSettings.model_validate({**NIGHT, "labels": {"team": "messaging"}})
    begun = MIDNIGHT + 7200
    pauses = [
        Pause("site=a\nteam=messaging", begun, begun + 60, "", "me"),
        Pause("hq", 0, begun + 9000, "x", "you"),
    ]
    made = Maintenance({"hq": {"team": "messaging", "site": "a"}, "b": {}}, {"night": window}).paused(pauses)
    period = made.current("hq", begun + 30)
    assert period is not None
    assert (period.source, period.ends_at, period.comment) == ("pause by you", begun + 9000, "x")
    assert made.current("b", begun + 30) is None
    night = made.paused(pauses[:1]).current("hq", begun + 30)
    assert night is not None
    assert (night.source, night.ends_at, night.comment) == ("window night", begun + 3600, "updates")


async def test_runs_of_maintenance_do_not_count(tmp_path: Path) -> None:
    """A run that is partly in maintenance counts nowhere; the first one after it begins to count anew."""
    window = {**NIGHT, "labels": {"team": "messaging"}}
    clock = InstantClock(wall=MIDNIGHT)
    async with open_runtime(configuration(tmp_path, night=window), clock, "agent") as runtime:
        begins, ends = MIDNIGHT + 2 * 3600, MIDNIGHT + 3 * 3600
        state, delivery = runtime.state.probes["trip", "out"], runtime.state.deliveries["trip", "out"]
        run(runtime, Reason.MESSAGE_LOST, began=begins - 60, ended=begins - 1)
        assert (state.runs[Outcome.FAILED], state.failed_runs, delivery.slo_runs["bad"]) == (1, 1, 1)
        for began, ended in ((begins - 30, begins + 30), (begins + 1, begins + 9), (ends - 30, ends + 30)):
            run(runtime, Reason.MESSAGE_LOST, began=began, ended=ended)
            run(runtime, Reason.MESSAGE_LOST, began=began, ended=ended, name="other")
        assert state.runs == {Outcome.OK: 0, Outcome.FAILED: 1, Outcome.UNKNOWN: 0}
        assert state.reasons == {Reason.MESSAGE_LOST: 1}
        assert (state.failed_runs, state.failing_since, state.success) == (0, 0, 0)
        assert delivery.slo_runs == {"good": 0, "bad": 1}
        assert runtime.state.probes["other", "out"].runs[Outcome.FAILED] == 3
        run(runtime, Reason.MESSAGE_LOST, began=ends, ended=ends + 60)
        assert (state.runs[Outcome.FAILED], state.failed_runs, delivery.slo_runs["bad"]) == (2, 1, 2)
        assert float(state.failing_since) == ends + 60


async def test_messages_of_maintenance_do_not_count(tmp_path: Path) -> None:
    """Messages that end or were sent in maintenance have a state of their own, and no part in the shares."""
    window = {**NIGHT, "probes": ["trip"]}
    clock = InstantClock(wall=MIDNIGHT + 3 * 3600 - 60)  # a minute before the end
    settings = configuration(tmp_path, night=window)
    async with open_runtime(settings, clock, "agent") as runtime:
        await message(runtime, MessageState.LOST, age=5)
        await message(runtime, MessageState.DELIVERED, age=5)
        clock.now += 70
        await message(runtime, MessageState.LOST, age=11)
        await message(runtime, MessageState.LOST, age=9)
        assert runtime.ledger.last_week.route("trip", "out").share(clock.time(), 24).ended == 1
        assert not await runtime.ledger.discrepancies()
    async with open_runtime(settings, clock, "agent") as runtime:  # and so it is after a restart
        counted = samples(runtime, clock.time(), "mailsonde_messages_total")
        assert counted["trip lost"] == 1
        assert counted["trip delivered"] == 0
        assert counted["trip in_maintenance"] == 3
        assert "other in_maintenance" not in counted
        await runtime.ledger.recall_last_week(clock.time() + 1)
        assert runtime.ledger.last_week.route("trip", "out").share(clock.time(), 24).ended == 1


async def test_messages_in_flight_from_maintenance_are_not_overdue(tmp_path: Path) -> None:
    """After maintenance, the oldest message in flight is one that was sent after it, if there is one."""
    clock = InstantClock(wall=MIDNIGHT + 3 * 3600 - 60)
    async with open_runtime(
        configuration(tmp_path, night={**NIGHT, "probes": ["trip"]}), clock, "agent"
    ) as runtime:
        oldest = "mailsonde_oldest_in_flight_timestamp_seconds"
        await runtime.ledger.intend(intent(clock, age=30))
        assert samples(runtime, clock.time(), oldest)["trip"] == 0
        clock.now += 100
        assert samples(runtime, clock.time(), oldest)["trip"] == 0
        counted = intent(clock, age=10)
        await runtime.ledger.intend(counted)
        await runtime.ledger.intend(intent(clock))
        assert samples(runtime, clock.time(), oldest)["trip"] == counted.created_at
        assert samples(runtime, clock.time(), "mailsonde_messages_in_flight")["trip"] == 3


async def test_overdue_messages_are_seen_after_a_restart(tmp_path: Path) -> None:
    """A window at another time of the day hides none that an earlier process left in flight."""
    clock = InstantClock(wall=MIDNIGHT + 12 * 3600)
    settings = configuration(tmp_path, night={**NIGHT, "probes": ["trip"]})
    async with open_runtime(settings, clock, "agent") as runtime:
        overdue = intent(clock, age=600)
        await runtime.ledger.intend(overdue)
    async with open_runtime(settings, clock, "agent") as runtime:
        oldest = samples(runtime, clock.time(), "mailsonde_oldest_in_flight_timestamp_seconds")
        assert oldest["trip"] == overdue.created_at


async def test_a_loss_from_before_maintenance_counts_on(tmp_path: Path) -> None:
    """It was told already; that the message arrives late, in maintenance, does not take it back."""
    clock = InstantClock(wall=MIDNIGHT + 2 * 3600 - 60)
    settings = configuration(tmp_path, night={**NIGHT, "probes": ["trip"]})
    async with open_runtime(settings, clock, "agent") as runtime:
        lost = await message(runtime, MessageState.LOST, age=400)
        clock.now += 120
        await runtime.ledger.advance(lost.id, MessageState.LATE)
        assert not await runtime.ledger.discrepancies()
    async with open_runtime(settings, clock, "agent") as runtime:
        counted = samples(runtime, clock.time(), "mailsonde_messages_total")
        assert (counted["trip lost"], counted["trip late"]) == (1, 1)
        assert "trip in_maintenance" not in counted
        await runtime.ledger.recall_last_week(clock.time() + 1)
        assert runtime.ledger.last_week.route("trip", "out").share(clock.time(), 24).ended == 1


@pytest.mark.parametrize("sent_at", [2 * 3600 - 10, 2 * 3600 + 10], ids=["before", "within"])
async def test_what_a_window_excused_stays_excused(tmp_path: Path, sent_at: float) -> None:
    """If a reload removes the window, nothing that was under way in it counts, and all that comes later."""
    clock = InstantClock(wall=MIDNIGHT + sent_at)
    settings = configuration(tmp_path, night={**NIGHT, "probes": ["trip"]})
    async with open_runtime(settings, clock, "agent") as runtime:
        began_at, in_flight = clock.time(), [await sent(runtime) for _ in range(3)]
        clock.now += 60
        await runtime.replace(runtime.assembled(configuration(tmp_path)))
        oldest = samples(runtime, clock.time(), "mailsonde_oldest_in_flight_timestamp_seconds")
        assert oldest["trip"] == 0
        clock.now += 60
        await ended(runtime, in_flight[0], MessageState.LOST)
        run(runtime, Reason.MESSAGE_LOST, began=began_at, ended=clock.time())
        await runtime.replace(runtime.assembled(settings))  # neither does another reload change it
        await runtime.replace(runtime.assembled(configuration(tmp_path)))
        await ended(runtime, in_flight[1], MessageState.BOUNCED)
        await message(runtime, MessageState.LOST, age=0)
        run(runtime, Reason.MESSAGE_LOST, began=clock.time(), ended=clock.time())
        counted = samples(runtime, clock.time(), "mailsonde_messages_total")
        assert [counted[f"trip {state}"] for state in ("lost", "bounced", "in_maintenance")] == [1, 0, 2]
        assert runtime.state.probes["trip", "out"].runs[Outcome.FAILED] == 1


async def test_what_was_sent_in_maintenance_stays_excused_after_a_restart(tmp_path: Path) -> None:
    """The ledger knows it, whatever the configuration says by then."""
    clock = InstantClock(wall=MIDNIGHT + 2 * 3600)
    settings = configuration(tmp_path, night={**NIGHT, "probes": ["trip"]})
    async with open_runtime(settings, clock, "agent") as runtime:
        in_flight = await sent(runtime)
    clock.now += 60
    async with open_runtime(configuration(tmp_path), clock, "agent") as runtime:
        await ended(runtime, in_flight, MessageState.LOST)
        await message(runtime, MessageState.LOST, age=0)
        counted = samples(runtime, clock.time(), "mailsonde_messages_total")
        assert (counted["trip lost"], counted["trip in_maintenance"]) == (1, 1)


async def test_the_histogram_has_the_messages_that_the_ledger_counts(tmp_path: Path) -> None:
    """A message that arrived before maintenance, and is recorded in it, is excused in both."""
    clock = InstantClock(wall=MIDNIGHT + 2 * 3600 - 5)
    settings = configuration(tmp_path, night={**NIGHT, "probes": ["trip"]})
    async with open_runtime(settings, clock, "agent") as runtime:
        await message(runtime, MessageState.DELIVERED, age=0)
        before = await sent(runtime)
        clock.now += 10
        await ended(runtime, before, MessageState.DELIVERED)
        counted = samples(runtime, clock.time(), "mailsonde_messages_total")
        assert (counted["trip delivered"], counted["trip in_maintenance"]) == (1, 1)
        assert samples(runtime, clock.time(), "mailsonde_delivery_seconds_count") == {"trip": 1, "other": 0}


async def test_a_pause_holds_if_the_clock_is_set_back(tmp_path: Path) -> None:
    """A pause that begins later has begun, can be ended, and excuses nothing that comes after its end."""
    clock, settings = InstantClock(wall=MIDNIGHT), configuration(tmp_path)
    async with pausing(settings, clock) as ledger, open_runtime(settings, clock, "agent") as runtime:
        await ledger.begin(["trip"], MIDNIGHT + 7200, "", "me")
        await runtime.read_pauses()
        in_flight = await sent(runtime)
        clock.wall_offset -= 3600
        assert samples(runtime, clock.time(), "mailsonde_probe_in_maintenance") == {"trip": 1}
        assert await ledger.end(["trip"]) == []
        assert await ledger.current() == []
        await runtime.read_pauses()
        assert samples(runtime, clock.time(), "mailsonde_probe_in_maintenance") == {}
        clock.now += 60
        await ended(runtime, in_flight, MessageState.LOST)
        await message(runtime, MessageState.LOST, age=30)
        counted = samples(runtime, clock.time(), "mailsonde_messages_total")
        assert (counted["trip lost"], counted["trip in_maintenance"]) == (1, 1)


async def test_pauses_change_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many probes and pauses take seconds to match, in which the probes must run on."""
    clock, settings = InstantClock(wall=MIDNIGHT), configuration(tmp_path)
    threads = []

    def noted(*arguments: Any) -> set[str]:
        threads.append(threading.current_thread())
        return chosen(*arguments)

    monkeypatch.setattr("monitor.maintenance.chosen", noted)
    async with pausing(settings, clock) as ledger, open_runtime(settings, clock, "agent") as runtime:
        await ledger.begin(["tr*", "o*"], MIDNIGHT + 3600, "", "me")
        await runtime.read_pauses()
        assert len(threads) == 2
        assembly = await asyncio.to_thread(runtime.assembled, settings)  # as a reload does
        await runtime.replace(assembly)
        assert len(threads) == 4
        assert threading.current_thread() not in threads
        assert samples(runtime, clock.time(), "mailsonde_probe_in_maintenance") == {"trip": 1, "other": 1}


async def test_refusals_of_a_server_that_throttles_do_not_count(tmp_path: Path) -> None:
    """Neither those of runs in maintenance, nor of polls while all probes of the mailbox are in it."""
    clock = InstantClock(wall=MIDNIGHT + 2 * 3600 - 60)
    settings = configuration(tmp_path, night={**NIGHT, "probes": ["*"]}, trips={**NIGHT, "probes": ["trip"]})
    of_trip = configuration(tmp_path, trips={**NIGHT, "probes": ["trip"]})
    async with open_runtime(settings, clock, "agent") as runtime:

        def refused() -> int:
            verdict = Verdict(Reason.THROTTLED, throttled=1)
            runtime.state.ran("trip", "out", verdict, ended_at=clock.time(), duration=1.0)
            runtime.state.poll_throttled("canary", clock.time())
            return sum(runtime.state.throttled.values())

        assert refused() == 2
        clock.now += 120
        assert refused() == 2
        await runtime.replace(runtime.assembled(of_trip))
        assert refused() == 3
        clock.now += 2 * 3600
        assert refused() == 5


async def test_a_pause_is_noticed_and_outlasts_a_restart(tmp_path: Path) -> None:
    """The agent notices pauses that the command writes to the ledger, also after a restart."""
    clock, settings = InstantClock(wall=MIDNIGHT), configuration(tmp_path)
    shown = "mailsonde_probe_in_maintenance"
    async with pausing(settings, clock) as ledger:
        async with open_runtime(settings, clock, "agent") as runtime:
            assert await ledger.begin(["tr*"], MIDNIGHT + 3600, "", "me")
            await runtime.read_pauses()
            assert samples(runtime, clock.time(), shown) == {"trip": 1}
            ends = samples(runtime, clock.time(), "mailsonde_maintenance_ends_timestamp_seconds")
            assert ends == {"trip": MIDNIGHT + 3600}
            begins = samples(runtime, clock.time(), "mailsonde_maintenance_begins_timestamp_seconds")
            assert begins == {"trip": MIDNIGHT}
        clock.now += 60
        async with open_runtime(settings, clock, "agent") as runtime:
            assert samples(runtime, clock.time(), shown) == {"trip": 1}
            assert await ledger.end(["tr*", "trip"]) == ["trip"]
            await runtime.read_pauses()
            assert samples(runtime, clock.time(), shown) == {}
            assert runtime.state.maintenance.counts_from("trip", clock.time() + 9) == clock.time()
        assert not await ledger.begin(["trip"], MIDNIGHT + 7200, "", "me")


async def test_a_second_pause_replaces_the_first(tmp_path: Path) -> None:
    """A pause can be made shorter, and those of other selections stay."""
    clock, settings = InstantClock(wall=MIDNIGHT), configuration(tmp_path)
    async with pausing(settings, clock) as ledger:
        await ledger.begin(["trip", "other"], MIDNIGHT + 3600, "", "me")
        clock.now += 1
        await ledger.begin(["trip"], MIDNIGHT + 600, "shorter", "me")
        left = [(each.selection, each.ends_at) for each in await ledger.current()]
        assert left == [("other", MIDNIGHT + 3600), ("trip", MIDNIGHT + 600)]
