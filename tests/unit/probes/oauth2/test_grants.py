"""Requests for tokens: what providers are sent, and every answer that is not a token."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from probes.core.clock import SystemClock
from probes.core.credentials import Resource
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.oauth2 import grants
from probes.oauth2.grants import Grant, fetch
from probes.oauth2.settings import AnyOAuth2
from probes.oauth2.tokens import TokenSource
from probes.protocols.https import proxy_for
from tests.fakes.token_endpoint import answer, token_endpoint

SECRET = "tr0mbone-and-Oboe"
TOKEN = {"access_token": "abc.def", "token_type": "Bearer", "expires_in": 3599}


def settings(**entry: Any) -> AnyOAuth2:
    return TypeAdapter[AnyOAuth2](AnyOAuth2).validate_python(entry)


def generic(url: str, **entry: Any) -> AnyOAuth2:
    entry = {"client_secret": {"env": "APP_SECRET"}} | entry
    return settings(provider="generic", token_url=f"{url}/token", client_id="app-1", **entry)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_SECRET", SECRET)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


async def fetched(
    made: AnyOAuth2, phases: PhaseTimer | None = None, resource: Resource = "mail", subject: str = ""
) -> Grant:
    return await fetch(made, resource, subject, phases or PhaseTimer(SystemClock()), SystemClock().time())


@pytest.mark.parametrize(
    ("resource", "cloud", "scope"),
    [
        ("mail", "global", "https://outlook.office365.com/.default"),
        ("graph", "global", "https://graph.microsoft.com/.default"),
        ("mail", "usgov", "https://outlook.office365.us/.default"),
        ("graph", "china", "https://microsoftgraph.chinacloudapi.cn/.default"),
    ],
)
async def test_microsoft_by_secret(resource: Resource, cloud: str, scope: str) -> None:
    """Microsoft gets client credentials with the scope of the resource in its cloud."""
    async with token_endpoint(answer(TOKEN)) as opened:
        entry = {"provider": "microsoft", "tenant": "contoso.example", "client_id": "app-1", "cloud": cloud}
        made = settings(**entry, client_secret={"env": "APP_SECRET"}, authority=opened.url)
        assert await fetched(made, resource=resource) == Grant("abc.def", 3599.0)
    assert opened.forms == [
        {
            "grant_type": "client_credentials",
            "client_id": "app-1",
            "client_secret": SECRET,
            "scope": scope,
        }
    ]


async def test_microsoft_by_certificate(app_pem: Path) -> None:
    """With a certificate, an assertion takes the place of the secret."""
    async with token_endpoint(answer(TOKEN)) as opened:
        entry = {"provider": "microsoft", "tenant": "contoso.example", "client_id": "app-1"}
        await fetched(settings(**entry, certificate={"file": str(app_pem)}, authority=opened.url))
    (form,) = opened.forms
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert form["client_assertion"].count(".") == 2
    assert "client_secret" not in form


async def test_google(service_account: Path) -> None:
    """Google gets an assertion of the service account, and nothing else."""
    async with token_endpoint(answer(TOKEN)) as opened:
        made = settings(
            provider="google", service_account={"file": str(service_account)}, token_url=opened.url
        )
        await fetched(made, subject="canary@example.com")
    (form,) = opened.forms
    assert form.keys() == {"grant_type", "assertion"}


async def test_refresh_token_is_renewed(tmp_path: Path) -> None:
    """A new refresh token replaces the stored one in a file that only its owner can read."""
    path = tmp_path / "contoso.json"
    path.write_text('{"refresh_token": "first"}')
    async with token_endpoint(answer(TOKEN | {"refresh_token": "second"})) as opened:
        made = generic(
            opened.url, device_url=f"{opened.url}/device", token_file={"file": str(path)}, scope="mail"
        )
        await fetched(made)
    assert opened.forms[0]["grant_type"] == "refresh_token"
    assert (opened.forms[0]["refresh_token"], opened.forms[0]["scope"]) == ("first", "mail")
    assert json.loads(path.read_text()) == {"refresh_token": "second"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]  # noqa: ASYNC240 # a local directory


async def test_without_a_login(tmp_path: Path) -> None:
    """Before the first login, the fault says how to log in."""
    made = generic(
        "http://127.0.0.1:9",
        device_url="http://127.0.0.1:9/device",
        token_file={"file": str(tmp_path / "none.json")},
    )
    with pytest.raises(ProbeFault, match="does not exist; log in once with: mailsonde login") as caught:
        await fetched(made)
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE


@pytest.mark.parametrize(
    ("said", "reason", "detail"),
    [
        (
            answer({"error": "invalid_client", "error_description": "AADSTS7000215: bad\r\nTrace: 1"}, 401),
            Reason.TOKEN_REFUSED,
            r"invalid_client: AADSTS7000215: bad\r",
        ),
        (answer({"error": "invalid_grant"}, 400), Reason.TOKEN_REFUSED, "invalid_grant"),
        (
            answer({"error": "temporarily_unavailable"}, 400),
            Reason.TOKEN_UNAVAILABLE,
            "temporarily_unavailable",
        ),
        (
            answer({"error": "whatever"}, 500),
            Reason.TOKEN_UNAVAILABLE,
            "temporarily_unavailable",
        ),
        (
            answer(b"<html>down</html>", 500),
            Reason.TOKEN_UNAVAILABLE,
            "HTTP status 500, without a JSON object",
        ),
        (answer(b"<html>sign in</html>"), Reason.TOKEN_UNAVAILABLE, "HTTP status 200, without a JSON object"),
        (answer([]), Reason.TOKEN_UNAVAILABLE, "HTTP status 200, without a JSON object"),
        (answer(b"[" * 50_000), Reason.TOKEN_UNAVAILABLE, "HTTP status 200, without a JSON object"),
        (answer(b" " * 100_000), Reason.TOKEN_UNAVAILABLE, "HTTP status 200, and more than 65536 octets"),
        (answer({}), Reason.TOKEN_UNAVAILABLE, "the answer has no access_token"),
        (answer(TOKEN, 302), Reason.TOKEN_UNAVAILABLE, "HTTP status 302"),
        (
            answer(TOKEN | {"access_token": "x" * 64_000}),
            Reason.TOKEN_UNAVAILABLE,
            "the token is longer than 8192 characters, or not ASCII",
        ),
        (
            answer(TOKEN | {"access_token": "x\r\ny"}),
            Reason.TOKEN_UNAVAILABLE,
            "the token is longer than 8192 characters, or not ASCII",
        ),
        (
            answer(TOKEN | {"expires_in": 0}),
            Reason.TOKEN_UNAVAILABLE,
            "the token has expired already, by its expires_in",
        ),
        (
            answer(TOKEN | {"token_type": "mac"}),
            Reason.TOKEN_UNAVAILABLE,
            "the token's type is mac, not Bearer",
        ),
        (b"HTTP/1.1 200 OK\r\n", Reason.TOKEN_UNAVAILABLE, "connection_lost: "),
    ],
)
async def test_answers_without_a_token(said: bytes, reason: Reason, detail: str) -> None:
    """Only an error of OAuth2 is a refusal; everything else means that the endpoint is not available."""
    async with token_endpoint(said) as opened:
        with pytest.raises(ProbeFault) as caught:
            await fetched(generic(opened.url))
    assert caught.value.reason is reason
    assert caught.value.detail.startswith(detail)


async def test_endless_answer_is_cut() -> None:
    """Of an answer of 100 MB, only the beginning is read."""
    async with token_endpoint(
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b" " * 200_000
    ) as opened:
        with pytest.raises(ProbeFault, match="more than 65536 octets"):
            await fetched(generic(opened.url))


async def test_slow_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that never answers is given up in time."""
    monkeypatch.setattr(grants, "REQUEST_SECONDS", 0.2)
    async with token_endpoint() as opened:
        with pytest.raises(ProbeFault, match=r"command_timeout: no answer within 0\.2 s") as caught:
            await fetched(generic(opened.url))
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE


