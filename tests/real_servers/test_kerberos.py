"""Kerberos with MIT's KDC: HTTP with channel bindings against GSSAPI's acceptor, and SASL against Dovecot."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from monitor.runner import Result
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.redaction import Redaction
from probes.protocols import kerberos
from probes.protocols.kerberos import KerberosContext
from probes.protocols.sasl import MECHANISMS
from tests.fakes.certificates import certify
from tests.fakes.extended_protection import serving
from tests.real_servers.dovecot import DOMAIN, PASSWORD, Dovecot, TlsFiles
from tests.real_servers.kerberos import REALM, Realm, put_gssapi_on_the_path
from tests.real_servers.one_run import Settings, assert_wrong_password, run_once, server
from tests.real_servers.postfix import Postfix

SMTP, POP3 = pytest.mark.tried("smtp", "Postfix"), pytest.mark.tried("pop3", "Dovecot")
IMAP = pytest.mark.tried("imap", "Dovecot")


class Site:
    """A realm, and a Dovecot and a Postfix that take GSSAPI and PLAIN."""

    def __init__(self, directory: Callable[[str], Path], tls: TlsFiles, stack: ExitStack) -> None:
        self.tls = tls
        self.realm = Realm(directory("realm"))
        stack.callback(self.realm.stop)
        extra = f"""
auth_mechanisms = plain gssapi
auth_krb5_keytab = {self.realm.keytab}
auth_gssapi_hostname = "$ALL"
auth_username_format = %Ln@{DOMAIN}
import_environment = TZ KRB5_CONFIG={self.realm.client_settings}
service auth {{
  user = root
}}
"""
        self.dovecot = Dovecot(directory("dovecot"), tls, extra=extra)
        stack.callback(self.dovecot.stop)
        self.postfix = Postfix(directory("postfix"), self.dovecot, tls)
        stack.callback(self.postfix.stop)

    async def logins(self, directory: Path, password: str = PASSWORD, **given: str) -> list[Result]:
        """Return the results of a login over each protocol."""
        ports = {
            "smtp": self.postfix.submission_port,
            "pop3": self.dovecot.pop3_port,
            "imap": self.dovecot.imap_port,
        }
        given = {"host": "localhost", "auth": "gssapi", "username": f"canary@{REALM.lower()}", **given}
        servers = {kind: server(kind, port, self.tls, **given) for kind, port in ports.items()}
        probes: list[Settings] = [{"name": kind, "kind": kind, "server": kind} for kind in ports]
        return await run_once(directory, servers, *probes, password=password)

    async def page(self, directory: Path, port: int, password: str = PASSWORD, **settings: object) -> Result:
        """Return the result of a probe of the page at a port."""
        login = {"username": "canary", "password": {"file": "password"}, "auth": "kerberos"}
        probe = {"name": "page", "kind": "http", "url": f"https://localhost:{port}/", **login, **settings}
        probe["tls_ca"] = str(self.tls.authority)
        (result,) = await run_once(directory, {}, probe, password=password)
        return result


@pytest.fixture(scope="module")
def gssapi(server_directory: Callable[[str], Path]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        put_gssapi_on_the_path(server_directory("gssapi"), patch)
        yield


@pytest.fixture(scope="module")
def site(gssapi: None, server_directory: Callable[[str], Path], server_tls: TlsFiles) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(server_directory, server_tls, stack)


@pytest.fixture(autouse=True)
def machine(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Configure the realm on this machine; in the end, nothing must be in its default credential cache."""
    caches = tmp_path / "caches"
    caches.mkdir()
    monkeypatch.setenv("KRB5_CONFIG", str(site.realm.client_settings))
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{caches}/default")
    yield
    assert list(caches.iterdir()) == []
    return caches


