"""Token endpoints that are slow, broken or misleading, in front of whole runs: no outage, nothing leaked."""

from __future__ import annotations

import base64
import math
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.credentials import credentials_of
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import ServerSettings, Site
from probes.core.verdict import MessageState, PhaseTimer
from probes.oauth2.settings import MicrosoftOAuth2
from probes.oauth2.tokens import TokenSource, token_sources
from probes.protocols.graph import GraphSession
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.scripted_server import Peer, Script, dialogue, scripted_server
from tests.fakes.token_endpoint import answer
from tests.unit.probes.graph.conftest import ADDRESS, Bench, OpenBench

PIECE = b" " * 64 * 1024
SOUND = {"access_token": "a.b.c", "token_type": "Bearer", "expires_in": 3600}


def saying(octets: bytes) -> Script:
    """Return what answers a request with ``octets``."""

    async def script(peer: Peer) -> None:
        await peer.expect(rb"POST .*")
        await peer.chunks(octets)
        await peer.close()

    return script


async def silent(peer: Peer) -> None:
    await peer.until_closed()


async def trickling(peer: Peer) -> None:
    await peer.expect(rb"POST .*")
    await peer.send(b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Transfer-Encoding: chunked", b"")
    await peer.flood(b"1\r\n \r\n")


async def huge(peer: Peer) -> None:
    await peer.expect(rb"POST .*")
    await peer.send(b"HTTP/1.1 200 OK", b"Content-Length: 100000000", b"")
    for _ in range(100_000_000 // len(PIECE)):
        await peer.chunks(PIECE)


@asynccontextmanager
async def behind(source: TokenSource, script: Script) -> AsyncIterator[None]:
    """Let a token source ask another endpoint during the block."""
    before = source.settings
    assert isinstance(before, MicrosoftOAuth2)
    async with scripted_server(script) as endpoint:
        source.settings = before.model_copy(update={"authority": f"http://127.0.0.1:{endpoint.port}"})
        yield
    source.settings = before


def source_of(made: Bench) -> TokenSource:
    source = made.probe.context.tokens["contoso"]
    assert isinstance(source, TokenSource)
    return source


@pytest.mark.parametrize(
    "script",
    [
        silent,
        trickling,
        huge,
        saying(answer(b"<html>down</html>", 500)),
        saying(answer(b"<html>sign in</html>")),
        saying(answer(SOUND | {"access_token": "x" * 65536})),
        saying(answer(SOUND | {"expires_in": 0})),
        saying(answer(SOUND | {"expires_in": 5})),
        saying(answer(b"")),
    ],
    ids=["silent", "trickling", "100 MB", "500", "HTML", "64 KB", "expired", "too short", "empty"],
)
async def test_a_run_without_a_token_is_no_outage(
    bench: OpenBench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is unknown and sends nothing, in bounded memory; when the endpoint is well, it sends again."""
    monkeypatch.setattr("probes.oauth2.grants.REQUEST_SECONDS", 0.5)
    async with bench() as made:
        tracemalloc.start()
        try:
            async with behind(source_of(made), script):
                verdict = (await made.run()).verdict
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.TOKEN_UNAVAILABLE)
        assert verdict.detail.startswith("in phase token: oauth2 contoso: ")
        assert (made.sent.seen, made.graph.requests) == ({}, [])
        assert most < 8 * 2**20
        made.clock.now += 10.0
        assert (await made.run()).verdict.reason is Reason.NONE


async def test_a_token_for_seconds_is_not_requested_at_each_login(bench: OpenBench) -> None:
    """Tokens that expire before they can be used cost one request each pause, and not one each run."""
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        asked += 1
        await saying(answer(SOUND | {"expires_in": 0.001}))(peer)

    async with bench() as made, behind(source_of(made), script):
        for _ in range(20):
            assert (await made.run()).verdict.reason is Reason.TOKEN_UNAVAILABLE
            made.clock.now += 1.0
    assert 2 <= asked <= 4  # at once, after 5 to 7.5 s, and after 10 to 15 s more


async def test_a_deadline_that_the_endpoint_used_up_is_no_outage() -> None:
    """An endpoint that is slower than the run's deadline ends it in time, as unknown."""
    result = await smtp_run(silent, deadline="200ms")
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, Reason.TOKEN_UNAVAILABLE)
    assert result.verdict.detail == "in phase token: not done after 0.2 s"


async def smtp_run(endpoint: Script, **settings: str) -> Result:
    """Return the result of a probe that logs in to an SMTP server with a token of this endpoint."""
    clock = SystemClock()
    async with scripted_server(endpoint) as tokens, scripted_server(dialogue(b"220 ready")) as server:
        entry = MicrosoftOAuth2.model_construct(
            provider="microsoft",
            tenant="contoso.example",
            client_id="app",
            authority=f"http://127.0.0.1:{tokens.port}",
        )
        sources = token_sources({"contoso": entry}, clock)
        made = server.settings("smtp", username=None)
        mail = ServerSettings.model_construct(**{**dict(made), "username": "canary", "oauth2": "contoso"})
        chosen = SmtpSettings.model_validate({"name": "mail", "kind": "smtp", "server": "mail", **settings})
        probe = Smtp(chosen, Context(clock, Site("here", {"mail": mail}, {}), tokens=sources))
        result = await Runner(clock, "here").run(probe)
        await sources["contoso"].close()
        assert server.received == []
    return result


async def test_a_certificate_file_without_its_key(bench: OpenBench, tmp_path: Path) -> None:
    """No request is made, the run is unknown and says what the file lacks, and later runs are sound."""
    path = tmp_path / "app.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n")
    async with bench() as made:
        source = source_of(made)
        before = source.settings
        source.settings = made.graph.oauth2(client_secret=None, certificate=path)
        verdict = (await made.run()).verdict
        assert verdict.reason is Reason.TOKEN_UNAVAILABLE
        assert verdict.detail.endswith("app.pem contains no private key in PEM; add it to the certificate")
        assert "QUJD" not in verdict.detail
        assert made.graph.entra.issued == 0
        source.settings = before
        made.clock.now += 10.0
        assert (await made.run()).verdict.reason is Reason.NONE


async def test_a_token_for_another_audience(bench: OpenBench) -> None:
    """Graph refuses a token that is for something else: the login failed, and no message was handed over."""
    async with bench() as made:
        token = made.graph.entra.token("https://outlook.office365.com")
        async with behind(source_of(made), saying(answer(SOUND | {"access_token": token}))):
            result = await made.run()
        assert result.verdict.reason is Reason.AUTH_FAILED
        assert result.verdict.detail.startswith("in phase first_byte: 401 InvalidAuthenticationToken")
        assert token[:20] not in f"{result.as_object()} {result.transcript.lines()}"
        assert await made.state() is MessageState.REJECTED
        assert made.graph.sent == []
        made.clock.now += 1.0
        assert (await made.run()).verdict.reason is Reason.NONE


@pytest.mark.parametrize("expires", [10**400, -(10**400), "never", None, [], math.inf, True])
async def test_an_odd_lifetime(bench: OpenBench, expires: object) -> None:
    """Whatever stands for the lifetime, the run ends with a verdict about the token or without a fault."""
    async with bench() as made:
        token = made.graph.entra.token("https://graph.microsoft.com")
        said = answer(SOUND | {"access_token": token, "expires_in": expires})
        async with behind(source_of(made), saying(said)):
            verdict = (await made.run()).verdict
        assert verdict.reason in {Reason.NONE, Reason.TOKEN_UNAVAILABLE}
        assert "Error" not in verdict.detail


async def test_a_proxy_that_repeats_its_password(bench: OpenBench) -> None:
    """A proxy's refusal with the password that it was sent, plain or in base64, shows it nowhere."""

    async def repeating(peer: Peer) -> None:
        while line := await peer.expect(rb".*"):
            if line.lower().startswith(b"proxy-authorization"):
                told = line.split()[-1]
        await peer.send(b"HTTP/1.1 407 proxy-Pa55word " + told, b"Content-Length: 0", b"")
        await peer.close()

    async with bench() as made, scripted_server(repeating) as proxy:
        url = f"http://mailsonde:proxy-Pa55word@127.0.0.1:{proxy.port}"
        await made.run()  # so that there is a token
        await made.polled()
        source = source_of(made)
        source.settings = source.settings.model_copy(update={"proxy": url})
        encrypted = made.graph.settings(tls="implicit", allow_insecure_auth=False)
        credentials = credentials_of(encrypted, {"contoso": source})
        assert credentials is not None
        session = GraphSession(encrypted, ADDRESS, credentials, PhaseTimer(made.clock), made.clock)
        with pytest.raises(ProbeFault) as caught:
            await session.newest("inbox", 0.0, 5, [])
        await session.close()
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    coded = base64.b64encode(b"mailsonde:proxy-Pa55word").decode()
    assert "Pa55word" not in f"{caught.value} {caught.value.__cause__}"
    assert coded not in str(caught.value)
