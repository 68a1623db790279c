"""Notifies systemd of the agent's state (sd_notify(3)): one datagram to the socket that systemd names."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress

SEND_SECONDS = 1.0
"""How long a notification may take: the event loop waits for it if systemd is behind with reading."""

STATUS_EVERY = 30.0
"""Seconds between two reports of the status, if there is no watchdog that wants them more often."""

FEEDS = 3
"""How often the watchdog is fed in the time after which it bites: a busy event loop is late now and then."""


def notify(state: str) -> None:
    """Send ``state``, such as ``READY=1``, to the socket in NOTIFY_SOCKET; do nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.settimeout(SEND_SECONDS)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """Return after how many seconds without a sign of life systemd kills this process, if it does.

    WATCHDOG_USEC and WATCHDOG_PID are as in sd_watchdog_enabled(3).
    """
    micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not (micros.isascii() and micros.isdecimal()) or int(micros) == 0 or pid != str(os.getpid()):
        return None
    return int(micros) / 1e6


async def report(status: Callable[[], str]) -> None:
    """Report ``status`` to systemd until cancelled, and feed its watchdog.

    The event loop itself feeds it. If the loop hangs, systemd kills the process and starts it again.
    """
    seconds = watchdog_seconds()
    fed = "" if seconds is None else "WATCHDOG=1\n"
    pause = STATUS_EVERY if seconds is None else min(STATUS_EVERY, seconds / FEEDS)
    while True:
        notify(f"{fed}STATUS={status()}")
        await asyncio.sleep(pause)
