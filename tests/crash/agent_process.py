"""`mailsonde run` on a ledger of its own, in front of a recording server, to be killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from tests.crash.mail_server import DEADLINE

PATIENCE = 30.0
"""Seconds for what surely comes, on a busy machine."""

ROUTES = 10
"""Round-trip probes per mailbox, each with one message an interval."""


class Forker:
    """Starts agents, see `tests.crash.forker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Forker]:
        """Run a forker during the block."""
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "tests.crash.forker"]
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            yield cls(process)
        finally:
            process.stdin.close()
            await process.wait()

    async def ask(self, *words: object) -> int:
        """Return the answer to one request."""
        async with self._turn:
            self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
            return int(await self._process.stdout.readline())


class AgentProcess:
    """One agent at a time on the ledger in ``directory``."""

    def __init__(self, directory: Path, forker: Forker) -> None:
        self.ledger = directory / "ledger.db"
        self.log = directory / "agent.log"
        self.pid = 0
        self._forker = forker
        self._config = directory / "mailsonde.yaml"
        self._socket = directory / "notify"
        self._wal = directory / "ledger.db-wal"
        (directory / "password").write_text("secret")

    def configure(self, ports: Mapping[str, int], interval: str = "1s") -> None:
        """Let it send by SMTP and Graph at this interval, and watch by POP3 and IMAP, at these ports."""
        self._config.write_text(json.dumps(_configuration(self.ledger, ports, interval)))

    async def start(self) -> None:
        """Start it; it is not ready yet."""
        self._socket.unlink(missing_ok=True)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.setblocking(False)
        self._notified.bind(str(self._socket))
        self.pid = await self._forker.ask("start", self._config, self.log, self._socket)
        self._process = os.pidfd_open(self.pid)

    async def ready(self) -> None:
        """Return once it runs probes."""
        loop, said = asyncio.get_running_loop(), b""
        async with asyncio.timeout(PATIENCE):
            while not said.startswith(b"READY=1"):  # it tells its status first
                said = await loop.sock_recv(self._notified, 1000)

    async def commits(self) -> None:
        """Return when it writes to its ledger next."""
        before = self._wal.stat().st_mtime_ns
        while self._wal.stat().st_mtime_ns == before:  # noqa: ASYNC110 # no event tells of it
            await asyncio.sleep(0.0002)  # about as long as writing one commit takes

    def send(self, number: signal.Signals) -> None:
        """Send a signal; after SIGKILL, return when it is dead."""
        os.kill(self.pid, number)  # nobody else has its number before `ended` has asked for its status
        if number is signal.SIGKILL:
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            poll.poll(PATIENCE * 1000)

    async def ended(self) -> int:
        """Return its exit status, or the signal that killed it as a negative number."""
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process, gone.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await gone.wait()
        finally:
            loop.remove_reader(self._process)
        with closing(self._notified):
            os.close(self._process)
            return await self._forker.ask("wait", self.pid)


def _configuration(ledger: Path, ports: Mapping[str, int], interval: str) -> dict[str, Any]:
    server = {"host": "127.0.0.1", "tls": "none", "allow_insecure_auth": True}
    servers = {
        "smtp": {},
        "graph": {"oauth2": "app", "messages_per_minute": 6000},
        "pop3": {"logins_per_minute": 6000},
        "imap": {"logins_per_minute": 6000},
    }
    token = {"provider": "generic", "token_url": f"http://127.0.0.1:{ports['graph']}/token"}
    mailbox = {"username": "canary", "password": {"file": "password"}}
    route = {"kind": "roundtrip", "interval": interval, "deadline": f"{DEADLINE:g}s"}
    return {
        "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite:{ledger}"},
        "oauth2": {"app": {**token, "client_id": "app", "client_secret": {"file": "password"}}},
        "servers": {
            name: {"protocol": name, "port": ports[name], **server, **more} for name, more in servers.items()
        },
        "mailboxes": {
            name: {"address": f"{name}@example.test", "server": name, **mailbox} for name in ("pop3", "imap")
        },
        "probes": [
            {
                "name": f"{to}-{number}",
                "from": f"{to}@example.test",
                "to": to,
                "send_via": "graph" if number % 3 == 0 else "smtp",
                **route,
                **retry,
            }
            for to in ("pop3", "imap")
            for number in range(ROUTES)
            for retry in ([{"retry": "1s"}] if number % 2 else [{}])
        ],
    }
