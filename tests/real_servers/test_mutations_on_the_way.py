"""Round trips with mail that is changed on the way, through real Postfix and Dovecot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.config.load import load
from monitor.runner import Result
from monitor.runtime import Runtime, open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Unexpected
from tests.real_servers import relay as treatments
from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import wait_until
from tests.real_servers.relay import Relay, Treatment

pytestmark = pytest.mark.tried("roundtrip", "Postfix", "Dovecot")

S = MessageState


@dataclass
class Servers:
    """Postfix delivers to the relay, and the relay to Dovecot."""

    dovecot: Dovecot
    relay: Relay
    postfix: Postfix
    tls: TlsFiles

    def configuration(self, directory: Path, protocol: str, count: int = 1, **trip: object) -> Path:
        """Write a configuration with ``count`` round trips from the address of ``sender`` to ``canary``."""
        (directory / "password").write_text(Dovecot.password)
        secret = {"password": {"file": "password"}}
        endpoint = {"host": "127.0.0.1", "tls_ca": str(self.tls.authority)}
        port = self.dovecot.pop3s_port if protocol == "pop3" else self.dovecot.imaps_port
        probe = {"kind": "roundtrip", "interval": "60s", "deadline": "30s", "to": "canary", **trip}
        document = {
            "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
            "servers": {
                "out": {"protocol": "smtp", "port": self.postfix.smtp_port, "tls": "starttls", **endpoint},
                "in": {"protocol": protocol, "port": port, "tls": "implicit", **endpoint},
            },
            "mailboxes": {
                user: {
                    "address": f"{user}@{DOMAIN}",
                    "server": "in",
                    "username": f"{user}@{DOMAIN}",
                    **secret,
                }
                for user in ("canary", "sender")
            },
            "probes": [
                {**probe, "name": f"trip-{n}", "from": f"sender@{DOMAIN}", "send_via": "out"}
                for n in range(count)
            ],
        }
        path = directory / "mailsonde.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


@pytest.fixture(scope="module")
def servers(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Servers]:
    dovecot = Dovecot(server_directory("dovecot"), server_tls)
    relay = Relay(dovecot)
    postfix = Postfix(server_directory("postfix"), dovecot, server_tls, relay=relay)
    yield Servers(dovecot, relay, postfix, server_tls)
    postfix.stop()
    relay.close()
    dovecot.stop()


@asynccontextmanager
async def run_through(path: Path) -> AsyncIterator[tuple[Runtime, list[Result]]]:
    """Run all probes once, concurrently; return the results in the order of the probes."""
    async with open_runtime(load(path), SystemClock(), "check") as runtime:
        async with asyncio.timeout(300):
            results = await asyncio.gather(*map(runtime.runner.run, runtime.assembly.probes.values()))
        yield runtime, results
        assert await runtime.ledger.discrepancies() == []


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


CASES: dict[str, tuple[Treatment, dict[str, Any], Reason, MessageState, list[str]]] = {
    "untouched": (treatments.untouched, {}, Reason.NONE, S.DELIVERED, []),
    "large": (treatments.untouched, {"attachment": "1MB"}, Reason.NONE, S.DELIVERED, []),
    "dropped": (treatments.dropped, {"deadline": "2s"}, Reason.MESSAGE_LOST, S.LOST, []),
    "forged": (treatments.forged, {"deadline": "2s"}, Reason.MESSAGE_LOST, S.LOST, []),
    "subject": (treatments.altered_subject, {}, Reason.MESSAGE_ALTERED, S.DELIVERED, ["altered"]),
    "body": (treatments.altered_body, {}, Reason.MESSAGE_ALTERED, S.DELIVERED, ["altered"]),
    "attachment": (
        treatments.altered_attachment,
        {"attachment": "100KB"},
        Reason.MESSAGE_ALTERED,
        S.DELIVERED,
        ["altered"],
    ),
    "spam": (treatments.marked_as_spam, {}, Reason.MESSAGE_JUNKED, S.DELIVERED, ["junked"]),
    "full": (treatments.bounced("5.2.2"), {}, Reason.BOUNCE_MAILBOX_FULL, S.BOUNCED, []),
    "refused": (treatments.bounced("5.7.1"), {}, Reason.BOUNCE_POLICY, S.BOUNCED, []),
    "forwarded": (
        treatments.forwarded,
        {"arrives_as": "forward", "recipient": f"canary@{DOMAIN}"},
        Reason.NONE,
        S.DELIVERED,
        [],
    ),
    "answered": (
        treatments.auto_replied,
        {"arrives_as": "reply", "recipient": f"staff@{DOMAIN}", "to": "sender"},
        Reason.NONE,
        S.DELIVERED,
        [],
    ),
}


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
@pytest.mark.parametrize("case", CASES)
async def test_end(
    servers: Servers, tmp_path: Path, case: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mutation has its state, reason and issues, and leaves none of our messages behind."""
    monkeypatch.setattr("probes.delivery.awaited.SLOW_GAP", 0.5)
    servers.relay.treatment, trip, reason, state, issues = CASES[case]
    before = {user: len(servers.dovecot.messages(user)) for user in ("canary", "sender")}
    async with run_through(servers.configuration(tmp_path, protocol, **trip)) as (_, (result,)):
        verdict = result.verdict
        assert (verdict.reason, verdict.detail if reason is Reason.NONE else "") == (reason, "")
        assert verdict.message is not None
        assert verdict.message.state is state
        assert verdict.values.get("arrival_issues", []) == issues
    kept = {"canary": 1} if case == "forged" else {}
    left = {user: len(servers.dovecot.messages(user)) - before[user] for user in before}
    assert left == {"canary": 0, "sender": 0, **kept}


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_largest_message_arrives_unaltered(servers: Servers, tmp_path: Path, protocol: str) -> None:
    """A message with an attachment of 25 MB is sent, found, compared completely, and deleted."""
    servers.relay.treatment = treatments.untouched
    before = len(servers.dovecot.messages())
    path = servers.configuration(tmp_path, protocol, attachment="25MB", deadline="60s")
    async with run_through(path) as (runtime, (result,)):
        assert result.verdict.reason is Reason.NONE, result.verdict.detail
        message = await runtime.ledger.find(result.verdict.message.id)
        assert message is not None
        assert (message.octets or 0) > 25_000_000
    assert len(servers.dovecot.messages()) == before


