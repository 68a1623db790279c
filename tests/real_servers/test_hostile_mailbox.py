"""A mailbox full of an attacker's messages: they cost little, change nothing, and hide nothing."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from monitor.config.load import load
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Unexpected
from probes.messages.token import HEADER, Token, TokenSigner
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.relay import Delivery, Mail, Relay

FORGED = 1000
MEGABYTE = 1_000_000
MEMORY = 30 * MEGABYTE
"""What looking at it all may add to the process, in octets."""


def forged(number: int) -> bytes:
    """Return a message with our token field, signed by another key."""
    token = TokenSigner(b"another key").sign(Token("trip", f"{number:032x}", 1_700_000_000_000_000))
    return f"Subject: {token}\r\n{HEADER}: {token}\r\n\r\n{token}\r\n".encode()


def hostile() -> list[bytes]:
    """Return messages that are too large, too deep, or not text."""
    report = b"Content-Type: multipart/report; report-type=delivery-status; boundary=b0\r\n\r\n"
    nested = b"".join(
        b"--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n" % (n, n + 1) for n in range(5000)
    )
    return [
        b"Subject: huge\r\n\r\n" + b"x" * 75 * (50 * MEGABYTE // 75),
        b"Subject: endless header\r\n" + b"X-Filler: y\r\n" * 100_000 + b"\r\nbody\r\n",
        b"Subject: one long line\r\nX-Long: " + b"z" * MEGABYTE + b"\r\n\r\nbody\r\n",
        report + nested,
        report + b"--b0\r\nContent-Type: message/delivery-status\r\n\r\n" + b"A: b\r\n\r\n" * 100_000,
        b"Subject: NUL \0\0\0\r\n%s: \0\0mailsonde1:\0\r\n\r\n\0\0\0\r\n" % HEADER.encode(),
        b"Subject: short lines\r\n\r\n" + b"\r\n" * 20_000,
        b"Content-Type: " + b"(" * 30_000 + b"\r\n\r\n",
        b"Subject: " + b"=?utf-8?q?" * 3000 + b"\r\n\r\n",
    ]


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_it_is_passed_over(
    start_dovecot: Callable[..., Dovecot],
    start_relay: Callable[..., Relay],
    start_postfix: Callable[..., Postfix],
    server_tls: TlsFiles,
    tmp_path: Path,
    protocol: str,
) -> None:
    """Round trips continue among hostile messages, in bounded memory, and leave those in place."""
    dovecot = start_dovecot()
    relay = start_relay(dovecot)
    postfix = start_postfix(dovecot, relay=relay)
    messages = [*hostile(), *map(forged, range(FORGED))]
    dovecot.deliver_many(len(messages), lambda number: messages[number])
    path = configuration(tmp_path, dovecot, postfix, server_tls, protocol)
    async with open_runtime(load(path), SystemClock(), "check") as runtime:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with asyncio.timeout(100):
            first = await runtime.runner.run(runtime.assembly.probes["trip"])
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            relay.treatment = bloated
            second = await runtime.runner.run(runtime.assembly.probes["trip"])
            while runtime.state.unexpected["canary", Unexpected.FORGED] <= FORGED:  # a quick run sees a part
                await runtime.runner.run(runtime.assembly.probes["trip"])
        assert runtime.state.unexpected["canary", Unexpected.FORGED] == FORGED + 1
        assert await runtime.ledger.discrepancies() == []
    assert first.verdict.reason is Reason.NONE
    # A copy that grew to 50 MB on the way is not read completely, and counts as altered.
    assert second.verdict.reason is Reason.MESSAGE_ALTERED
    assert second.verdict.message.state is MessageState.DELIVERED
    assert len(dovecot.messages()) == len(messages)
    assert grown < MEMORY, f"{grown / MEGABYTE:.1f} MB"


def bloated(mail: Mail) -> list[Delivery]:
    """Add 50 MB to the message."""
    return [Delivery(mail.raw + b"more of it\r\n" * (50 * MEGABYTE // 12))]


def configuration(directory: Path, dovecot: Dovecot, postfix: Postfix, tls: TlsFiles, protocol: str) -> Path:
    (directory / "password").write_text(Dovecot.password)
    account = {"username": Dovecot.username, "password": {"file": "password"}}
    endpoint = {"host": "127.0.0.1", "tls_ca": str(tls.authority)}
    port = dovecot.pop3s_port if protocol == "pop3" else dovecot.imaps_port
    probe = {"name": "trip", "kind": "roundtrip", "interval": "60s", "deadline": "50s"}
    document = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "servers": {
            "out": {"protocol": "smtp", "port": postfix.smtp_port, "tls": "starttls", **endpoint},
            "in": {"protocol": protocol, "port": port, "tls": "implicit", **endpoint},
        },
        "mailboxes": {"canary": {"address": Dovecot.address, "server": "in", **account}},
        "probes": [{**probe, "from": Dovecot.address, "send_via": "out", "to": "canary"}],
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
