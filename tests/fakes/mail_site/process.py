"""SMTP, IMAP and POP3 servers of one fake site, in a process of their own.

They are quick enough to serve hundreds of round trips per second on one processor. Addresses decide what a
mailbox does: ``dead…`` never answers a login, ``refused…`` refuses it, ``lost…`` gets no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from probes.core.descriptors import raise_limit
from tests.fakes.mail_site.connection import Connection, Dialogue, Pace
from tests.fakes.mail_site.imap import Imap
from tests.fakes.mail_site.pop3 import Pop3
from tests.fakes.mail_site.smtp import Smtp
from tests.fakes.mail_site.store import Seen, Site
from tests.real_servers.dovecot import TlsFiles

_DIALOGUES: dict[str, Callable[..., Dialogue]] = {"smtp": Smtp, "imap": Imap, "pop3": Pop3}
_BACKLOG = 4096


async def _serve(pace: Pace, tls: TlsFiles | None, pipe: Pipe) -> None:
    site, loop = Site(), asyncio.get_running_loop()
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)

    def connection(protocol: str) -> Connection:
        return Connection(site, pace, _DIALOGUES[protocol], context, starts_tls=protocol == "smtp")

    async def delivered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            address, octets = line.split()
            site.deliver(address.decode(), await reader.readexactly(int(octets)))
        writer.close()

    ports = {}
    for protocol in _DIALOGUES:
        server = await loop.create_server(partial(connection, protocol), "127.0.0.1", 0, backlog=_BACKLOG)
        ports[protocol] = server.sockets[0].getsockname()[1]
    deliveries = await asyncio.start_server(delivered, "127.0.0.1", 0)
    ports["delivery"] = deliveries.sockets[0].getsockname()[1]
    pipe.send(ports)
    ended = asyncio.Event()

    def asked() -> None:
        try:
            question = pipe.recv()
        except EOFError:  # the test was killed
            question = "end"
        match question:
            case "seen":
                pipe.send(site.report())
            case "fill", address, count:
                pipe.send(site.fill(address, count))
            case "set", changes:
                site.delay = changes.pop("delay", site.delay)
                for name, value in changes.items():
                    setattr(pace, name, value)
                pipe.send(None)
            case _:
                ended.set()

    loop.add_reader(pipe.fileno(), asked)
    os.set_blocking(pipe.fileno(), True)  # uvloop changes this; a log of many messages exceeds the pipe
    await ended.wait()


def _run(pace: Pace, tls: TlsFiles | None, processor: int | None, pipe: Pipe) -> None:
    raise_limit()
    if processor is not None:
        os.sched_setaffinity(0, {processor})
    with contextlib.suppress(ImportError, KeyboardInterrupt):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(pace, tls, pipe))
        return
    asyncio.run(_serve(pace, tls, pipe))


class MailSite:
    """The running servers: ``ports`` by protocol, and one for deliveries without SMTP."""

    def __init__(self, pipe: Any, pid: int) -> None:
        self._pipe = pipe
        self.pid = pid
        self.ports: dict[str, int] = pipe.recv()

    def seen(self) -> Seen:
        """Return what the servers have seen until now."""
        seen: Seen = self._asked("seen")
        return seen

    def fill(self, address: str, count: int) -> None:
        """Put ``count`` messages of other people into a mailbox."""
        self._asked(("fill", address, count))

    def set(self, **changes: float) -> None:
        """Change ``delay`` (see `Site`), ``round_trip`` or ``command`` (see `Pace`), in seconds."""
        self._asked(("set", changes))

    def _asked(self, question: object) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()

    def end(self) -> None:
        """Tell the servers to end."""
        self._pipe.send("end")


@contextmanager
def mail_site(
    pace: Pace | None = None, tls: TlsFiles | None = None, processor: int | None = None
) -> Iterator[MailSite]:
    """Run the servers during the block, with TLS if there are ``tls`` files, perhaps on one processor."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(pace or Pace(), tls, processor, theirs), daemon=True)
    process.start()
    assert process.pid is not None
    site = MailSite(ours, process.pid)
    try:
        yield site
    finally:
        with contextlib.suppress(OSError):
            site.end()
        process.join(2.0)
        process.kill()


def servers_of(site: MailSite, authority: Path | None, **of_mailboxes: object) -> dict[str, dict[str, Any]]:
    """Return the ``servers`` of a configuration for this site: ``smtp``, ``imap`` and ``pop3``."""
    secure: dict[str, Any] = {"tls": "none"}
    if authority is not None:
        secure = {"tls": "implicit", "tls_server_name": "localhost", "tls_ca": str(authority)}
    servers = {
        protocol: {"protocol": protocol, "host": "127.0.0.1", "port": site.ports[protocol], **secure}
        for protocol in _DIALOGUES
    }
    if authority is not None:
        servers["smtp"]["tls"] = "starttls"
    for protocol in ("imap", "pop3"):
        servers[protocol] |= of_mailboxes
    return servers
