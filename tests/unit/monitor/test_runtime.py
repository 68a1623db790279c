"""The effect of a new configuration in a running process: what stays, and what ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from monitor.config.models import Configuration
from monitor.ledger.last_week import BOUNDS, HOUR, Ends
from monitor.runtime import Runtime, open_runtime
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageState, Verdict
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageProbe
from probes.messages.synthetic_message import compose
from probes.messages.token import Token
from tests.fakes.agent_state import RouteProbe
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.fakes.message import intent


def configuration(directory: Path, *probes: dict[str, Any], **agent: Any) -> Configuration:
    """Return a configuration with one POP3 mailbox and these probes."""
    return Configuration.model_validate(written(directory, *probes, **agent))


def written(directory: Path, *probes: dict[str, Any], **agent: Any) -> dict[str, Any]:
    """Return such a configuration as it is written."""
    server = {"host": "mail.example.test", "tls": "implicit"}
    login = {"username": "canary", "password": {"file": str(directory / "password")}}
    (directory / "password").write_text("secret")
    mailbox = {"address": "canary@example.test", "server": "pop", **login}
    return {
        "agent": {"ledger": f"sqlite:{directory / 'ledger.db'}", **agent},
        "servers": {"out": {"protocol": "smtp", **server}, "pop": {"protocol": "pop3", **server}},
        "mailboxes": {"canary": mailbox},
        "probes": [*probes],
    }


TRIP = {"name": "trip", "kind": "roundtrip", "from": "canary@example.test", "send_via": "out", "to": "canary"}
LOGIN = {"name": "login", "kind": "pop3", "mailbox": "canary"}
GREETING = {"name": "greeting", "kind": "smtp", "server": "out"}


async def sent(runtime: Runtime) -> Message:
    """Record a message of the round trip as sent by this process."""
    trip, clock = runtime.assembly.probes["trip"], runtime.clock
    assert isinstance(trip, MessageProbe)
    message = intent(clock, instance=trip.context.instance)
    await runtime.ledger.intend(message)
    now = clock.monotonic()
    sent = await runtime.ledger.advance(message.id, MessageState.SENT, connected_mono=now, dot_mono=now)
    assert sent is not None
    return sent


def copy_of(message: Message, runtime: Runtime) -> bytes:
    """Return a copy of the message as stored in a mailbox."""
    trip = runtime.assembly.probes["trip"]
    assert isinstance(trip, MessageProbe)
    token = trip.context.signer.sign(Token("trip", message.id, round(message.created_at * 1e6)))
    return compose(
        probe="trip",
        location="here",
        sender="canary@example.test",
        recipient="canary@example.test",
        run=message.id,
        token=token,
        created_at=message.created_at,
    ).content


async def test_another_configuration_takes_effect(tmp_path: Path) -> None:
    """Kept probes keep their counts, new ones have metrics at once, and removed ones have none."""
    async with open_runtime(configuration(tmp_path, LOGIN, GREETING), InstantClock(), "agent") as runtime:
        runtime.state.ran("login", "pop", Verdict(Reason.NONE), ended_at=1.0, duration=0.1)
        await runtime.replace(runtime.assembled(configuration(tmp_path, {**LOGIN, "interval": "2m"}, TRIP)))
        for probe in runtime.assembly.probes.values():
            runtime.state.configure(probe, 1.0)
        assert set(runtime.assembly.probes) == {"login", "trip"}
        assert set(runtime.state.probes) == {("login", "pop"), ("trip", "out")}
        assert runtime.state.probes["login", "pop"].runs[Outcome.OK] == 1
        assert runtime.state.probes["login", "pop"].interval == 120.0
        assert set(runtime.state.skipped) == {"login", "trip"}


async def test_when_a_message_is_overdue(tmp_path: Path) -> None:
    """The setting decides, or else what is usual for the route. A new route has no threshold yet."""
    own = {**TRIP, "name": "own", "alerts": {"overdue": "2m"}}
    clock = InstantClock()
    async with open_runtime(configuration(tmp_path, TRIP, own, LOGIN), clock, "agent") as runtime:
        assert runtime.overdue_after("trip", "out") is None
        assert runtime.overdue_after("own", "out") == 120.0
        assert runtime.overdue_after("login", "pop") is None
        assert runtime.overdue_after("gone", "out") is None
        hour, bound = int(clock.time() // HOUR), BOUNDS.index(25.0)
        for name in ("trip", "own"):
            runtime.ledger.last_week.add(
                Ends(name, "out", hour - number, is_delivered=True, bound=bound, count=10)
                for number in range(8)
            )
        assert runtime.overdue_after("trip", "out") == 75.0
        assert runtime.overdue_after("own", "out") == 120.0


async def test_a_probe_that_a_reload_removes_during_its_run_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MX hosts that the run has found have no series, and get no mail, if their probe is gone by then."""
    async with open_runtime(configuration(tmp_path, LOGIN), InstantClock(), "agent") as runtime:
        hosts = [RouteProbe(host, name="domain") for host in ("mx1", "mx2")]
        domain = RouteProbe("example.com", tuple(hosts), name="domain")
        runtime.assembly.probes["domain"] = domain
        ran: list[str] = []
        is_removed = False

        async def run(probe: RouteProbe) -> None:
            ran.append(probe.target)
            if is_removed:
                await runtime.replace(runtime.assembled(configuration(tmp_path, LOGIN)))

        monkeypatch.setattr(runtime.runner, "run", run)
        await runtime.run(domain, lambda _: None)
        assert ran == ["example.com", "mx1", "mx2"]
        assert {"mx1", "mx2"} < {target for _, target in runtime.state.probes}
        ran.clear()
        is_removed = True
        await runtime.run(domain, lambda _: None)
        assert ran == ["example.com"]
        assert runtime.state.probes.keys() == {("login", "pop")}


