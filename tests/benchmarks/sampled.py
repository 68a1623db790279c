"""Runs mailsonde as a process that samples what its processor time goes to.

``python -m tests.benchmarks.sampled FILE ARGUMENT…`` takes mailsonde's arguments. SIGUSR1 begins to sample.
The next one ends it, and writes seconds by part to FILE, as JSON.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from monitor.commands import main

EVERY = 0.002
"""Seconds of processor time between two samples."""

_PARTS = [
    (re.compile(pattern), part)
    for part, pattern in (
        ("TLS handshakes", r"/tls_connection\.py:(handshake|__init__)$|/tls\.py:(do_handsh|keep_sess)"),
        ("TLS records", r"/tls_connection\.py:(decrypt|encrypt)$"),
        ("certificates", r"/tls\.py:"),
        ("transcript and redaction", r"core/(transcript|redaction|faults)\.py:"),
        ("SMTP dialogue", r"protocols/smtp\w*\.py:|delivery/submission\.py:"),
        ("IMAP dialogue", r"protocols/imap\w*\.py:|delivery/mailboxes/imap\w*\.py:"),
        ("POP3 dialogue", r"protocols/pop3\w*\.py:|delivery/mailboxes/pop3\w*\.py:"),
        ("message: made, signed, read", r"probes/messages/"),
        ("planning of polls", r"delivery/(awaited|polling)\.py:"),
        ("watching the mailbox", r"delivery/\w+\.py:|delivery/mailboxes/"),
        ("ledger, on the event loop", r"monitor/ledger/"),
        (
            "metrics and pages",
            r"monitor/(state|collector|route_metrics|exposition|labels|otlp)\.py:|monitor/web/",
        ),
        ("scheduler", r"apscheduler/|monitor/(schedule|load)\.py:"),
        ("runs and their results", r"monitor/\w+\.py:|probes/\w+\.py:|probes/core/"),
        ("sockets", r"protocols/(receiver|line_transport)\.py:"),
    )
]
"""A pattern for the file and name of a function, and its part; the first that matches. A sample is taken when
the next function begins, which may be a helper: the innermost function that has a part counts."""

EVENT_LOOP = "event loop"


class Sampler:
    """Adds the processor time since the previous sample to the part that the event loop's thread is in.

    Other threads are parts of their own.
    """

    def __init__(self, result: Path) -> None:
        self._result = result
        self._seconds: Counter[str] = Counter()
        self._used: dict[threading.Thread, float] = {}
        self._is_running = False

    def switch(self, _number: int, _frame: FrameType | None) -> None:
        """Begin or end."""
        self._is_running = not self._is_running
        signal.setitimer(signal.ITIMER_PROF, *(EVERY, EVERY) if self._is_running else (0.0,))
        if self._is_running:
            self._used = _used_by_threads()
        else:
            self._result.with_suffix(".new").write_text(json.dumps(self._seconds))
            self._result.with_suffix(".new").replace(self._result)

    def sample(self, _number: int, frame: FrameType | None) -> None:
        """Take a sample."""
        for thread, seconds in _used_by_threads().items():
            part = part_of(frame) if thread is threading.main_thread() else f"thread {thread.name}"
            self._seconds[part] += seconds - self._used.get(thread, 0.0)
            self._used[thread] = seconds


def _used_by_threads() -> dict[threading.Thread, float]:
    """Return the processor seconds of each thread so far."""
    idents = ((thread, thread.ident) for thread in threading.enumerate())
    clocks = ((thread, time.pthread_getcpuclockid(ident)) for thread, ident in idents if ident is not None)
    return {thread: time.clock_gettime(clock) for thread, clock in clocks}


def part_of(frame: FrameType | None) -> str:
    """Return the part that the innermost frame belongs to, of those that belong to any."""
    while frame is not None:
        code = frame.f_code
        place = f"{code.co_filename}:{code.co_name}"
        for pattern, part in _PARTS:
            if pattern.search(place):
                return part
        frame = frame.f_back
    return EVENT_LOOP


if __name__ == "__main__":
    sampler = Sampler(Path(sys.argv.pop(1)))
    signal.signal(signal.SIGUSR1, sampler.switch)
    signal.signal(signal.SIGPROF, sampler.sample)
    sys.exit(main())
