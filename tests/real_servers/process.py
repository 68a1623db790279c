"""Starting a server for a test, waiting until it listens, and stopping it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

PATIENCE = 120.0
"""Seconds until what surely comes counts as hanging, on the busiest machine."""

_POLL_SECONDS = 0.02  # an external daemon has no event to await

HTTP = httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""For servers that may start again at the same port. `httpx.get` makes a TLS context for each request."""


def require(program: str, package: str) -> str:
    """Return the path of a program; if it is missing, the test fails."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.fail(
            f"{program} is missing: install Debian's package {package}, or run `make test-servers` as root"
        )
    return path


_handed_out: set[int] = set()
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_port() -> int:
    """Return a loopback port that is free for TCP and UDP and was not returned before.

    Test processes that run concurrently share the ports: by pairs, because Linux assigns only odd ports here.
    """
    while True:
        with socket.socket() as trial, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            trial.bind(("127.0.0.1", 0))
            port = int(trial.getsockname()[1])
            with suppress(OSError):
                datagram.bind(("127.0.0.1", port))
                if port // 2 % _WORKERS == _WORKER and port not in _handed_out:
                    _handed_out.add(port)
                    return port


def wait_until(condition, what: str, seconds: float = PATIENCE, log: Path | None = None) -> None:
    """Return once ``condition()`` is true; after ``seconds``, fail with the end of the server's log."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            tail = log.read_text(errors="replace")[-3000:] if log is not None and log.exists() else ""
            raise AssertionError(f"not within {seconds:g} s: {what}\n{tail}")
        time.sleep(_POLL_SECONDS)


def listens(port: int) -> bool:
    """Whether a connection to the loopback port is accepted."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


class Daemon:
    """A server in the foreground, as a child of the test, with its output in a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, *, ports: Sequence[int]) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            for port in ports:
                wait_until(
                    lambda port=port: self._alive() and listens(port), f"{command[0]} on port {port}", log=log
                )
        except BaseException:
            self.stop()
            raise

    def _alive(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(
                f"{self.process.args} ended:\n{self.log.read_text(errors='replace')[-3000:]}"
            )
        return True

    def stop(self) -> None:
        """End the server and wait until it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