class Page:
    """A page for those who log in by Kerberos on a connection that ends at ``certificate``."""

    def __init__(self, realm: Realm, certificate: Path) -> None:
        self._realm = realm
        self._digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).digest()

    async def page(self, request: Request) -> Response:
        """Answer a request: 401, or the name of the user and whether the login was bound to TLS."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Negotiate":
            return PlainTextResponse("", 401, {"WWW-Authenticate": "Negotiate"})
        import gssapi

        bindings = gssapi.raw.ChannelBindings(application_data=b"tls-server-end-point:" + self._digest)
        accepting = gssapi.SecurityContext(
            creds=gssapi.Credentials(usage="accept", store={"keytab": str(self._realm.keytab)}),
            usage="accept",
            channel_bindings=bindings,
        )
        accepting.__DEFER_STEP_ERRORS__ = False
        try:
            accepting.step(base64.b64decode(token))
        except gssapi.exceptions.GSSError as error:
            return PlainTextResponse(type(error).__name__, 401)
        is_bound = gssapi.RequirementFlag.channel_bound in accepting.actual_flags
        return PlainTextResponse(f"{accepting.initiator_name} {is_bound}")


async def test_http_with_channel_bindings(site: Site, tmp_path: Path) -> None:
    """The login is bound to the TLS connection, the wait for tickets is a phase."""
    async with serving(Page(site.realm, site.tls.certificate), site.tls) as port:
        result = await site.page(tmp_path, port, expect_body=f"canary@{REALM} True")
    verdict = result.verdict
    assert verdict.reason is Reason.NONE, verdict.detail
    assert verdict.values["login"] == "Negotiate"
    assert {"login", "ticket", "first_byte"} <= verdict.phases.keys()
    assert all(seconds >= 0 for seconds in verdict.phases.values())
    assert PASSWORD not in str(result.with_transcript())


async def test_http_through_a_proxy_that_ends_tls(
    site: Site, tmp_path: Path, server_directory: Callable[[str], Path]
) -> None:
    """A server that knows another certificate than we saw refuses the login as `auth_failed`."""
    other = tmp_path / "other.pem"
    other.write_bytes(certify("another").pem)
    async with serving(Page(site.realm, other), site.tls) as port:
        verdict = (await site.page(tmp_path, port)).verdict
    assert verdict.reason is Reason.AUTH_FAILED
    assert "Extended Protection" in verdict.remedy


@pytest.mark.parametrize(
    ("username", "password", "reason", "told"),
    [
        ("canary", "wrong-Pa55word", Reason.AUTH_FAILED, "the KDC: Preauthentication failed"),
        ("nobody", PASSWORD, Reason.AUTH_FAILED, "not found in Kerberos database"),
        ("locked", PASSWORD, Reason.AUTH_FAILED, "revoked"),
        ("canary@elsewhere.test", PASSWORD, Reason.TICKET_UNAVAILABLE, 'realm "ELSEWHERE.TEST"'),
    ],
)
async def test_credentials_that_the_kdc_refuses(
    username: str, password: str, reason: Reason, told: str, site: Site, tmp_path: Path
) -> None:
    """What the KDC says about the credentials is told apart from a realm that has none."""
    async with serving(Page(site.realm, site.tls.certificate), site.tls) as port:
        result = await site.page(tmp_path, port, password, username=username)
    assert result.verdict.reason is reason, result.verdict.detail
    assert told in result.verdict.detail
    assert password not in str(result.as_object())


async def test_a_service_that_the_realm_does_not_have(site: Site, tmp_path: Path) -> None:
    """The KDC's word that it knows no such service is unknown, with the service's name."""
    async with serving(Page(site.realm, site.tls.certificate), site.tls) as port:
        verdict = (await site.page(tmp_path, port, url=f"https://127.0.0.1:{port}/")).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.TICKET_REFUSED), verdict.detail
    assert f"HTTP/127.0.0.1@{REALM}" in verdict.detail


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accept connections at a loopback port and never answer."""
    end = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await end.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as listening:
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            end.set()


@pytest.mark.parametrize(("patience", "deadline"), [(0.1, "30s"), (1000.0, "5s")])
async def test_a_kdc_that_is_silent(
    patience: float, deadline: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KDC that never answers holds up nothing else, and no mail server is blamed, also at the deadline."""
    monkeypatch.setattr(kerberos, "KDC_TIMEOUT", patience)
    async with serving(Page(site.realm, site.tls.certificate), site.tls) as port, silent_server() as kdc:
        monkeypatch.setenv("KRB5_CONFIG", str(site.realm.settings_for(kdc)))
        verdict = (await site.page(tmp_path, port, deadline=deadline)).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.TICKET_UNAVAILABLE), verdict.detail
    assert verdict.broken_phase == "ticket"


async def test_a_kdc_that_is_down(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the result says that no KDC can be reached."""
    async with serving(Page(site.realm, site.tls.certificate), site.tls) as port:
        monkeypatch.setenv("KRB5_CONFIG", str(site.realm.settings_for(1)))
        verdict = (await site.page(tmp_path, port)).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.TICKET_UNAVAILABLE), verdict.detail
    assert REALM in verdict.detail


@SMTP
@POP3
@IMAP
async def test_sasl(site: Site, tmp_path: Path) -> None:
    """GSSAPI logs in over each protocol, with the realm in lower case too."""
    for result in await site.logins(tmp_path):
        verdict = result.verdict
        assert verdict.reason is Reason.NONE, verdict.detail
        assert "ticket" in verdict.phases
        assert PASSWORD not in str(result.with_transcript())


@SMTP
@POP3
@IMAP
async def test_sasl_wrong_password(site: Site, tmp_path: Path) -> None:
    """A wrong password is `auth_failed` over each protocol."""
    for result in await site.logins(tmp_path, "wrong-Pa55word"):
        assert_wrong_password(result, "wrong-Pa55word")


@pytest.mark.parametrize("token", [b"", b"x" * 100, b"\x60\x82\xff\xff" * 1000])
async def test_a_token_that_makes_no_sense(token: bytes, site: Site) -> None:
    """What a server sends in place of its token is a protocol error."""
    exchange = KerberosContext("canary", PASSWORD, service="imap", host="localhost")
    await exchange.begin()
    with pytest.raises(ProbeFault) as caught:
        exchange.answer(token)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


async def test_a_server_that_never_stops_asking(site: Site) -> None:
    """The number of challenges is limited."""
    exchange = MECHANISMS["GSSAPI"]("canary", PASSWORD, Redaction(), service="imap", host="localhost")
    await exchange.prepare()
    exchange.answer(b"")
    with pytest.raises(ProbeFault) as caught:
        exchange.answer(b"")
    assert caught.value.reason is Reason.PROTOCOL_ERROR


async def test_auto_leaves_kerberos_out(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auth: auto`` logs in with the password where GSSAPI is offered too, though no KDC is in reach."""
    monkeypatch.setenv("KRB5_CONFIG", str(site.realm.settings_for(1)))
    for result in await site.logins(tmp_path, auth="auto", username=f"canary@{DOMAIN}"):
        assert result.verdict.reason is Reason.NONE, result.verdict.detail
        assert "ticket" not in result.verdict.phases
