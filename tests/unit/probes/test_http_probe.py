"""The ``http`` kind: its reports about servers and redirects, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
import trustme

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Reason
from probes.core.settings import Site
from probes.core.text_pattern import matches, occurs
from probes.http import Http, HttpSettings
from tests.fakes.graph.http import Answer, Request, http_server
from tests.fakes.scripted_server import server_context
from tests.real_servers.dovecot import TlsFiles

PAGE = Answer(200, b"<title>Outlook</title> 200 OK<br/>EX1.example.test", {"Content-Type": "text/html"})
PASSWORD = "s3cret-Pa55word"


async def run(url: str, **settings: Any) -> Result:
    """Run a probe of ``url`` once."""
    written = {"name": "web", "kind": "http", "url": url, "deadline": "5s"}
    made = HttpSettings.model_validate(written | settings)
    return await Runner(SystemClock(), "here").run(Http(made, Context(SystemClock(), Site("here", {}, {}))))


async def answered(answer: Answer, **settings: Any) -> Result:
    """Run a probe once of a server that always gives this answer."""

    async def handle(_: Request) -> Answer:
        return answer

    async with http_server(handle) as port:
        return await run(f"http://127.0.0.1:{port}/owa/?token=abc", **settings)


async def test_a_sound_page() -> None:
    """The answer's facts are in the values, every phase is timed, and the dialogue shows no query."""
    result = await answered(
        PAGE, expect_body="200 OK<br/>*.example.test", expect_headers={"content-type": "text/*"}
    )
    verdict = result.verdict
    assert verdict.reason is Reason.NONE, verdict.detail
    assert (verdict.values["status"], verdict.values["body_octets"]) == (
        200,
        len(PAGE.octets().split(b"\r\n\r\n")[1]),
    )
    assert set(verdict.phases) == {"connect", "first_byte", "body"}
    lines = "\n".join(result.transcript.lines())
    assert "C: GET /owa/ HTTP/1.1" in lines
    assert "S: content-type: text/html" in lines
    assert "S: <title>Outlook</title>" in lines
    assert "token=abc" not in lines + str(result.as_object())


