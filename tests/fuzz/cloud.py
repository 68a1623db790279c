"""Targets for answers in JSON: of Microsoft Graph, and of token endpoints with the tokens in them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from probes.core.credentials import Resource
from probes.core.faults import ProbeFault
from probes.core.secret import BearerToken
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.graph import GraphMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.oauth2 import grants
from probes.oauth2.refusals import claims_of, remarks
from probes.protocols.graph import GraphSession
from probes.protocols.https import Response
from tests.fakes.clock import InstantClock
from tests.fuzz.target import Target, or_fault, require_shown
from tests.fuzz.wire import ECHO, TURN

TOKEN = "eyJ0eXAi.s3cret-Pa55word-of-a-mailbox.in-the-cloud"
ADDRESS = "canary@example.com"
RESOURCE = "https://outlook.office365.com"
_BASE = f"http://192.0.2.1:80/v1.0/users/{ADDRESS}/"
_SERVER = ServerSettings.model_validate(
    {"protocol": "graph", "host": "192.0.2.1", "tls": "none", "allow_insecure_auth": True, "oauth2": "it"}
)
_MAILBOX = MailboxSettings.model_construct(
    address=ADDRESS, server="graph", username=ADDRESS, oauth2="it", folder="Probes"
)


class _Tokens:
    """Issues one token."""

    proxy = None

    async def token(self, resource: Resource, username: str, phases: PhaseTimer) -> BearerToken:
        return BearerToken(TOKEN)


class _Client:
    """Takes the place of an HTTP client: a request gets the next turn, which is a status and a body."""

    def __init__(self, turns: list[bytes]) -> None:
        self._turns = turns

    async def __aexit__(self, *_: object) -> None: ...

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | None,
        limit: int,
        before_content: Callable[[], None],
    ) -> Response:
        assert url.startswith((_BASE, "http://192.0.2.1:80/", "http://192.0.2.1/")), f"asks another: {url}"
        assert TOKEN not in url
        if content:
            before_content()
        status, _, body = (self._turns.pop(0) if self._turns else b"200 {}").partition(b" ")
        code = int(status) if len(status) == 3 and status.isdigit() else 200
        body = body.replace(ECHO, headers["authorization"].encode())
        return Response(url, code, (), body[:limit], len(body) > limit, None)


class _Mailbox(GraphMailbox):
    """A mailbox with answers from memory, over all sessions."""

    client: _Client

    def _open(self, phases: PhaseTimer) -> GraphSession:
        session = super()._open(phases)
        session._client = self.client  # type: ignore[assignment] # it has what the session uses
        return session


def _require_harmless(text: str, limit: int = 300) -> None:
    require_shown(text, limit)
    assert "pa55word" not in text.casefold(), f"shows a token: {text!r}"


def graph_mailbox(octets: bytes) -> None:
    """Poll a mailbox through Graph and its junk folder twice, and use every operation on each copy."""
    clock, tokens = InstantClock(), {"it": _Tokens()}
    mailbox = _Mailbox(_MAILBOX, _SERVER, clock, LoginBudget(60000.0, clock), 7 * 86400.0, tokens)
    mailbox.client = _Client(octets.split(TURN))
    asyncio.run(_polled(mailbox))


async def _polled(mailbox: GraphMailbox) -> None:
    for afresh in (False, True):
        phases = PhaseTimer(mailbox._clock)
        try:
            async with mailbox.poll(phases, afresh=afresh) as folders:
                for opened in folders:
                    folder = await opened()
                    known: dict[str, bytes] = {}
                    async for found in folder.identify(folder.uids[:5]):
                        known |= found
                    for whole in (False, True):
                        async for contents in folder.contents(dict.fromkeys(known, 2000), whole=whole):
                            assert contents.keys() <= known.keys()
                    await folder.delete(list(known))
        except ProbeFault as fault:
            _require_harmless(fault.detail)
        _require_harmless(mailbox.doubt, 2000)
        for line in phases.transcript.lines():
            _require_harmless(line)
    await mailbox.close()


def graph_sending(octets: bytes) -> None:
    """Send a message through Graph: it was accepted, or a fault says what became of it."""
    clock, tokens = InstantClock(), _Tokens()
    credentials = SimpleNamespace(
        source=tokens, proxy=None, secret=lambda phases: tokens.token("graph", "", phases)
    )
    session = GraphSession(_SERVER, ADDRESS, credentials, PhaseTimer(clock), clock)  # type: ignore[arg-type] # as above
    session._client = _Client([octets])  # type: ignore[assignment] # as above
    accepted = or_fault(asyncio.run, session.send(b"Subject: x\r\n\r\n.\r\n"))
    assert accepted is None or 200 <= accepted.code < 300
    for line in session._phases.transcript.lines():
        _require_harmless(line)
    assert session.content_sent_at is not None


def token_answer(octets: bytes) -> None:
    """Read a token endpoint's answer, and what the token in it says."""
    for status in (200, 400, 503):
        response = Response(
            "https://login.example/token", status, (), octets[:8192], len(octets) > 8192, None
        )
        answer = or_fault(grants._answer, response)
        grant = None if answer is None else or_fault(grants._grant, answer)
        if grant is not None:
            assert 0 < grant.lifetime <= 86400
            assert 0 < len(grant.token) <= grants.TOKEN_LIMIT
            assert grant.token.isascii()
            assert grant.token.isprintable()
            _remarked(grant.token)


