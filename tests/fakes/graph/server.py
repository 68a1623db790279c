"""Mailboxes behind Microsoft Graph, scripted from its documentation.

It enforces permissions, the limits of requests, and the names of header fields in JSON. ``break_next`` and
``answer_next`` make single requests go wrong.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.utils import getaddresses
from urllib.parse import urlencode

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.settings import ServerSettings
from probes.oauth2.settings import MicrosoftOAuth2
from tests.fakes.graph.entra import Entra
from tests.fakes.graph.http import HANG_UP, Answer, Request, http_server
from tests.fakes.graph.tenant import Tenant

RESOURCE = "https://graph.microsoft.com"
FOLDERS = ("inbox", "junkemail", "deleteditems", "sentitems")
_AFTER = re.compile(r"receivedDateTime ge (\S+)")
_NAMED = re.compile(r"displayName eq '((?:[^']|'')*)'")


def _error(status: int, code: str, text: str, **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"error": {"code": code, "message": text, "innerError": {}}}, fields)


_DENIED = _error(403, "ErrorAccessDenied", "Access is denied. Check credentials and try again.")
_GONE = _error(404, "ErrorItemNotFound", "The specified object was not found in the store.")


def _untouched(raw: bytes) -> bytes:
    return raw


def _nothing(request: Request) -> None:
    del request


@dataclass
class Item:
    """A message in a folder, visible from a monotonic time on."""

    raw: bytes
    folder: str
    visible_at: float
    received: float
    id: str = field(default_factory=lambda: f"AAkALg{secrets.token_urlsafe(90)}=")


@dataclass
class GraphDouble:
    """The mailboxes of a tenant by address, and what clients did to them."""

    clock: Clock
    entra: Entra
    port: int = 0
    token_port: int = 0
    is_encrypted: bool = False
    mailboxes: dict[str, list[Item]] = field(default_factory=lambda: {"canary@contoso.com": []})
    named: dict[str, str] = field(default_factory=dict)  # ids of other folders by display name
    granted: set[str] | None = None  # the mailboxes that the application may use; None: all
    delay: float = 0.0  # seconds until a message is visible
    folder: str = "inbox"  # where messages arrive
    copies: int = 1
    on_the_way: Callable[[bytes], bytes] = _untouched
    has_permanent_delete: bool = True
    saves_sent: bool = True  # whether sendMail leaves a copy in Sent Items
    most_requests: int = 10_000
    throttled_until: float = float("-inf")
    requests: list[str] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # ids of messages that were deleted
    answer_next: deque[Answer | object] = field(default_factory=deque)  # in place of the next answers
    instead: Callable[[Request], Answer | object | None] = _nothing
    is_answer_lost: bool = False  # whether the answer to sendMail never comes
    tenant: Tenant = field(init=False)
    most_at_a_time: int = 0
    _at_a_time: int = 0
    _recent: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.tenant = Tenant(self.clock)

    @property
    def url(self) -> str:
        return f"{'https' if self.is_encrypted else 'http'}://127.0.0.1:{self.port}"

    def settings(self, **more: object) -> ServerSettings:
        """Return the settings of this server."""
        tls = {"tls": "implicit"} if self.is_encrypted else {"tls": "none", "allow_insecure_auth": True}
        entry = {"protocol": "graph", "host": "127.0.0.1", "port": self.port, "oauth2": "contoso"}
        return ServerSettings.model_validate({**entry, **tls, **more})

    def oauth2(self, **more: object) -> MicrosoftOAuth2:
        """Return the settings of its tokens, with the application's secret."""
        given = {
            "client_id": self.entra.client_id,
            "client_secret": SecretStr(self.entra.secret),
            "authority": self.entra.url,
            **more,
        }
        return MicrosoftOAuth2.model_construct(provider="microsoft", tenant=self.entra.tenant, **given)

    def put(
        self, raw: bytes, folder: str = "inbox", address: str = "canary@contoso.com", delay: float = 0.0
    ) -> Item:
        """Let a message arrive."""
        item = Item(raw, folder, self.clock.monotonic() + delay, float(int(self.clock.time() + delay)))
        self.mailboxes[address].append(item)
        return item

    def throttle(self, seconds: float) -> None:
        """Refuse all requests for some seconds, with Retry-After."""
        self.throttled_until = self.clock.monotonic() + seconds

    async def answer(self, request: Request) -> Answer | object:
        """Answer a request as Graph does, or as scripted."""
        self.requests.append(f"{request.method} {'/'.join(request.path[3:])}")
        self.asked_at.append(self.clock.monotonic())
        self._at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            if self.answer_next:
                return self.answer_next.popleft()
            if (scripted := self.instead(request)) is not None:
                return scripted
            return self._throttling() or self._answer(request)
        finally:
            self._at_a_time -= 1

    def _throttling(self) -> Answer | None:
        now = self.clock.monotonic()
        while self._recent and self._recent[0] <= now - 600:
            self._recent.popleft()
        self._recent.append(now)
        left = self.throttled_until - now
        if len(self._recent) > self.most_requests:
            left = max(left, self._recent[0] + 600 - now)
        if self._at_a_time > 4:
            left = max(left, 1.0)
        if left <= 0:
            return None
        return _error(
            429,
            "ApplicationThrottled",
            "Application is over its MailboxConcurrency limit.",
            Retry_After=str(int(left) + 1),
        )

    def _answer(self, request: Request) -> Answer | object:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        claims = self.entra.claims(token, RESOURCE) if scheme == "Bearer" else None
        if claims is None:
            return _error(401, "InvalidAuthenticationToken", "Access token validation failure.")
        if request.path[:2] == ["v1.0", "admin"]:
            return self.tenant.answer(request, set(claims["roles"]))
        version, users, address, *rest = request.path
        if (version, users) != ("v1.0", "users"):
            return _error(400, "BadRequest", "Resource not found for the segment.")
        if address not in self.mailboxes:
            return _error(404, "ErrorInvalidUser", f"The requested user '{address}' is invalid.")
        if self.granted is not None and address not in self.granted:
            return _DENIED
        roles = set(claims["roles"])
        if request.method == "POST" and rest == ["sendMail"]:
            return self._send(request) if "Mail.Send" in roles else _DENIED
        needed = {"Mail.ReadWrite"} | ({"Mail.Read"} if request.method == "GET" else set())
        if not roles & needed:
            return _DENIED
        return self._mailbox(request, self.mailboxes[address], rest)

    def _send(self, request: Request) -> Answer | object:
        if request.headers.get("content-type") == "text/plain":
            try:
                raw = base64.b64decode(request.body, validate=True)
            except binascii.Error:
                return _error(400, "ErrorMimeContentInvalidBase64String", "Invalid base64 string.")
        else:
            fields = json.loads(request.body)["message"].get("internetMessageHeaders", [])
            wrong = [one["name"] for one in fields if not one["name"].lower().startswith("x-")]
            if wrong:
                text = f"The internet message header name '{wrong[0]}' should start with 'x-' or 'X-'."
                return _error(400, "InvalidInternetMessageHeader", text)
            return Answer(202)
        message = message_from_bytes(raw)
        self.sent.append(raw)
        if self.saves_sent:
            self.put(raw, "sentitems", request.path[2])
        for _, address in getaddresses(message.get_all("To", [])):
            if address in self.mailboxes:
                for _ in range(self.copies):
                    self.put(self.on_the_way(raw), self.folder, address, self.delay)
        return HANG_UP if self.is_answer_lost else Answer(202)

    def _mailbox(self, request: Request, items: list[Item], rest: list[str]) -> Answer:
        if rest == ["mailFolders"]:
            named = _NAMED.match(request.query.get("$filter", ""))
            found = self.named.get(named[1].replace("''", "'")) if named else None
            return Answer(200, {"value": [{"id": found}] if found else []})
        if rest[0] == "mailFolders" and rest[2:] == ["messages"]:
            if rest[1] not in {*FOLDERS, *self.named.values()}:
                return _GONE
            return self._list(request, [item for item in items if item.folder == rest[1]])
        item = next((one for one in items if rest[0] == "messages" and one.id == rest[1]), None)
        if item is None or item.visible_at > self.clock.monotonic():
            return _GONE
        if rest[2:] == ["$value"]:
            return Answer(200, item.raw, {"Content-Type": "text/plain"})
        if request.method == "DELETE":
            item.folder = "deleteditems"
        elif rest[2:] == ["permanentDelete"] and self.has_permanent_delete:
            items.remove(item)
        else:
            return _error(400, "BadRequest", "Resource not found for the segment 'permanentDelete'.")
        self.removed.append(item.id)
        return Answer(204)

    def _list(self, request: Request, items: list[Item]) -> Answer:
        query = request.query
        after = _AFTER.match(query.get("$filter", ""))
        since = datetime.fromisoformat(after[1]).timestamp() if after else 0.0
        now = self.clock.monotonic()
        shown = [item for item in items if item.visible_at <= now and item.received >= since]
        shown.sort(key=lambda item: -item.received)
        top, skip = int(query.get("$top", "10")), int(query.get("$skip", "0"))
        answer: dict[str, object] = {
            "@odata.context": f"{self.url}/v1.0/$metadata",
            "value": [self.selected(item, query) for item in shown[skip : skip + top]],
        }
        if len(shown) > skip + top:
            path = "/".join(request.path)
            answer["@odata.nextLink"] = f"{self.url}/{path}?{urlencode({**query, '$skip': str(skip + top)})}"
        return Answer(200, answer)

    def selected(self, item: Item, query: Mapping[str, str]) -> dict[str, object]:
        """Return a message with the fields that were asked for, and its etag."""
        names = query["$select"].split(",")
        return {name: value for name, value in self.entry(item).items() if name in (*names, "@odata.etag")}

    @staticmethod
    def entry(item: Item) -> dict[str, object]:
        """Return a message as a list shows it, with a field that nobody knows."""
        message = message_from_bytes(item.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        received = datetime.fromtimestamp(item.received, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "@odata.etag": 'W/"CQAAABYAAA"',
            "id": item.id,
            "subject": str(message.get("Subject", "")),
            "receivedDateTime": received,
            "internetMessageHeaders": [
                {"name": name, "value": str(value)} for name, value in message.items()
            ],
        }


@asynccontextmanager
async def graph_double(clock: Clock, context: ssl.SSLContext | None = None) -> AsyncIterator[GraphDouble]:
    """Serve Graph and its token endpoint on free ports of loopback; Graph by TLS with a ``context``."""
    entra = Entra(clock)
    double = GraphDouble(clock, entra, is_encrypted=context is not None)
    async with AsyncExitStack() as stack:
        token_port = await stack.enter_async_context(http_server(entra.answer))
        entra.url = f"http://127.0.0.1:{token_port}"
        double.port = await stack.enter_async_context(http_server(double.answer, context))
        yield double
