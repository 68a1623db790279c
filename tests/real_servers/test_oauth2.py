"""Mailboxes with access tokens: a token server, Dovecot and Postfix that we did not write."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from monitor.doctor.mailbox import MailboxDoctor, Step
from monitor.runner import Result
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.remedies import GENERAL
from probes.oauth2.stored_token import StoredToken
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.one_run import SENDER, Settings, assert_delivered, configured, run_once, server, trip
from tests.real_servers.postfix import Postfix
from tests.real_servers.tinyproxy import Tinyproxy
from tests.real_servers.token_server import TokenServer

NOT_OURS = {"upn": f"staff@{Dovecot.address.partition('@')[2]}"}
LONG = {"padding": 1500}
"""What makes a token longer than a line of SMTP or POP3 may be."""


class TokenSite:
    """A Dovecot and a Postfix that take a token server's tokens."""

    def __init__(
        self, directory: Callable[[str], Path], tls: TlsFiles, stack: ExitStack, audience: str = ""
    ) -> None:
        self._tls = tls
        self.issuer = TokenServer(directory("tokens"), tls)
        stack.callback(self.issuer.stop)
        self.dovecot = Dovecot(directory("dovecot"), tls, extra=self.issuer.dovecot_settings(audience))
        stack.callback(self.dovecot.stop)
        self.postfix = Postfix(directory("postfix"), self.dovecot, tls)
        stack.callback(self.postfix.stop)

    def submission(self, auth: str = "auto") -> Settings:
        """Return a server to send by, where ``sender`` logs in with a token."""
        port = self.postfix.submission_port
        made = server("smtp", port, self._tls, username=SENDER, auth=auth, oauth2="sender")
        del made["password"]
        return made

    def mailboxes(self, protocol: str, auth: str = "auto") -> Settings:
        """Return a server with mailboxes."""
        made = {"pop3": self.dovecot.pop3s_port, "imap": self.dovecot.imaps_port}
        return {
            "protocol": protocol,
            "host": "127.0.0.1",
            "port": made[protocol],
            "tls": "implicit",
            "tls_ca": str(self._tls.authority),
            "auth": auth,
            "timeout": "20s",
        }

    async def logins(self, directory: Path, auth: str, **claims: object) -> list[Result]:
        """Return the results of logging in by POP3, IMAP and SMTP, with ``claims`` in the token."""
        login = {"username": SENDER, "oauth2": "sender"}
        servers = {protocol: self.mailboxes(protocol, auth) | login for protocol in ("pop3", "imap")}
        servers["smtp"] = self.submission(auth)
        probes = ({"name": protocol, "kind": protocol, "server": protocol} for protocol in servers)
        return await run_once(
            directory, servers, *probes, oauth2={"sender": self.issuer.entry("sender", **claims)}
        )

    async def look(self, directory: Path, **entry: object) -> Result:
        """Return the result of looking into canary's mailbox, with settings of ``oauth2``."""
        probe = {"name": "look", "kind": "imap", "mailbox": "canary"}
        entries = {"canary": self.issuer.entry("canary") | entry}
        return (await run_once(directory, {"in": self.mailboxes("imap")}, probe, oauth2=entries))[0]


@pytest.fixture(scope="module")
def site(server_directory: Callable[[str], Path], server_tls: TlsFiles) -> Iterator[TokenSite]:
    with ExitStack() as stack:
        yield TokenSite(server_directory, server_tls, stack)


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Tinyproxy]]:
    """Start a proxy for one test; options are those of `Tinyproxy`."""
    with ExitStack() as stack:

        def start(*options: Any) -> Tinyproxy:
            proxy = Tinyproxy(tmp_path, *options)
            stack.callback(proxy.stop)
            return proxy

        yield start