async def test_a_message_in_flight_is_watched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new watcher reports the arrival of a message that was sent before the change."""
    clock = InstantClock()
    mailbox = FakeMailbox(clock)
    monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", mailbox.open_session)
    async with open_runtime(configuration(tmp_path, TRIP), clock, "agent") as runtime:
        message = await sent(runtime)
        trip = runtime.assembly.probes["trip"]
        assert isinstance(trip, MessageProbe)
        arrival = trip.follow(message)
        await runtime.replace(runtime.assembled(configuration(tmp_path, TRIP, LOGIN)))
        mailbox.stored.append(Stored("1", copy_of(message, runtime), clock.now + 5.0))
        async with asyncio.timeout(30):
            settled = await arrival
        assert settled.message.state is MessageState.DELIVERED
        last = runtime.state.deliveries["trip", "out"].last
        assert last is not None
        assert float(last) == pytest.approx(settled.message.delivery_seconds, abs=1e-6)


async def test_a_run_in_progress_follows_its_message_on_the_new_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that hands over its message during or after the change does not revive the closed watcher."""
    clock = InstantClock()
    mailbox = FakeMailbox(clock)
    monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", mailbox.open_session)
    async with open_runtime(configuration(tmp_path, TRIP), clock, "agent") as runtime:
        trip = runtime.assembly.probes["trip"]
        assert isinstance(trip, MessageProbe)
        messages = [await sent(runtime) for _ in range(2)]
        new = runtime.assembled(configuration(tmp_path, TRIP, LOGIN))
        change = asyncio.create_task(runtime.replace(new))
        await asyncio.sleep(0)  # the watcher is being closed
        assert not change.done()
        arrivals = [trip.follow(messages[0])]
        await change
        assert runtime.assembly.probes["trip"] is not trip
        arrivals.append(trip.follow(messages[1]))
        await asyncio.sleep(0)
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert len([name for name in names if name.startswith("watcher of")]) == 1
        for uid, message in enumerate(messages):
            mailbox.stored.append(Stored(str(uid), copy_of(message, runtime), clock.now + 5.0))
        async with asyncio.timeout(30):
            settled = await asyncio.gather(*arrivals)
        assert [each.message.state for each in settled] == [MessageState.DELIVERED] * 2


@pytest.mark.parametrize(
    ("protocol", "account", "is_kept"),
    [
        ("imap", "Canary@example.test", True),
        ("imap", "login-name", True),
        ("imap", "somebody@example.test", False),
        ("pop3", "login-name", False),
    ],
)
async def test_whose_sent_folder_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str, account: str, *, is_kept: bool
) -> None:
    """It is that of the account that sends, by address or login name. The log says if it cannot be read."""
    made = written(tmp_path, TRIP)
    canary = made["mailboxes"]["canary"]
    canary["username"] = "login-name"
    made["servers"]["out"] |= {"saves_sent_copies": True, "username": account, "password": canary["password"]}
    made["servers"]["pop"]["protocol"] = protocol
    async with open_runtime(Configuration.model_validate(made), InstantClock(), "agent") as runtime:
        assert runtime.assembly.watchers["canary"]._sent_copies._are_kept is is_kept
    assert (f"sent folder of {account}" in caplog.text) is not is_kept
