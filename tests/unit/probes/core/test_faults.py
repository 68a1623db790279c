"""The faults for socket and TLS errors, and untrusted text in faults."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.core.faults import DETAIL_LIMIT, ProbeFault, fault_of, legible
from probes.core.reasons import Reason


@given(st.text() | st.binary(), st.integers(1, 50))
def test_legible_text_is_printable_and_short(text: str | bytes, limit: int) -> None:
    """Any server text is shown in printable characters, within the limit."""
    shown = legible(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"user unknown", "user unknown"),
        ("Postfach voll: Grüße".encode(), "Postfach voll: Grüße"),
        (b"caf\xe9", "caf\\xe9"),
        (b"a\r\nlevel=error\x1b[31m\0", "a\\r\\nlevel=error\\x1b[31m\\x00"),
        ("turned \u202eround", "turned \\u202eround"),
        ("\udc80", "\\udc80"),
    ],
)
def test_legible_text_keeps_what_can_be_shown(text: str | bytes, shown: str) -> None:
    """Letters stay; control characters, direction marks and invalid UTF-8 are escaped."""
    assert legible(text) == shown


def test_cut_text_shows_that_it_is_cut() -> None:
    """A text of exactly the limit is kept whole, and a longer one ends with an ellipsis."""
    assert legible("x" * DETAIL_LIMIT) == "x" * DETAIL_LIMIT
    assert legible("x" * (DETAIL_LIMIT + 1)) == "x" * (DETAIL_LIMIT - 1) + "…"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Reason.CONNECT_REFUSED),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Reason.CONNECTION_LOST),
        (ConnectionResetError("closed during the handshake"), Reason.CONNECTION_LOST),
        (BrokenPipeError(errno.EPIPE, "pipe"), Reason.CONNECTION_LOST),
        (EOFError("closed"), Reason.CONNECTION_LOST),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), Reason.CONNECT_TIMEOUT),
        (OSError(errno.EHOSTUNREACH, "no route to host"), Reason.HOST_UNREACHABLE),
        (OSError(errno.ENETUNREACH, "no route"), Reason.NETWORK_UNREACHABLE),
        (OSError(errno.EMFILE, "too many files"), Reason.LOCAL_RESOURCES),
        (socket.gaierror(socket.EAI_NONAME, "unknown name"), Reason.DNS_NXDOMAIN),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), Reason.DNS_TIMEOUT),
        (socket.gaierror(socket.EAI_FAIL, "failed"), Reason.DNS_SERVFAIL),
        (ssl.SSLError(1, "bad record"), Reason.TLS_HANDSHAKE),
    ],
    ids=lambda value: value if isinstance(value, Reason) else type(value).__name__,
)
def test_reason_of_an_error(error: Exception, reason: Reason) -> None:
    """Each error of the network, the resolver and TLS has its reason."""
    fault = fault_of(error)
    assert fault is not None
    assert fault.reason is reason
    assert fault.detail


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, os.strerror(errno.ENOENT)), ValueError("x"), KeyError("x")]
)
def test_what_is_no_fault(error: Exception) -> None:
    """An error that no mail system can cause counts as our own defect."""
    assert fault_of(error) is None


def test_fault_reads_as_reason_and_detail() -> None:
    """A fault's text has the reason and then the detail, made legible."""
    assert str(ProbeFault(Reason.SMTP_REJECTED, b"550 no\n")) == "smtp_rejected: 550 no\\n"
    assert str(ProbeFault(Reason.SMTP_REJECTED)) == "smtp_rejected"
