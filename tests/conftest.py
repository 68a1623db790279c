"""Real servers for tests: shared ones for the session, and factories for tests that need their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
import trustme

from tests.real_servers.bind import Named
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.greylist import Greylist
from tests.real_servers.postfix import Postfix
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.relay import Relay, Treatment, untouched
from tests.real_servers.tried import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]  # hooks that pytest finds here

# A time limit would test the machine, not the code. Every run tries the same; `make fuzz` looks for more.
hypothesis.settings.register_profile(
    "mailsonde",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("mailsonde")


@pytest.fixture(autouse=True)
def no_credentials_worked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget accepted credentials: the next test's server may have the same port."""
    monkeypatch.setattr("probes.protocols.mail_session._WORKED", {})


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Callable[[str], Path]]:
    """Make directories that servers can enter as their own users; pytest's belong to root."""
    with tempfile.TemporaryDirectory(prefix="mailsonde-tests-") as root:
        Path(root).chmod(0o755)
        yield lambda name: Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))


@pytest.fixture(scope="session")
def certificate_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(certificate_authority: trustme.CA, server_directory: Callable[[str], Path]) -> TlsFiles:
    """A certificate for localhost and 127.0.0.1."""
    directory = server_directory("tls")
    directory.chmod(0o755)
    certificate = certificate_authority.issue_cert("localhost", "127.0.0.1")
    files = TlsFiles(directory / "server.pem", directory / "server.key", directory / "ca.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(files.key)
    certificate_authority.cert_pem.write_to_path(files.authority)
    return files


@pytest.fixture(scope="session")
def dovecot(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Dovecot]:
    """A Dovecot that tests share; each test must remove its messages."""
    server = Dovecot(server_directory("dovecot"), server_tls)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postfix(
    dovecot: Dovecot, server_tls: TlsFiles, server_directory: Callable[[str], Path]
) -> Iterator[Postfix]:
    """A Postfix that tests share, in front of the shared Dovecot."""
    server = Postfix(server_directory("postfix"), dovecot, server_tls)
    yield server
    server.stop()


@pytest.fixture
def start_dovecot(
    server_tls: TlsFiles, server_directory: Callable[[str], Path]
) -> Iterator[Callable[..., Dovecot]]:
    """Start a Dovecot for one test."""
    with ExitStack() as stack:

        def start(**options: object) -> Dovecot:
            server = Dovecot(server_directory("dovecot"), server_tls, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def start_postfix(
    server_tls: TlsFiles, server_directory: Callable[[str], Path]
) -> Iterator[Callable[..., Postfix]]:
    """Start a Postfix for one test, in front of a Dovecot; options are those of `Postfix`."""
    with ExitStack() as stack:

        def start(dovecot: Dovecot, **options: Relay | Greylist | None) -> Postfix:
            server = Postfix(server_directory("postfix"), dovecot, server_tls, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def start_relay() -> Iterator[Callable[..., Relay]]:
    """Start a relay for one test, in front of a Dovecot; a failed treatment or delivery fails the test."""
    with ExitStack() as stack:

        def start(dovecot: Dovecot, treatment: Treatment = untouched) -> Relay:
            return stack.enter_context(Relay(dovecot, treatment))

        yield start


@pytest.fixture
def start_greylist() -> Iterator[Callable[[float], Greylist]]:
    """Start a policy server for one test, which greylists for the given seconds."""
    with ExitStack() as stack:
        yield lambda seconds: stack.enter_context(Greylist(seconds))


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
