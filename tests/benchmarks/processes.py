"""Measures the resources that processes use, from outside."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from tests.real_servers.dovecot import TlsFiles

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process, including its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


@contextmanager
def workplace() -> Iterator[tuple[Path, TlsFiles]]:
    """Yield a directory for servers, and a certificate for localhost and 127.0.0.1."""
    with tempfile.TemporaryDirectory(prefix="mailsonde-bench-", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        authority = trustme.CA()
        ends = datetime.now(UTC) + timedelta(days=60)
        certificate = authority.issue_cert("localhost", "127.0.0.1", not_after=ends)
        tls = TlsFiles(directory / "server.pem", directory / "server.key", directory / "ca.pem")
        tls.certificate.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(tls.key)
        authority.cert_pem.write_to_path(tls.authority)
        yield directory, tls
