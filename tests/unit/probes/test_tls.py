"""TLS contexts verify always and are made once; certificates warn before they expire."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from probes.reasons import Reason
from probes.tls import certificate_not_after, client_context, expiry_reason
from tests.fakes.scripted_server import server_context
from tests.real_servers.dovecot import TlsFiles

DAY = 86400.0


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Do a TLS handshake in memory, and return the client's end."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    left = list(ends)
    while left:
        for end in left.copy():
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
    return ends[0]


def test_a_context_is_made_once_for_each_file(server_tls: TlsFiles) -> None:
    """The same authority gives the same context, and another one gives another."""
    assert client_context(server_tls.authority) is client_context(Path(server_tls.authority))
    assert client_context(None) is client_context(None)
    assert client_context(None) is not client_context(server_tls.authority)


@pytest.mark.parametrize("trusting_file", [True, False])
def test_a_context_always_verifies(trusting_file: bool, server_tls: TlsFiles) -> None:
    """Chain and name are verified, and nothing older than TLS 1.2 is spoken."""
    context = client_context(server_tls.authority if trusting_file else None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_certificates_last_second(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """The time at which the peer's certificate expires is read to the second."""
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    server = server_context(certificate_authority, "mail.test", not_after=expires)
    connection = handshake(client_context(server_tls.authority), server, "mail.test")
    assert certificate_not_after(connection) == expires.timestamp()


def test_an_expired_certificate_is_refused(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A certificate past its last day ends the handshake."""
    expired = datetime.now(UTC) - timedelta(days=1)
    server = server_context(certificate_authority, "mail.test", not_after=expired)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(client_context(server_tls.authority), server, "mail.test")


@pytest.mark.parametrize(
    ("days_left", "reason"),
    [
        (13.9, Reason.CERTIFICATE_EXPIRING),
        (14.0, Reason.NONE),
        (400.0, Reason.NONE),
    ],
)
def test_a_warning_before_the_last_day(days_left: float, reason: Reason) -> None:
    """A certificate warns once it has less left than the warning time."""
    now = 1_700_000_000.0
    assert expiry_reason(now + days_left * DAY, now, 14 * DAY) is reason


def test_without_tls_nothing_expires() -> None:
    """A connection without a certificate warns of none."""
    assert expiry_reason(None, 1_700_000_000.0, 14 * DAY) is Reason.NONE