@pytest.mark.tried("roundtrip", "Postfix", "Dovecot")
@pytest.mark.parametrize("claims", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("auth", ["xoauth2", "oauthbearer"])
@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_message_there_and_back(
    protocol: str, auth: str, claims: dict[str, Any], tmp_path: Path, site: TokenSite
) -> None:
    """With tokens alone, a message is sent and found by each mechanism, also with tokens of 2 KB."""
    servers = {"out": site.submission(auth), "in": site.mailboxes(protocol, auth)}
    entries = {user: site.issuer.entry(user, **claims) for user in ("sender", "canary")}
    (result,) = await run_once(tmp_path, servers, trip(), oauth2=entries)
    assert_delivered(result)


@pytest.mark.tried("smtp", "Postfix")
@pytest.mark.tried("pop3", "Dovecot")
@pytest.mark.tried("imap", "Dovecot")
@pytest.mark.parametrize("auth", ["xoauth2", "oauthbearer"])
@pytest.mark.parametrize(
    "claims",
    [{"forged": True}, {"iss": "https://elsewhere.test"}, {"exp": 1_600_000_000}, NOT_OURS],
    ids=["forged", "other issuer", "expired", "other user"],
)
async def test_refused_token(
    auth: str, claims: dict[str, Any], tmp_path: Path, site: TokenSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A token that the server refuses is `auth_failed` with the server's status, and is shown nowhere."""
    caplog.set_level("DEBUG")
    results = await site.logins(tmp_path, auth, **claims)
    status = "status 401" if auth == "xoauth2" else "status invalid_token"
    for result in results:
        assert result.verdict.reason is Reason.AUTH_FAILED, result.verdict.detail
        assert f"{auth.upper()}: {status}" in result.verdict.detail
    shown = f"{[result.with_transcript() for result in results]}{caplog.text}"
    assert "access token of sender" in shown
    assert not any(_is_told(token, shown) for token in site.issuer.issued())


@pytest.mark.tried("imap", "Dovecot")
async def test_token_for_another_audience(
    tmp_path: Path, server_directory: Callable[[str], Path], server_tls: TlsFiles
) -> None:
    """A server that checks the audience takes a token for itself, and refuses one that is for another."""
    ours, other = "https://mail.test", "https://graph.test"
    # Not the shared Dovecot: this version of it may crash after it refused a token that has an audience.
    with ExitStack() as stack:
        site = TokenSite(server_directory, server_tls, stack, ours)
        sound = await site.look(tmp_path, scope=site.issuer.entry("canary", aud=ours)["scope"])
        assert sound.verdict.reason is Reason.NONE, sound.verdict.detail
        result = await site.look(tmp_path, scope=site.issuer.entry("canary", aud=other)["scope"])
    assert result.verdict.reason is Reason.AUTH_FAILED, result.verdict.detail
    assert "XOAUTH2: status 401" in result.verdict.detail
    assert not any(_is_told(token, str(result.with_transcript())) for token in site.issuer.issued())


async def test_refresh_token_that_is_replaced(tmp_path: Path, site: TokenSite) -> None:
    """A refresh token opens a mailbox, and the new one that comes with each token takes its place."""
    stored = tmp_path / "refresh.json"
    StoredToken(stored).write("the first")
    delegated = {"token_file": {"file": str(stored)}, "device_url": site.issuer.url}
    result = await site.look(tmp_path, **delegated)
    assert result.verdict.reason is Reason.NONE, result.verdict.detail
    second = StoredToken(stored).read()
    assert second not in (None, "the first")
    assert stored.stat().st_mode & 0o777 == 0o600
    await site.look(tmp_path, **delegated)
    assert StoredToken(stored).read() != second


async def test_page_in_place_of_a_token(tmp_path: Path, site: TokenSite) -> None:
    """An endpoint that answers HTML, as with a wrong URL, is `token_unavailable` with the HTTP status."""
    result = await site.look(tmp_path, token_url=f"{site.issuer.url}/nowhere")
    assert result.verdict.reason is Reason.TOKEN_UNAVAILABLE
    assert "oauth2 canary: HTTP status 404" in result.verdict.detail


async def test_token_through_a_proxy(
    tmp_path: Path, site: TokenSite, start_proxy: Callable[..., Tinyproxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are fetched through the proxy of `proxy`, or of HTTPS_PROXY except for hosts in NO_PROXY."""
    configured, other = (start_proxy(site.issuer.port, password) for password in ("", "proxy-Pa55word"))
    monkeypatch.setenv("HTTPS_PROXY", other.url)
    counts = []
    for entry, exempt in (({"proxy": configured.url}, ""), ({}, ""), ({}, "127.0.0.1")):
        monkeypatch.setenv("NO_PROXY", exempt)
        result = await site.look(tmp_path, **entry)
        assert result.verdict.reason is Reason.NONE, result.verdict.detail
        assert "proxy-Pa55word" not in str(result.with_transcript())
        counts.append((configured.requests(), other.requests()))
    assert counts == [(1, 0), (1, 1), (1, 1)]


async def test_proxy_that_refuses(
    tmp_path: Path, site: TokenSite, start_proxy: Callable[..., Tinyproxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that refuses, by its rules or a wrong password, is `token_unavailable` with its answer."""
    result = await site.look(tmp_path, proxy=start_proxy(443).url)
    assert result.verdict.reason is Reason.TOKEN_UNAVAILABLE
    assert "the proxy answered: 403 Access violation" in result.verdict.detail
    proxy = start_proxy(site.issuer.port, "proxy-Pa55word")
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("proxy-", "wrong-"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    result = await site.look(tmp_path)
    assert result.verdict.reason is Reason.TOKEN_UNAVAILABLE
    assert "the proxy answered: 4" in result.verdict.detail
    assert "Pa55word" not in str(result.with_transcript())


def _is_told(token: str, text: str) -> bool:
    """Whether 16 characters of a token, or of its base64, are in ``text``."""
    forms = [token, *(base64.b64encode(b"." * before + token.encode()).decode() for before in range(3))]
    return any(form[begin : begin + 16] in text for form in forms for begin in range(4, len(form) - 16))


async def examined(site: TokenSite, directory: Path, user: str = "canary", **claims: object) -> list[Step]:
    """Return the doctor's steps for canary; its token is for ``user``, and the sender's has ``claims``."""
    entries = {"canary": site.issuer.entry(user), "sender": site.issuer.entry("sender", **claims)}
    servers = {"out": site.submission(), "in": site.mailboxes("imap")}
    configuration = configured(directory, servers, trip(), oauth2=entries)
    async with open_runtime(configuration, SystemClock(), "doctor") as runtime:
        return [step async for step in MailboxDoctor("canary", runtime).steps()]


async def test_doctor_of_a_mailbox_that_is_well(site: TokenSite, tmp_path: Path) -> None:
    """Every step up to a message there and back is ok, with the token that each server takes."""
    steps = await examined(site, tmp_path)
    names = ["token", "dns", "tcp", "tls", "login", "folder", "submission", "message"]
    assert [(step.name, step.outcome) for step in steps] == [(name, "ok") for name in names]


async def test_doctor_of_logins_that_are_refused(site: TokenSite, tmp_path: Path) -> None:
    """A token for another mailbox fails at Dovecot's login, and one for another sender at Postfix's."""
    for user, claims, name in (("staff", {}, "login"), ("canary", NOT_OURS, "submission")):
        steps = await examined(site, tmp_path, user, **claims)
        assert (steps[-1].name, steps[-1].outcome, steps[-1].reason) == (name, "failed", "auth_failed")
        assert steps[-1].remedy == GENERAL[Reason.AUTH_FAILED]
