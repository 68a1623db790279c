"""The ``pop3`` kind: its reports about servers and mailboxes."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import PhaseTimer, Run
from probes.pop3 import Pop3, Pop3Settings
from tests.fakes.clock import InstantClock
from tests.fakes.logins import USER
from tests.fakes.pop3_dialogue import ENTERED, capa
from tests.fakes.scripted_server import PASSWORD, Peer, dialogue, scripted_server
from tests.real_servers.dovecot import TlsFiles

STAT = (b"STAT", b"+OK 2 320")
UIDL = (b"UIDL", b"+OK\r\n1 a\r\n2 b c\r\n.")
QUIT = (b"QUIT", b"+OK bye")


def probe_of(configured: ServerSettings, clock: InstantClock, **settings: Any) -> Pop3:
    mailbox = MailboxSettings.model_construct(
        address=USER, server="pop", username=USER, password=SecretStr(PASSWORD)
    )
    site = Site("here", {"pop": configured}, {"canary": mailbox})
    made = Pop3Settings.model_validate({"name": "pop3", "kind": "pop3", **settings})
    return Pop3(made, Context(clock, site))


def run_of(clock: InstantClock) -> Run:
    return Run("0" * 32, clock.time(), PhaseTimer(clock))


async def test_a_mailbox_is_opened_and_counted() -> None:
    """With a mailbox, the probe logs in and counts; it reads and deletes nothing."""
    clock = InstantClock()
    async with scripted_server(dialogue(*ENTERED, STAT, UIDL, QUIT)) as server:
        probe = probe_of(server.settings("pop3"), clock, mailbox="canary")
        verdict = await probe.run(run_of(clock))
        await server.peer_closed()
    assert probe.target == "pop"
    assert verdict.reason is Reason.NONE
    assert verdict.values == {
        "greeting": "ready",
        "capabilities": ["SASL PLAIN", "TOP", "UIDL"],
        "messages": 2,
        "octets": 320,
        "unreadable_ids": 1,
    }
    assert verdict.certificate_not_after is None
    assert [line.split()[0] for line in server.received] == [b"CAPA", b"AUTH", b"STAT", b"UIDL", b"QUIT"]


async def test_a_server_alone() -> None:
    """Without credentials, the probe reads the greeting and the capabilities, and quits."""
    clock = InstantClock()
    async with scripted_server(dialogue(b"+OK \x1b[2J hi", capa("TOP"), QUIT)) as server:
        verdict = await probe_of(server.settings("pop3"), clock, server="pop").run(run_of(clock))
        await server.peer_closed()
    assert verdict.values == {"greeting": "\\x1b[2J hi", "capabilities": ["TOP"]}


async def test_a_server_with_its_own_credentials() -> None:
    """The server's own credentials are used if configured."""
    clock = InstantClock()
    async with scripted_server(dialogue(*ENTERED, STAT, UIDL, QUIT)) as server:
        configured = server.settings("pop3", username="someone")
        verdict = await probe_of(configured, clock, server="pop").run(run_of(clock))
    assert verdict.values["messages"] == 2


@pytest.mark.parametrize("farewell", [QUIT, (b"QUIT", b"-ERR no")])
async def test_neither_uidl_nor_the_farewell_decides(farewell: tuple[bytes, bytes]) -> None:
    """A missing UIDL, which is optional, or a failed QUIT leaves the run ok."""
    clock = InstantClock()
    script = dialogue(*ENTERED, (b"STAT", b"+OK 20437 -1891"), farewell)
    large = dialogue(*ENTERED, STAT, (b"UIDL", b"-ERR unknown command"), farewell)
    for each, values in ((script, (20437, None, "absent")), (large, (2, 320, None))):
        async with scripted_server(each) as server:
            verdict = await probe_of(server.settings("pop3"), clock, mailbox="canary").run(run_of(clock))
        assert verdict.reason is Reason.NONE
        found = verdict.values
        assert (found["messages"], found["octets"], found.get("unreadable_ids", "absent")) == values


async def test_a_refused_login_closes_the_connection() -> None:
    """A session's fault ends the run and closes the connection."""
    clock = InstantClock()
    script = dialogue(*ENTERED[:2], (b"AUTH .*", b"-ERR [AUTH] no"))
    async with scripted_server(script) as server:
        with pytest.raises(ProbeFault) as caught:
            await probe_of(server.settings("pop3"), clock, mailbox="canary").run(run_of(clock))
        await server.peer_closed()
    assert caught.value.reason is Reason.AUTH_FAILED
    assert caught.value.reason.area in Pop3.areas


@pytest.mark.parametrize(
    ("days_before_expiry", "reason"), [(15, Reason.NONE), (13, Reason.CERTIFICATE_EXPIRING)]
)
async def test_the_certificates_last_day(
    days_before_expiry: int, reason: Reason, server_tls: TlsFiles
) -> None:
    """The verdict has the certificate's expiry, and warns the configured time before."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_tls.certificate, server_tls.key)
    decoded: Mapping[str, str] = ssl._ssl._test_decode_cert(str(server_tls.certificate))  # type: ignore[attr-defined]
    expires = float(ssl.cert_time_to_seconds(decoded["notAfter"]))
    clock = InstantClock(wall=expires - days_before_expiry * 86400)

    async def encrypted(peer: Peer) -> None:
        await peer.start_tls(context)
        await dialogue(b"+OK", capa("USER"), QUIT)(peer)

    async with scripted_server(encrypted, server_tls.authority) as server:
        configured = server.settings("pop3", tls="implicit")
        verdict = await probe_of(configured, clock, server="pop").run(run_of(clock))
    assert verdict.reason is reason
    assert verdict.certificate_not_after == expires


@pytest.mark.parametrize("settings", [{}, {"server": "pop", "mailbox": "canary"}])
def test_either_a_mailbox_or_a_server(settings: Mapping[str, str]) -> None:
    """A probe with neither or both is refused."""
    with pytest.raises(ValidationError, match="name either a mailbox or a server, and not both"):
        Pop3Settings.model_validate({"name": "pop3", "kind": "pop3", **settings})
