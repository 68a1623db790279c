"""Round trips through a real Postfix into a real Dovecot, watched by IMAP."""

from __future__ import annotations

import asyncio
import imaplib
import re
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from monitor.config.load import load
from monitor.runner import Result
from monitor.runtime import Runtime, open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageContext, MessageProbe
from probes.messages.synthetic_message import compose
from probes.messages.token import Token
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import wait_until

pytestmark = pytest.mark.tried("roundtrip", "Postfix", "Dovecot")

JUNK = """
namespace inbox {
  inbox = yes
  mailbox Junk {
    special_use = \\Junk
    auto = subscribe
  }
}
"""


def configuration(directory: Path, dovecot: Dovecot, postfix: Postfix, tls: TlsFiles, **trip: object) -> Path:
    (directory / "password").write_text(Dovecot.password)
    account = {"username": Dovecot.username, "password": {"file": "password"}}
    endpoint = {"host": "127.0.0.1", "tls_ca": str(tls.authority)}
    submission = {
        "protocol": "smtp",
        "port": postfix.submission_port,
        "tls": "starttls",
        **endpoint,
        **account,
    }
    imap = {"protocol": "imap", "port": dovecot.imaps_port, "tls": "implicit", **endpoint}
    probe = {"name": "trip", "kind": "roundtrip", "interval": "60s", "deadline": "20s", **trip}
    document = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "servers": {"out": submission, "imap": imap},
        "mailboxes": {"canary": {"address": Dovecot.address, "server": "imap", **account}},
        "probes": [{**probe, "from": Dovecot.address, "send_via": "out", "to": "canary"}],
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[Runtime, Callable[[], object]]]:
    """Yield the runtime, and a function that runs its only probe and returns the result."""
    async with open_runtime(load(path), SystemClock(), "check") as runtime:
        (probe,) = runtime.assembly.probes.values()

        async def run() -> Result:
            async with asyncio.timeout(60):
                return await runtime.runner.run(probe)

        yield runtime, run
        assert await runtime.ledger.discrepancies() == []


def copy_of(message: Message, context: MessageContext) -> bytes:
    """Return a copy of what the probe sent."""
    token = context.signer.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
    return compose(
        probe=message.probe,
        location=context.site.location,
        sender=Dovecot.address,
        recipient=Dovecot.address,
        run=message.id,
        token=token,
        created_at=message.created_at,
    ).content


def append(dovecot: Dovecot, tls: TlsFiles, folder: str, raw: bytes) -> None:
    """Put a message into a folder, as a filter does."""
    context = ssl.create_default_context(cafile=tls.authority)
    with imaplib.IMAP4_SSL("localhost", dovecot.imaps_port, ssl_context=context) as client:
        client.login(Dovecot.username, Dovecot.password)
        client.append(folder, "", imaplib.Time2Internaldate(time.time()), raw)


async def test_one_connection_carries_many_round_trips(
    start_dovecot: Callable[..., Dovecot],
    start_postfix: Callable[[Dovecot], Postfix],
    server_tls: TlsFiles,
    tmp_path: Path,
) -> None:
    """Messages are found, counted and deleted on one connection; foreign mail stays; errors are small."""
    dovecot = start_dovecot()
    postfix = start_postfix(dovecot)
    dovecot.deliver(b"Subject: hello\r\n\r\nnot ours\r\n")
    async with running(configuration(tmp_path, dovecot, postfix, server_tls)) as (_, run):
        results = [await run() for _ in range(5)]
    assert [result.verdict.reason for result in results] == [Reason.NONE] * 5
    assert len(dovecot.messages()) == 1
    log = (dovecot.directory / "dovecot.log").read_text()
    assert len(re.findall("imap-login: Info: Login", log)) == 1
    # New routes are polled at gaps of a fifth of the message's age, and known ones far more often.
    assert all(result.verdict.message.uncertainty_seconds < 0.1 for result in results)


async def test_message_in_the_junk_folder_is_found_and_told(
    start_dovecot: Callable[..., Dovecot],
    start_postfix: Callable[[Dovecot], Postfix],
    server_tls: TlsFiles,
    tmp_path: Path,
) -> None:
    """A message in the folder marked as junk counts as delivered, with that issue."""
    dovecot = start_dovecot(extra=JUNK)
    postfix = start_postfix(dovecot)
    postfix.hold()
    async with running(configuration(tmp_path, dovecot, postfix, server_tls)) as (runtime, run):
        running_trip = asyncio.create_task(run())
        await asyncio.to_thread(wait_until, lambda: bool(postfix.queue_ids()), "the message is in the queue")
        (message,) = await runtime.ledger.open_messages()
        trip = runtime.assembly.probes["trip"]
        assert isinstance(trip, MessageProbe)
        raw = copy_of(message, trip.context)
        await asyncio.to_thread(append, dovecot, server_tls, "Junk", raw)
        result = await running_trip
    assert result.verdict.reason is Reason.MESSAGE_JUNKED
    assert result.verdict.values["arrival_issues"] == ["junked"]
    assert result.verdict.message.state is MessageState.DELIVERED


