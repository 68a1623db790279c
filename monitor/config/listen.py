"""The address that the agent listens on, as the configuration and the command line write it."""

from __future__ import annotations

LISTEN = "127.0.0.1:9725"
"""Where the agent listens unless it is configured otherwise."""


def parse_listen(value: object) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 means any. Raises ValueError."""
    if isinstance(value, str):
        host, _, port = value.rpartition(":")
        if host and port.isascii() and port.isdecimal() and len(port) < 6 and int(port) <= 65535:
            return host.removeprefix("[").removesuffix("]"), int(port)
    raise ValueError("must be HOST:PORT, such as 127.0.0.1:9725 or [::1]:9725")
