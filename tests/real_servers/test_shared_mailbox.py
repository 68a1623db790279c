"""Five hundred routes to one mailbox with five thousand foreign messages, through real servers."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from monitor.config.load import load
from monitor.runner import Result
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import wait_until

pytestmark = pytest.mark.tried("roundtrip", "Postfix", "Dovecot")

ROUTES = 500
FOREIGN = 5000
CLIENTS = 20


def configuration(directory: Path, dovecot: Dovecot, postfix: Postfix, tls: TlsFiles, protocol: str) -> Path:
    (directory / "password").write_text(Dovecot.password)
    account = {"username": Dovecot.username, "password": {"file": "password"}}
    endpoint = {"host": "127.0.0.1", "tls_ca": str(tls.authority)}
    port = dovecot.pop3s_port if protocol == "pop3" else dovecot.imaps_port
    probe = {"kind": "roundtrip", "interval": "60s", "deadline": "2m", "from": Dovecot.address}
    document = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "servers": {
            "out": {"protocol": "smtp", "port": postfix.smtp_port, "tls": "starttls", **endpoint},
            "in": {"protocol": protocol, "port": port, "tls": "implicit", **endpoint},
        },
        "mailboxes": {"canary": {"address": Dovecot.address, "server": "in", **account}},
        "probes": [
            {**probe, "name": f"route-{number}", "send_via": "out", "to": "canary"}
            for number in range(ROUTES)
        ],
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _are_queued(postfix: Postfix, running: list[asyncio.Task[Result]]) -> bool:
    assert [task.result().verdict for task in running if task.done()] == []
    return len(postfix.queue_ids()) >= len(running)


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_every_message_is_matched_and_no_foreign_one_touched(
    start_dovecot: Callable[..., Dovecot],
    start_postfix: Callable[[Dovecot], Postfix],
    server_tls: TlsFiles,
    tmp_path: Path,
    protocol: str,
) -> None:
    """All messages are found with one session at a time, and foreign messages are still there."""
    dovecot = start_dovecot(extra="mail_max_userip_connections = 1\n")
    postfix = start_postfix(dovecot)
    foreign = [b"Subject: %d\r\n\r\nnot ours, number %d\r\n" % (n, n) for n in range(FOREIGN)]
    dovecot.deliver_many(FOREIGN, lambda number: foreign[number])
    path = configuration(tmp_path, dovecot, postfix, server_tls, protocol)
    async with open_runtime(load(path), SystemClock(), "check") as runtime:
        postfix.hold()
        running: list[asyncio.Task[Result]] = []
        for probe in runtime.assembly.probes.values():
            running.append(asyncio.create_task(runtime.runner.run(probe)))
            if len(running) % CLIENTS == 0:  # more at once would have to wait for their turn
                queued = partial(_are_queued, postfix, running)
                await asyncio.to_thread(wait_until, queued, "Postfix has the messages", log=postfix.log)
        await asyncio.to_thread(postfix.release)
        results = await asyncio.gather(*running)
        assert await runtime.ledger.discrepancies() == []
    assert Counter(result.verdict.reason for result in results) == {Reason.NONE: ROUTES}
    left = Counter(raw.replace(b"\n", b"\r\n") for raw in dovecot.messages())
    assert left == Counter(foreign)
    # The server would have refused and logged a second concurrent session.
    log = (dovecot.directory / "dovecot.log").read_text()
    assert not re.findall("Maximum number of connections", log)
