"""A greylisting policy server (RFC 6647) with Postfix's access policy delegation protocol."""

from __future__ import annotations

import socketserver
import threading
import time

from tests.real_servers.process import free_port


class Greylist:
    """Refuses each client, sender and recipient temporarily until ``seconds`` after the first try.

    ``seconds`` may be changed at any time; ``tries`` has the time of each first try, by `time.monotonic`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.tries: dict[tuple[str, ...], float] = {}
        self.port = free_port()
        self._server = _Server(("127.0.0.1", self.port), _Session)
        self._server.greylist = self
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def action(self, request: dict[str, str]) -> str:
        """Return Postfix's action for a request; a refusal is 450 4.2.0."""
        key = tuple(request.get(name, "") for name in ("client_address", "sender", "recipient"))
        first = self.tries.setdefault(key, time.monotonic())
        return "450 4.2.0 Greylisted" if time.monotonic() - first < self.seconds else "DUNNO"

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Greylist:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True  # Postfix keeps connections open, which must not delay the end of a test
    greylist: Greylist


class _Session(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        request: dict[str, str] = {}
        while line := self.rfile.readline():
            name, _, value = line.decode().rstrip("\n").partition("=")
            if name:
                request[name] = value
            else:
                self.wfile.write(f"action={self.server.greylist.action(request)}\n\n".encode())
                request = {}