async def test_junk_folder(servers: Servers, tmp_path: Path) -> None:
    """A message that a filter put into the folder Junk is delivered, and reported as junked."""
    servers.relay.treatment = treatments.junked
    async with run_through(servers.configuration(tmp_path, "imap")) as (_, (result,)):
        assert result.verdict.reason is Reason.MESSAGE_JUNKED
    assert servers.dovecot.messages(folder="Junk") == []


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_second_copy(servers: Servers, tmp_path: Path, protocol: str) -> None:
    """A duplicate or replay counts once as a duplicate, changes nothing, and is deleted too."""
    servers.relay.treatment = treatments.replayed(0.3)
    before = len(servers.dovecot.messages())
    async with run_through(servers.configuration(tmp_path, protocol)) as (runtime, (first,)):
        servers.relay.treatment = treatments.duplicated
        await runtime.runner.run(runtime.assembly.probes["trip-0"])
        # A poll may end between two copies; the next message causes another poll.
        servers.relay.treatment = treatments.delayed(1.5)
        await runtime.runner.run(runtime.assembly.probes["trip-0"])
        assert runtime.state.unexpected["canary", Unexpected.DUPLICATE] == 2
        (message,) = [m for m in [await runtime.ledger.find(first.verdict.message.id)] if m is not None]
        assert message.delivery_seconds == first.verdict.message.delivery_seconds
    assert len(servers.dovecot.messages()) == before


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_another_order(servers: Servers, tmp_path: Path, protocol: str) -> None:
    """Messages that arrive in reverse order are each matched to their own run."""
    servers.relay.treatment = treatments.reordered(4)
    async with run_through(servers.configuration(tmp_path, protocol, count=4)) as (_, results):
        assert [result.verdict.reason for result in results] == [Reason.NONE] * 4


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_lost_then_late(
    servers: Servers, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that arrives after its deadline was lost and becomes late, with its latency."""
    monkeypatch.setattr("probes.delivery.awaited.SLOW_GAP", 0.5)
    servers.relay.treatment = treatments.delayed(3.0)
    began = time.monotonic()
    async with run_through(servers.configuration(tmp_path, protocol, deadline="1s")) as (runtime, (result,)):
        assert result.verdict.reason is Reason.MESSAGE_LOST
        route = ("trip-0", "out", S.LATE)
        await until(lambda: runtime.ledger.counters.entered(*route) == 1, "the message came late")
        late = await runtime.ledger.find(result.verdict.message.id)
        assert late is not None
        assert late.delivery_seconds + late.uncertainty_seconds >= 3.0
        assert late.delivery_seconds - late.uncertainty_seconds <= time.monotonic() - began


async def test_hops_and_issues_are_shown(servers: Servers, tmp_path: Path) -> None:
    """`check --format json` shows every hop, and the slow host by its delay."""
    servers.relay.treatment = treatments.delayed(3.0)
    async with run_through(servers.configuration(tmp_path, "imap")) as (runtime, (result,)):
        hops = result.as_object()["values"]["hops"]
        assert [hop["protocol"] for hop in hops] == ["ESMTPS", "LMTP"]
        message = result.verdict.message  # the hosts tell whole seconds
        assert 2.0 <= hops[1]["delay_seconds"] <= message.delivery_seconds + message.uncertainty_seconds + 1.0
        assert not any(hop["skewed"] for hop in hops)
        ((position, seconds),) = runtime.state.deliveries["trip-0", "out"].hop_seconds.items()
        assert (position, float(seconds)) == ("submission", pytest.approx(hops[1]["delay_seconds"], abs=1e-6))
