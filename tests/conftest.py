"""Real servers for tests: shared ones for the session, and factories for tests that disturb theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.real_servers.bind import Named
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.prometheus import Prometheus


@pytest.fixture(scope="session")
def certificate_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(certificate_authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A certificate for localhost and 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    certificate = certificate_authority.issue_cert("localhost", "127.0.0.1")
    files = TlsFiles(directory / "server.pem", directory / "server.key", directory / "ca.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(files.key)
    certificate_authority.cert_pem.write_to_path(files.authority)
    return files


@pytest.fixture(scope="session")
def dovecot(server_tls: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dovecot]:
    """A Dovecot that tests share; they leave no message behind that others could mistake for theirs."""
    server = Dovecot(tmp_path_factory.mktemp("dovecot"), server_tls)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postfix(
    dovecot: Dovecot, server_tls: TlsFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Postfix]:
    """A Postfix that tests share, in front of the shared Dovecot."""
    server = Postfix(tmp_path_factory.mktemp("postfix"), dovecot, server_tls)
    yield server
    server.stop()


@pytest.fixture
def start_dovecot(server_tls: TlsFiles, tmp_path: Path) -> Iterator[Callable[..., Dovecot]]:
    """Start a Dovecot for one test."""
    with ExitStack() as stack:

        def start(**options: object) -> Dovecot:
            server = Dovecot(tmp_path / "dovecot", server_tls, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def start_postfix(server_tls: TlsFiles, tmp_path: Path) -> Iterator[Callable[[Dovecot], Postfix]]:
    """Start a Postfix for one test, in front of a Dovecot."""
    with ExitStack() as stack:

        def start(dovecot: Dovecot) -> Postfix:
            server = Postfix(tmp_path / "postfix", dovecot, server_tls)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def start_named(tmp_path: Path) -> Iterator[Callable[..., Named]]:
    """Start a BIND for one test, with zones and broken zones."""
    with ExitStack() as stack:

        def start(zones: Mapping[str, str], broken: tuple[str, ...] = ()) -> Named:
            server = Named(tmp_path / "named", zones, broken)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Callable[[Path], Prometheus]]:
    """Start a Prometheus for one test, with a configuration file."""
    with ExitStack() as stack:

        def start(config: Path) -> Prometheus:
            server = Prometheus(tmp_path / "prometheus", config)
            stack.callback(server.stop)
            return server

        yield start
