"""Logins of the ``http`` kind: NTLM with Extended Protection, and servers that never come to an end."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
import trustme

from monitor.runner import Result
from probes.core.reasons import Reason
from probes.http import Http
from probes.protocols.https import BODY_LIMIT, LOGIN_PAGE_LIMIT
from tests.fakes.certificates import certify
from tests.fakes.extended_protection import ACCOUNT, PASSWORD, ExtendedProtection, serving
from tests.fakes.graph.http import HANG_UP, Answer, Request, http_server
from tests.fakes.ntlm import CHALLENGE, SIGNATURE
from tests.fakes.scripted_server import server_context
from tests.real_servers.dovecot import TlsFiles
from tests.unit.probes.test_http_probe import run


def challenge(token: str, body: bytes = b"") -> Answer:
    return Answer(401, body, {"WWW-Authenticate": f"NTLM {token}"})


OFFER = Answer(401, b"", {"WWW-Authenticate": "NTLM"})
TOKEN = base64.b64encode(CHALLENGE).decode()
ENDLESS = challenge(TOKEN, b"x" * (LOGIN_PAGE_LIMIT + 1))
"""A page of which only the beginning is read, which costs the connection."""

CLOSING = Answer(401, b"", {"WWW-Authenticate": f"NTLM {TOKEN}", "Connection": "close"})


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_PASSWORD", PASSWORD)


async def logged_in(page: ExtendedProtection, tls: TlsFiles, **settings: Any) -> Result:
    """Run a probe of a page once, with the right credentials unless ``settings`` say otherwise."""
    written = {"username": ACCOUNT, "password": {"env": "WEB_PASSWORD"}, "tls_ca": str(tls.authority)}
    async with serving(page, tls) as port:
        return await run(f"https://127.0.0.1:{port}/", **written | settings)


@pytest.mark.parametrize("auth", ["auto", "ntlm"])
@pytest.mark.parametrize(
    ("schemes", "chosen"),
    [
        (["NTLM"], "NTLM"),
        (["Negotiate"], "Negotiate"),
        (["Negotiate", "NTLM"], "NTLM"),
        (['Basic realm="a, NTLM", Negotiate, ntlm'], "NTLM"),
    ],
)
async def test_ntlm_with_extended_protection(
    schemes: list[str], chosen: str, auth: str, server_tls: TlsFiles, accounts: None
) -> None:
    """The login is bound to the TLS connection, all on one, timed, and its secrets are shown nowhere."""
    page = ExtendedProtection(server_tls.certificate, schemes)
    result = await logged_in(page, server_tls, auth=auth, expect_body=ACCOUNT)
    verdict, shown = result.verdict, "\n".join(result.transcript.lines()) + str(result.as_object())
    assert verdict.reason is Reason.NONE, verdict.detail
    assert verdict.values["login"] == chosen
    assert set(verdict.phases) == {"connect", "tls", "login", "first_byte", "body"}
    assert len(page.connections) == 3
    assert len(set(page.connections)) == 1
    assert PASSWORD not in shown
    assert SIGNATURE not in shown
    assert not any(token and token[-40:] in shown for token in page.said)


@pytest.mark.parametrize(
    ("settings", "schemes", "reason", "requests"),
    [
        ({"password": {"env": "WRONG"}}, ["NTLM"], Reason.AUTH_FAILED, 3),
        ({"password": {"env": "WRONG"}}, ["Negotiate"], Reason.AUTH_FAILED, 3),
        ({"password": {"env": "WRONG"}}, ["Basic"], Reason.AUTH_FAILED, 2),
        ({}, ['Basic realm="x"'], Reason.NONE, 2),
        ({"auth": "basic"}, ["NTLM", "Basic"], Reason.NONE, 2),
        ({"auth": "ntlm"}, ["Basic"], Reason.AUTH_NOT_OFFERED, 1),
        ({"auth": "basic"}, ["NTLM"], Reason.AUTH_NOT_OFFERED, 1),
        ({}, [], Reason.AUTH_NOT_OFFERED, 1),
        ({}, ['Bearer client_id="NTLM"'], Reason.AUTH_NOT_OFFERED, 1),
    ],
)
async def test_what_is_refused_or_not_offered(
    settings: dict[str, Any],
    schemes: list[str],
    reason: Reason,
    requests: int,
    server_tls: TlsFiles,
    accounts: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal and a missing offer have their reasons, and no password is tried twice."""
    monkeypatch.setenv("WRONG", "another-Pa55word")
    page = ExtendedProtection(server_tls.certificate, schemes)
    verdict = (await logged_in(page, server_tls, **settings)).verdict
    assert verdict.reason is reason, verdict.detail
    assert len(page.said) == requests
    assert reason.area in Http.areas


