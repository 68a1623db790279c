"""The signed token that proves that a message is ours (HMAC-SHA-256, RFC 2104, truncated to 128 bits).

Its form is ``mailsonde1:PROBE:RUN:MICROSECONDS:MAC``. It has no white space, so header folding cannot split
it, and the MAC covers all other parts.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

HEADER = "X-Mailsonde-Token"
"""The header field that carries the token."""

_ENVELOPE_ID = re.compile(r"mailsonde-envelope1:([0-9a-f]{32}):([0-9a-f]{32})")
_PATTERN = re.compile(
    r"mailsonde1:([A-Za-z0-9][A-Za-z0-9._-]{0,62}):([0-9a-f]{32}):([0-9]{16}):([0-9a-f]{32})"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token: the probe, its run, and when the message was made (unix microseconds)."""

    probe: str
    run: str
    created_us: int


def token_in(text: str) -> str | None:
    """Return the first string in ``text`` with the form of a token; `verify` decides whether it is one."""
    match = _PATTERN.search(text)
    return match[0] if match else None


class TokenSigner:
    """Signs and verifies tokens with the agent's key, which no repr shows."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, token: Token) -> str:
        """Return the token's text."""
        signed = f"mailsonde1:{token.probe}:{token.run}:{token.created_us:016d}"
        return f"{signed}:{self._mac(signed)}"

    def verify(self, text: str) -> Token | None:
        """Return the token in ``text``; ``None`` if it is not a token or another key signed it."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            return None
        signed, _, mac = text.rpartition(":")
        if not hmac.compare_digest(mac, self._mac(signed)):
            return None
        return Token(match[1], match[2], int(match[3]))

    def envelope_id(self, run: str) -> str:
        """Return the envelope identifier of a run's message, for the parameter ENVID (RFC 3461 section 4.4).

        Delivery reports have it in Original-Envelope-Id, even if they do not return the message. It has 85 of
        the 100 characters allowed, and needs no encoding in xtext. It is signed, so that nobody can fake a
        report about a message without having seen its envelope.
        """
        signed = f"mailsonde-envelope1:{run}"
        return f"{signed}:{self._mac(signed)}"

    def verify_envelope_id(self, text: str) -> str | None:
        """Return the run in an envelope identifier, or ``None`` if we did not sign it."""
        match = _ENVELOPE_ID.fullmatch(text)
        if match is None or not hmac.compare_digest(text, self.envelope_id(match[1])):
            return None
        return match[1]

    def _mac(self, signed: str) -> str:
        return hmac.digest(self._key, signed.encode("ascii"), "sha256").hex()[:32]