async def test_pause_that_the_provider_asks_for() -> None:
    """The seconds of Retry-After are kept; a date is not."""
    async with token_endpoint(
        answer({}, 429, "Retry-After: 77"), answer({}, 429, "Retry-After: Thu")
    ) as opened:
        for pause in (77.0, None):
            with pytest.raises(ProbeFault) as caught:
                await fetched(generic(opened.url))
            assert caught.value.retry_after == pause


async def test_throttled_requests_are_counted() -> None:
    """A token endpoint that limits its clients (429) is told apart from one that is down."""
    for status, expected in ((429, 1), (503, 0)):
        async with token_endpoint(answer({"error": "slow_down"}, status)) as opened:
            source = TokenSource("contoso", generic(opened.url), SystemClock())
            with pytest.raises(ProbeFault):
                await source.token("mail", "canary", PhaseTimer(SystemClock()))
        assert (source.requests.throttled, source.requests.results["unavailable"]) == (expected, 1)


@pytest.mark.parametrize(
    "said",
    [
        answer({"error": "invalid_client", "error_description": f"you sent {SECRET}"}, 401),
        answer({"error": SECRET}, 400),
        answer(TOKEN | {"token_type": SECRET}),
    ],
)
async def test_secret_that_the_server_repeats(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A secret in the endpoint's answer appears in no fault, transcript, log or repr."""
    caplog.set_level(logging.DEBUG)
    phases = PhaseTimer(SystemClock())
    async with token_endpoint(said) as opened:
        made = generic(opened.url)
        with pytest.raises(ProbeFault) as caught:
            await fetched(made, phases)
    shown = f"{caught.value!r} {caught.value} {phases.transcript.lines()} {made!r} {caplog.text}"
    assert SECRET not in shown
    assert SECRET[:8] not in shown
    assert caught.value.detail == "(withheld)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("http://me:Pa55word@proxy.example", "http://me:Pa55word@proxy.example"),
        ("socks5://me:Pa55word@proxy.example", None),
        ("http://[::1", None),
    ],
)
def test_proxy_of_the_environment(value: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY may lack its scheme; one that cannot be used is a fault of ours, and is not shown."""
    monkeypatch.setenv("HTTPS_PROXY", value)
    if expected is not None:
        assert proxy_for("https://login.example/token") == expected
        return
    with pytest.raises(ProbeFault, match="HTTPS_PROXY must be the URL of an HTTP proxy") as caught:
        proxy_for("https://login.example/token")
    assert caught.value.reason is Reason.LOCAL_RESOURCES
    assert "Pa55word" not in str(caught.value)