@pytest.mark.parametrize(
    ("answer", "settings", "reason", "detail"),
    [
        (Answer(404), {}, Reason.HTTP_STATUS, "404 Not Found"),
        (Answer(401), {"expect_status": [401, 403]}, Reason.NONE, ""),
        (Answer(200), {"expect_status": [401, 403]}, Reason.HTTP_STATUS, "200 OK"),
        (Answer(503), {}, Reason.HTTP_UNAVAILABLE, "503 Service Unavailable"),
        (Answer(599), {}, Reason.HTTP_UNAVAILABLE, "599"),
        (
            Answer(302, headers={"Location": "/owa/auth?a=b"}),
            {},
            Reason.HTTP_STATUS,
            "302 Found, which redirects to http://127.0.0.1:PORT/owa/auth",
        ),
        (
            Answer(302, headers={"Location": "/owa/auth"}),
            {"expect_status": [302], "expect_redirect": "*/ecp"},
            Reason.REDIRECT_REFUSED,
            "leads to http://127.0.0.1:PORT/owa/auth, expected */ecp",
        ),
        (
            Answer(302, headers={"Location": "/owa/auth"}),
            {"expect_status": [302], "expect_redirect": "http://*/owa/auth"},
            Reason.NONE,
            "",
        ),
        (PAGE, {"expect_redirect": "*"}, Reason.NONE, ""),
        (PAGE, {"expect_redirect": "*/"}, Reason.REDIRECT_REFUSED, "there is no redirect, expected */"),
        (PAGE, {"expect_body": "Error"}, Reason.HTTP_BODY, "the 50 octets of the body lack 'Error'"),
        (
            PAGE,
            {"reject_body": "<title>*EX1"},
            Reason.HTTP_BODY,
            "the 50 octets of the body have '<title>*EX1'",
        ),
        (
            PAGE,
            {"expect_headers": {"Content-Type": "text/xml"}},
            Reason.HTTP_BODY,
            "header field Content-Type: text/html, expected text/xml",
        ),
        (
            Answer(200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
            {"expect_body": "OK"},
            Reason.HTTP_BODY,
            "the body is compressed, although this was not asked for",
        ),
    ],
)
async def test_judgement(answer: Answer, settings: dict[str, Any], reason: Reason, detail: str) -> None:
    """Each difference from what is expected has its reason, and the detail says what was seen."""
    verdict = (await answered(answer, **settings)).verdict
    place = str(verdict.values["url"]).split("/")[2].partition(":")[2]
    assert (verdict.reason, verdict.detail.replace(place, "PORT")) == (reason, detail)
    assert reason.area in Http.areas


async def test_redirects_are_told_apart(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A followed redirect, one that leads in a circle, one too many, and one without TLS differ."""
    targets = {
        "once": "/end",
        "circle": "/circle?again=1",
        "circle?again": "/circle",
        "long": "/once",
        "clear": "http://127.0.0.1/",
    }

    async def handle(request: Request) -> Answer:
        name = request.path[0] + ("?again" if "again" in request.query else "")
        return Answer(302, headers={"Location": targets[name]}) if name in targets else PAGE

    async with http_server(handle, server_context(certificate_authority, "127.0.0.1")) as port:

        async def reason_of(path: str, follow: int) -> tuple[Reason, object]:
            url = f"https://127.0.0.1:{port}{path}"
            result = await run(url, follow_redirects=follow, tls_ca=str(server_tls.authority))
            return result.verdict.reason, result.verdict.values.get("url", "").removeprefix(url[: -len(path)])

        assert await reason_of("/once", 1) == (Reason.NONE, "/end")
        assert await reason_of("/once", 0) == (Reason.HTTP_STATUS, "/once")
        assert (await reason_of("/circle", 9))[0] is Reason.REDIRECT_LOOP
        assert (await reason_of("/long", 1))[0] is Reason.REDIRECT_LOOP
        assert await reason_of("/long", 2) == (Reason.NONE, "/end")
        assert (await reason_of("/clear", 2))[0] is Reason.REDIRECT_REFUSED


async def test_one_server_behind_the_public_name(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """With an address, it connects there, and SNI, certificate and Host header have the public name."""
    context = server_context(certificate_authority, "mail.example.test")
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    hosts: list[str] = []

    async def handle(request: Request) -> Answer:
        hosts.append(request.headers["host"])
        return PAGE

    async with http_server(handle, context) as port:
        url, ca = f"https://mail.example.test:{port}/", str(server_tls.authority)
        sound = await run(url, address="127.0.0.1", tls_ca=ca)
        ending = await run(url, address="127.0.0.1", tls_ca=ca, certificate_warning="999999d")
        foreign = await run(f"https://127.0.0.1:{port}/", tls_ca=ca)
    assert sound.verdict.reason is Reason.NONE, sound.verdict.detail
    assert sound.target == "mail.example.test"
    assert set(sound.verdict.phases) == {"connect", "tls", "first_byte", "body"}
    assert sound.verdict.certificate_not_after is not None
    assert ending.verdict.reason is Reason.CERTIFICATE_EXPIRING
    assert foreign.verdict.reason is Reason.CERTIFICATE_NAME
    assert (names[:2], hosts) == (["mail.example.test"] * 2, [f"mail.example.test:{port}"] * 2)


@pytest.mark.parametrize(
    "value", [f"Bearer {PASSWORD}", "Basic " + base64.b64encode(f"canary:{PASSWORD}".encode()).decode()]
)
async def test_credentials_are_withheld(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats a credential, also decoded, finds it nowhere in the result."""
    monkeypatch.setenv("WEB_HEADER", value)

    async def handle(request: Request) -> Answer:
        assert request.headers["authorization"] == value
        told = f"Authorization was {value}, that is canary:{PASSWORD}"
        return Answer(403, told.encode(), {"X-Said": told})

    async with http_server(handle) as port:
        result = await run(
            f"http://127.0.0.1:{port}/",
            headers={"Authorization": {"env": "WEB_HEADER"}},
            expect_status=[403],
            expect_headers={"X-Said": "nothing"},
        )
    shown = "\n".join(result.transcript.lines()) + str(result.as_object())
    assert result.verdict.reason is Reason.HTTP_BODY
    assert PASSWORD not in shown
    assert value.split()[1] not in shown


async def test_a_password_is_withheld_where_no_login_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without a login that has the password, such as an open page of settings, shows it nowhere."""
    monkeypatch.setenv("WEB_PASSWORD", PASSWORD)

    async def handle(_: Request) -> Answer:
        return Answer(200, f"password={PASSWORD}".encode(), {"X-Said": PASSWORD})

    async with http_server(handle) as port:
        result = await run(f"http://127.0.0.1:{port}/", username="canary", password={"env": "WEB_PASSWORD"})
    shown = "\n".join(result.transcript.lines()) + str(result.as_object())
    assert result.verdict.reason is Reason.NONE
    assert PASSWORD not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Cookie", f'lang=de; session={PASSWORD}; csrf="{PASSWORD[::-1]}"'),
        ("Cookie", f"first={'x' * 70}; second={PASSWORD}; " + "; ".join(f"c{n}={n:070}" for n in range(9))),
        ("X-Api-Key", f"{PASSWORD} of the canary"),
        ("X-Login", f"application={'mailsonde-' * 9}; key={PASSWORD}"),
        ("X-Login", "Basic " + base64.b64encode(f"canary:{PASSWORD}".encode()).decode()),
        ("Proxy-Authorization", f"Digest username=canary, response={PASSWORD}"),
    ],
)
async def test_each_part_of_a_secret_field_is_withheld(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that repeats a part of a secret header field, such as one cookie, finds it nowhere."""
    monkeypatch.setenv("WEB_HEADER", value)
    told = f"you said {PASSWORD}"
    result = await answered(
        Answer(200, told.encode(), {"X-Said": told}),
        headers={name: {"env": "WEB_HEADER"}},
        expect_headers={"X-Said": "nothing"},
    )
    shown = "\n".join(result.transcript.lines()) + str(result.as_object())
    assert result.verdict.reason is Reason.HTTP_BODY
    assert "you said" not in shown


async def test_cookies_are_withheld() -> None:
    """A session's cookie is not shown; that there is one is."""
    answer = Answer(200, b"", {"Set-Cookie": "session=0123456789"})
    result = await answered(answer, expect_headers={"Set-Cookie": "X-BackEnd*", "X-None": "*"})
    lines = "\n".join(result.transcript.lines())
    assert "S: set-cookie: (withheld)" in lines
    assert result.verdict.detail == "header field Set-Cookie: (withheld), expected X-BackEnd*"
    assert "0123456789" not in lines + str(result.as_object())


@pytest.mark.parametrize(
    "location",
    [
        "/sign-in?code=0123456789",
        "/sign-in#access_token=0123456789",
        "https://user:0123456789@other.example/",
        "https://other.example:0x/?0123456789",
        "?0123456789",
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"expect_status": [302], "expect_redirect": "*/end"},
        {"follow_redirects": 1},
        {"expect_status": [302], "expect_headers": {"Location": "/end"}},
    ],
)
async def test_urls_are_shown_without_tokens(location: str, settings: dict[str, Any]) -> None:
    """Query, fragment and credentials of a URL of the server are shown nowhere."""
    result = await answered(Answer(302, headers={"Location": location}), **settings)
    assert result.verdict.reason is not Reason.NONE
    assert "0123456789" not in "\n".join(result.transcript.lines()) + str(result.as_object())


async def test_a_body_of_100_mb() -> None:
    """Only the beginning of an endless body is read; what is missing there is said to be."""
    verdict = (await answered(Answer(200, b"x" * 300_000, length=100_000_000), expect_body="OK")).verdict
    assert (verdict.reason, verdict.detail) == (
        Reason.HTTP_BODY,
        "the first 262,144 octets of the body lack 'OK'",
    )


async def test_a_server_that_never_answers() -> None:
    """A silent server ends the run before its deadline, and the detail names the phase."""

    async def handle(_: Request) -> Answer:
        await asyncio.Event().wait()
        return PAGE

    async with http_server(handle) as port:
        verdict = (await run(f"http://127.0.0.1:{port}/", deadline="3s")).verdict
    assert verdict.reason is Reason.COMMAND_TIMEOUT
    assert verdict.detail.startswith("in phase first_byte: ")


@pytest.mark.parametrize(
    ("pattern", "text", "is_found", "is_whole"),
    [
        ("OK", "200 OK", True, False),
        ("*OK", "200 OK", True, True),
        ("2*0*K", "200 OK", True, True),
        ("a*a", "a", False, False),
        ("ab*bc", "abc", False, False),
        ("*", "", True, True),
        ("**", "x", True, True),
        (".", "x", False, False),
        ("b*a", "ab", False, False),
    ],
)
def test_patterns(pattern: str, text: str, is_found: bool, is_whole: bool) -> None:
    """Only the asterisk is special; pieces must follow each other without overlap."""
    assert (occurs(pattern, text), matches(pattern, text)) == (is_found, is_whole)
