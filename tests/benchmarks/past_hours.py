"""An agent's metrics as Prometheus would have scraped them for hours, told to it within minutes.

``python -m tests.benchmarks.past_hours ADDRESS SECONDS EVERY PORT`` reads the metrics of the agent at ADDRESS
once, and serves them with timestamps: SECONDS of the past, and from then on the present.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx

from tests.benchmarks.processes import serving

RUN_EVERY = 60.0
"""Seconds between two runs of a route: its counters and results change only then."""

AT_ONCE = 3
"""The most scrapes that one answer holds."""

_COUNTER = re.compile(r"\w+_(total|bucket|count|sum)\b")
_VARIES = re.compile(r"mailsonde_(probe_phase|hop_delay|delivery_last|delivery_uncertainty)_seconds\b")
_TIME_OF_RUN = re.compile(r"mailsonde_probe_last_run_timestamp_seconds\b")


class PastHours:
    """The exposition of an agent at later and later times. Each run of a route repeats its last one."""

    def __init__(self, text: str, begins: float, every: float) -> None:
        self._every = every
        self._begins = begins
        self._told = begins - every
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        series = [(f"{name} ", float(value)) for name, _, value in lines]
        self._rising = [each for each in series if _COUNTER.match(each[0])]
        self._varying = [each for each in series if _VARIES.match(each[0])]
        self._timestamps = [name for name, _ in series if _TIME_OF_RUN.match(name)]
        known = {name for name, _ in (*self._rising, *self._varying)} | set(self._timestamps)
        self._constant = [f"{name}{value!r}" for name, value in series if name not in known]

    def text(self, now: float) -> str:
        """Return what has not been told up to ``now``, at most `AT_ONCE` scrapes of it."""
        parts: list[str] = []
        while self._told + self._every <= now and len(parts) < AT_ONCE:
            self._told += self._every
            parts.append("".join(self._at(self._told)))
        return "".join(parts)

    def _at(self, at: float) -> Iterator[str]:
        stamp = f" {round(at * 1000)}\n"
        age = at - self._begins
        quarters = int(RUN_EVERY / self._every)  # routes run in turn
        runs = [1 + int((age + i * self._every) / RUN_EVERY) for i in range(quarters)]
        for i, (name, value) in enumerate(self._rising):
            yield f"{name}{value * runs[i % quarters]!r}{stamp}"
        for i, (name, value) in enumerate(self._varying):
            run = runs[i % quarters]
            yield f"{name}{value * (1 + (i * 31 + run * 17) % 97 / 97)!r}{stamp}"
        for i, name in enumerate(self._timestamps):
            ran = self._begins + RUN_EVERY * (runs[i % quarters] - 1) - (i % quarters) * self._every
            yield f"{name}{ran!r}{stamp}"
        for constant in self._constant:
            yield f"{constant}{stamp}"


def past_hours(address: str, seconds: float, every: float) -> AbstractContextManager[tuple[str, int]]:
    """Serve the metrics of the agent at ``address`` in a process; yield its address and process id."""
    return serving("tests.benchmarks.past_hours", address, f"{seconds:g}", f"{every:g}")


def _serve(address: str, seconds: float, every: float, port: int) -> None:
    text = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=60.0).text
    past = PastHours(text, time.time() - seconds, every)

    prepared: queue.Queue[bytes] = queue.Queue(1)

    def prepare() -> None:
        while True:
            prepared.put(past.text(time.time()).encode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            if self.path == "/metrics" and prepared.full():  # an answer that comes late would be lost
                with suppress(ConnectionError):
                    self.wfile.write(prepared.queue[0])
                    prepared.get()

        def log_message(self, format: str, *args: object) -> None:  # its name there
            """Say nothing: Prometheus asks a hundred times."""

    threading.Thread(target=prepare, daemon=True).start()
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