async def test_a_connection_that_ends_elsewhere(
    server_tls: TlsFiles, accounts: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A server that knows another certificate, as behind a proxy that ends TLS, refuses the login."""
    other = tmp_path_factory.mktemp("other") / "other.pem"
    other.write_bytes(certify("another").pem)
    verdict = (await logged_in(ExtendedProtection(other), server_tls)).verdict
    assert verdict.reason is Reason.AUTH_FAILED
    assert "Extended Protection" in verdict.remedy


@pytest.mark.parametrize(
    ("answers", "reason", "requests"),
    [
        ([OFFER, challenge(TOKEN)], Reason.PROTOCOL_ERROR, 3),
        ([OFFER, challenge(TOKEN[:40])], Reason.PROTOCOL_ERROR, 2),
        ([OFFER, challenge("A")], Reason.PROTOCOL_ERROR, 2),
        ([OFFER, challenge("A" * 30_000)], Reason.PROTOCOL_ERROR, 2),
        ([OFFER, challenge("A" * 100_000)], Reason.RESPONSE_TOO_LARGE, 2),
        ([OFFER], Reason.AUTH_FAILED, 2),
        ([challenge(TOKEN)], Reason.PROTOCOL_ERROR, 3),
        ([OFFER, challenge(TOKEN), OFFER], Reason.AUTH_FAILED, 3),
        ([OFFER, HANG_UP], Reason.CONNECTION_LOST, 2),
        ([OFFER, challenge(TOKEN), Answer(403)], Reason.HTTP_STATUS, 3),
        ([OFFER, Answer(503)], Reason.HTTP_UNAVAILABLE, 2),
        ([Answer(200)], Reason.NONE, 1),
        ([OFFER, CLOSING, OFFER], Reason.CONNECTION_LOST, 3),
        ([OFFER, ENDLESS, OFFER], Reason.RESPONSE_TOO_LARGE, 3),
        ([OFFER, ENDLESS, Answer(200)], Reason.NONE, 3),
    ],
)
async def test_servers_that_break_the_exchange(answers: list[object], reason: Reason, requests: int) -> None:
    """A challenge that is cut, endless or repeated, and any other answer, ends the run with its reason."""
    said: list[str] = []

    async def handle(request: Request) -> object:
        said.append(request.headers.get("authorization", ""))
        return answers[min(len(said), len(answers)) - 1]

    async with http_server(handle) as port:
        result = await run(f"http://127.0.0.1:{port}/", username=ACCOUNT, password={"env": "WEB_PASSWORD"})
    verdict = result.verdict
    assert verdict.reason is reason, verdict.detail
    assert reason.area in Http.areas
    assert len(said) == requests
    assert SIGNATURE not in "\n".join(result.transcript.lines()) + str(result.as_object())


async def test_large_pages_of_a_login() -> None:
    """The login stays on one connection although the pages are longer than what is kept of an answer."""
    opened: list[None] = []
    answers = [
        Answer(401, b"x" * 2 * BODY_LIMIT, {"WWW-Authenticate": f"NTLM {token}"}) for token in ("", TOKEN)
    ]

    async def handle(request: Request) -> Answer:
        return answers.pop(0) if answers else Answer(200)

    async with http_server(handle, connected=lambda: opened.append(None)) as port:
        result = await run(f"http://127.0.0.1:{port}/", username=ACCOUNT, password={"env": "WEB_PASSWORD"})
    assert result.verdict.reason is Reason.NONE, result.verdict.detail
    assert len(opened) == 1


async def test_a_server_that_never_sends_its_challenge() -> None:
    """Silence in the middle of a login ends the run before its deadline, and the detail says where."""

    async def handle(request: Request) -> Answer:
        if "authorization" in request.headers:
            await asyncio.Event().wait()
        return OFFER

    async with http_server(handle) as port:
        result = await run(
            f"http://127.0.0.1:{port}/", username="canary", password={"env": "WEB_PASSWORD"}, deadline="2s"
        )
    assert result.verdict.reason is Reason.COMMAND_TIMEOUT
    assert result.verdict.detail.startswith("in phase login: ")
    assert result.duration_seconds < 2.0


async def test_another_host_gets_no_credentials(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """After a redirect to another origin, a request for credentials there is the answer."""
    said: list[str] = []

    async def elsewhere(request: Request) -> Answer:
        said.append(request.headers.get("authorization", ""))
        return Answer(401, b"", {"WWW-Authenticate": "Basic"})

    context = server_context(certificate_authority, "127.0.0.1")
    async with http_server(elsewhere, context) as other:

        async def handle(request: Request) -> Answer:
            if "authorization" not in request.headers:
                return Answer(401, b"", {"WWW-Authenticate": "Basic"})
            return Answer(302, b"", {"Location": f"https://127.0.0.1:{other}/"})

        async with http_server(handle, context) as port:
            result = await run(
                f"https://127.0.0.1:{port}/",
                username="canary",
                password={"env": "WEB_PASSWORD"},
                follow_redirects=1,
                tls_ca=str(server_tls.authority),
            )
    assert result.verdict.reason is Reason.HTTP_STATUS
    assert said == [""]