@pytest.mark.parametrize("when", ["connection", "uid_validity"])
async def test_nothing_foreign_is_lost_when_the_mailbox_changes_under_us(
    start_dovecot: Callable[..., Dovecot],
    start_postfix: Callable[[Dovecot], Postfix],
    server_tls: TlsFiles,
    tmp_path: Path,
    when: str,
) -> None:
    """After a lost connection or a new UIDVALIDITY, our messages are matched, and foreign ones stay."""
    dovecot = start_dovecot()
    postfix = start_postfix(dovecot)
    for number in range(20):
        dovecot.deliver(b"Subject: %d\r\n\r\nnot ours\r\n" % number)
    async with running(configuration(tmp_path, dovecot, postfix, server_tls)) as (_, run):
        first = await run()
        await asyncio.to_thread(wait_until, lambda: len(dovecot.messages()) == 20, "ours is deleted")
        if when == "uid_validity":
            # Without its list of uids, the folder gets new uids and, in another second, a new UIDVALIDITY.
            second = int(time.time())
            await asyncio.to_thread(wait_until, lambda: time.time() >= second + 1, "the next second")
            for path in (dovecot.directory / "mail").rglob("dovecot*"):
                if path.is_file():
                    path.unlink()
        kick = ["doveadm", "-c", dovecot.directory / "dovecot.conf", "kick", Dovecot.username]
        await asyncio.to_thread(
            subprocess.run, kick, check=False, capture_output=True
        )  # 68: it is already gone
        second = await run()
    assert [first.verdict.reason, second.verdict.reason] == [Reason.NONE, Reason.NONE]
    assert len(dovecot.messages()) == 20


SENT = """
namespace inbox {
  inbox = yes
  mailbox "Sent Items" {
    %s
    auto = subscribe
  }
}
"""


@pytest.mark.parametrize("mark", ["special_use = \\Sent", ""], ids=["marked", "named"])
async def test_our_copies_in_the_sent_folder_are_removed(
    start_dovecot: Callable[..., Dovecot],
    start_postfix: Callable[[Dovecot], Postfix],
    server_tls: TlsFiles,
    tmp_path: Path,
    mark: str,
) -> None:
    """Copies that the mail system puts into the sent folder go with their messages, and no others do.

    One is there when the agent starts, as after a crash, and one comes while the message is on its way.
    """
    dovecot = start_dovecot(extra=SENT % mark)
    postfix = start_postfix(dovecot)
    path = configuration(tmp_path, dovecot, postfix, server_tls)
    site = yaml.safe_load(path.read_text())
    site["servers"]["out"]["saves_sent_copies"] = True
    if not mark:
        site["mailboxes"]["canary"]["sent_folder"] = "Sent Items"
    path.write_text(yaml.safe_dump(site))

    def keep(raw: bytes) -> None:
        append(dovecot, server_tls, '"Sent Items"', raw)

    async def copy_of_open(runtime: Runtime) -> bytes:
        (message,) = await runtime.ledger.open_messages()
        trip = runtime.assembly.probes["trip"]
        assert isinstance(trip, MessageProbe)
        return copy_of(message, trip.context)

    foreign = [b"Subject: %d\r\n\r\nnot ours\r\n" % number for number in range(3)]
    left = b""

    def others_are_left() -> bool:
        kept = dovecot.messages(folder="Sent Items")
        return all(b"not ours" in raw or b"X-Mailsonde-Token: AA" in raw for raw in kept)

    for number in (4, 8):
        postfix.hold()
        async with running(path) as (runtime, run):
            running_trip = asyncio.create_task(run())
            held = lambda: bool(postfix.queue_ids())  # noqa: E731 # a condition
            await asyncio.to_thread(wait_until, held, "the message is in the queue")
            ours = await copy_of_open(runtime)
            for raw in (*foreign, ours, left, ours.replace(b"X-Mailsonde-Token: ", b"X-Mailsonde-Token: AA")):
                if raw:
                    await asyncio.to_thread(keep, raw)
            postfix.release()
            assert (await running_trip).verdict.message.state is MessageState.DELIVERED
            await asyncio.to_thread(wait_until, others_are_left, "ours are deleted")
        left = ours
        assert len(dovecot.messages(folder="Sent Items")) == number
    assert dovecot.messages() == []