def token_claims(octets: bytes) -> None:
    """Read a token whose claims are ``octets``."""
    _remarked(f"e30.{base64.urlsafe_b64encode(octets).decode().rstrip('=')}.c2ln")


def _remarked(token: str) -> None:
    claims = claims_of(token)
    found = list(remarks(claims, RESOURCE, frozenset({"IMAP.AccessAsApp"}), 1.7e9))
    assert len(found) <= 4
    for detail, remedy in found:
        require_shown(detail, 300)
        assert remedy


def _json(status: int, content: object) -> bytes:
    return b"%d %s" % (status, json.dumps(content).encode())


def _entry(number: int, **fields: str) -> dict[str, Any]:
    headers = [{"name": name.replace("_", "-"), "value": value} for name, value in fields.items()]
    known = {"id": f"AAk{number}=", "subject": "x", "receivedDateTime": "2023-11-14T22:13:20Z"}
    return {**known, "internetMessageHeaders": headers}


_FOLDER = _json(200, {"value": [{"id": "AAMk="}]})
_LISTS = (
    _json(200, {"value": [_entry(1, Subject="x"), _entry(2, X_Mailsonde_Token="mailsonde1:a:b:c:d")]}),
    _json(
        200, {"value": [_entry(3)], "@odata.nextLink": "http://192.0.2.1:80/v1.0/users/x/messages?$skip=1"}
    ),
    _json(200, {"value": [{"id": "AAk4=", "internetMessageHeaders": None}, 7, {"id": 8}]}),
    _json(200, {"value": [], "@odata.nextLink": "https://evil.example/v1.0"}),
)
_ERROR = _json(429, {"error": {"code": "ErrorAccessDenied", "message": "said " + ECHO.decode()}})
_WORDS = (
    *(b'"value":', b'"id":', b'"internetMessageHeaders":', b'"name":', b'"@odata.nextLink":', b'"error":'),
    *(b"{", b"}", b"[", b"]", b'"', b"null", b"9999-12-31T23:59:59Z", b"1e999", b"NaN", b"9" * 400),
    *(b"\\ud800", b"\\u0000", b"\\r\\n", TURN, ECHO, b"403 ", b"404 ", b"503 ", b"200 "),
)
_CLAIMS = (
    {"aud": RESOURCE, "roles": ["IMAP.AccessAsApp", "Mail.Read"], "iat": 1_700_000_000},
    {"aud": ["https://else.example", 7], "scp": "Mail.Read IMAP.AccessAsUser.All", "iat": 1.5},
    {"aud": {}, "roles": [{}, "Mail.\x1b[2J", None], "iat": 10**400},
)
_WORDS_OF_CLAIMS = (
    *(b'"aud":', b'"roles":', b'"scp":', b'"iat":', b"https://", b"Mail.", b'"', b"[", b"{", b","),
    *(b"9" * 400, b"1e999", b"NaN", b"true", b"null", b"\\u001b", b"\\ud800"),
)
_ISSUED = {"access_token": "e30.eyJhdWQiOjF9.c2ln", "token_type": "Bearer", "expires_in": 3599}
_WORDS_OF_TOKENS = (
    *(b'"access_token":', b'"expires_in":', b'"token_type":', b'"error":', b'"error_description":'),
    *(b"Bearer", b"9" * 400, b"-1", b"1e999", b"NaN", b"null", b"true", b"invalid_client", b"AADSTS7000222"),
)

TARGETS = (
    Target(
        "graph_mailbox",
        graph_mailbox,
        (
            TURN.join(
                (_FOLDER, _LISTS[0], b"200 Subject: x\r\n\r\ntext", b"200 x", b"204 ", b"204 ", *_LISTS)
            ),
            TURN.join((_FOLDER, _LISTS[1], _LISTS[2], b"200 a: b\r\n\r\n", _ERROR, _FOLDER, _LISTS[3])),
            TURN.join((_FOLDER, _LISTS[3], _FOLDER, _LISTS[3])),
            TURN.join((_FOLDER, _ERROR, b"404 {}", b"500 <html>")),
        ),
        _WORDS,
        16 * 1024,
    ),
    Target("graph_sending", graph_sending, (b"202 ", _ERROR, b"504 <html>", b"401 {}"), _WORDS),
    Target(
        "token_answer",
        token_answer,
        tuple(
            json.dumps(said).encode()
            for said in (_ISSUED, {**_ISSUED, "expires_in": 10**400}, {"error": "x"})
        ),
        _WORDS_OF_TOKENS,
    ),
    Target(
        "token_claims",
        token_claims,
        tuple(json.dumps(said).encode() for said in _CLAIMS),
        _WORDS_OF_CLAIMS,
    ),
)
