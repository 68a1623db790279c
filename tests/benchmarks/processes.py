"""Processes beside the benchmark: the resources that they use, and what they need."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import trustme

from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import free_port, wait_until

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


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """Run a module as a web server in a process of its own; yield its address and process id.

    The module takes the arguments and a port, and answers at ``/-/ready`` when it can serve.
    """
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", module, *arguments, str(port)])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until(lambda: _is_ready(client), f"{module} is ready", 120.0)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(10)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False
