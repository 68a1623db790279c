"""Sessions of our POP3 client with a scripted server."""

from __future__ import annotations

from probes.protocols.pop3_session import Pop3Session
from tests.fakes.logins import Logins

_LOGINS = Logins(Pop3Session, "pop3")
enter, entered, fault_of_entering = _LOGINS.enter, _LOGINS.entered, _LOGINS.fault_of_entering

STAMP = "<1896.697170952@mail.test>"


def capa(*capabilities: str) -> tuple[bytes, bytes]:
    """Return the step of a dialogue that answers CAPA."""
    return b"CAPA", "\r\n".join(["+OK", *capabilities, "."]).encode()


ENTERED = (b"+OK ready", capa("SASL PLAIN", "TOP", "UIDL"), (b"AUTH PLAIN .*", b"+OK"))
"""A dialogue up to the login."""
