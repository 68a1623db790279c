"""Mail through Microsoft Graph: the requests of API version 1.0, and what its answers mean."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Credentials, Tokens, credentials_of
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.secret import BearerToken
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.connection_limits import Slot
from probes.protocols.http_shown import shown_url
from probes.protocols.https import HttpClient, Response, origin_of, proxy_for
from probes.protocols.replies import diagnose
from probes.protocols.request_limits import limits_of

GRAPH_PAGE_LIMIT = 2**20
"""Maximum octets of a page of a list. It is parsed in one piece, which delays everything else."""

ID_LIMIT = 500
"""Maximum characters of an id; those of messages have about 150."""

_HEADERS = "internetMessageHeaders"
_FIELDS = f"id,subject,receivedDateTime,{_HEADERS}"
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_STEADY_IDS = MappingProxyType({"prefer": 'IdType="ImmutableId"'})  # else an id changes with its folder
_ID = re.compile(rf"[!-~]{{1,{ID_LIMIT}}}")
_NAME = re.compile(r"[!-9;-~]{1,100}")  # RFC 5322 section 2.2
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a message that Graph took."""

    code: int
    enhanced_status_code: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """One message of a list.

    ``received`` is in unix seconds, in whole seconds by Exchange's clock. ``fields`` is a header section with
    the fields that were asked for; ``None`` if Graph did not show the message's header fields.
    """

    id: str
    received: float
    fields: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, and where the next one is."""

    messages: tuple[Listed, ...]
    next_link: str | None
    unreadable: int
    """Number of entries that are no messages."""


class GraphSession:
    """Requests about one mailbox, one at a time, on a connection that stays open between them.

    Methods raise `ProbeFault`. What another request of the same application and mailbox was told about
    throttling counts here too.
    """

    def __init__(
        self,
        server: ServerSettings,
        mailbox: str,
        credentials: Credentials,
        phases: PhaseTimer,
        clock: Clock,
        slot: Slot | None = None,
    ) -> None:
        scheme = "http" if server.tls == "none" else "https"
        host = f"[{server.host}]" if ":" in server.host else server.host
        self._api = f"{scheme}://{host}:{server.port}/v1.0"
        self._base = f"{self._api}/users/{quote(mailbox, safe='@')}"
        self._credentials = credentials
        self._phases = phases
        self._clock = clock
        self._limits = limits_of(credentials.source, mailbox, clock)
        self._client = HttpClient(
            phases,
            seconds=server.timeout,
            ca=server.tls_ca,
            tls_name=server.tls_server_name,
            proxy=proxy_for(self._base, credentials.proxy),
            family=server.family,
            slot=slot,
        )
        self._token = ""
        self._has_answered = False
        self.asked_at = float("-inf")
        """Monotonic time right before the latest request."""
        self.content_sent_at: float | None = None
        """Monotonic time right before the content of the latest request was sent, if it was."""

    async def close(self) -> None:
        """Close the connection."""
        await self._client.__aexit__()

    async def folder_id(self, name: str) -> str:
        """Return the id of the folder with a display name; the fault for none is `GRAPH_NOT_FOUND`."""
        query = {"$filter": f"displayName eq '{name.replace(chr(39), 2 * chr(39))}'", "$select": "id"}
        answer = await self._ask("GET", f"{self._base}/mailFolders?{_query(query)}")
        found = entries_of(answer.json_object())
        identity = found[0].get("id") if found and isinstance(found[0], dict) else None
        if not isinstance(identity, str) or not _ID.fullmatch(identity):
            raise ProbeFault(Reason.GRAPH_NOT_FOUND, f"no folder {legible(name, 80)!r}")
        return identity

    async def newest(self, folder: str, since: float, most: int, names: Collection[str]) -> Page:
        """Return up to ``most`` messages of a folder, newest first, received at or after a unix time.

        ``folder`` is an id or a well-known name; ``names`` are the header fields to return.
        """
        after = datetime.fromtimestamp(max(0.0, since), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        query = {
            "$select": _FIELDS,
            "$filter": f"receivedDateTime ge {after}",
            "$orderby": "receivedDateTime desc",
            "$top": str(most),
        }
        path = f"/mailFolders/{quote(folder, safe='')}/messages?{_query(query)}"
        return await self.page(self._base + path, names)

    async def page(self, url: str, names: Collection[str]) -> Page:
        """Return the page of a list at ``url``, from a `Page.next_link`. Another host is never asked.

        A page that is too large comes without header fields.
        """
        try:
            is_same = origin_of(url) == origin_of(self._base)
        except ValueError:
            is_same = False
        if not is_same:
            with self._phases.phase("body"):  # names the phase, and redacts the server's text
                raise ProbeFault(Reason.PROTOCOL_ERROR, f"the next page is elsewhere: {shown_url(url, 80)}")
        try:
            answer = await self._page_object(url)
        except ProbeFault as fault:
            brief = _without_headers(url)
            if fault.reason is not Reason.RESPONSE_TOO_LARGE or brief == url:
                raise
            answer = await self._page_object(brief)
        entries = entries_of(answer)
        messages = tuple(listed for entry in entries if (listed := listed_of(entry, names)) is not None)
        link = answer.get("@odata.nextLink")
        return Page(messages, link if isinstance(link, str) else None, len(entries) - len(messages))

    async def _page_object(self, url: str) -> dict[str, Any]:
        return (await self._ask("GET", url, headers=_STEADY_IDS, limit=GRAPH_PAGE_LIMIT)).json_object()

    async def content(self, message: str, limit: int) -> tuple[bytes, bool]:
        """Return up to ``limit`` octets of a message, and whether there are more."""
        response = await self._ask(
            "GET", f"{self._message(message)}/$value", headers=_STEADY_IDS, limit=limit
        )
        return response.body, response.is_cut

    async def delete(self, message: str, *, permanently: bool) -> None:
        """Remove a message, or move it to Deleted Items."""
        url = self._message(message)
        if permanently:
            await self._ask("POST", f"{url}/permanentDelete", headers=_STEADY_IDS, content=b"")
        else:
            await self._ask("DELETE", url, headers=_STEADY_IDS)

    async def send(self, content: bytes) -> Accepted:
        """Send a message in MIME format; its header has sender and recipient."""
        response = await self._ask(
            "POST",
            f"{self._base}/sendMail",
            headers={"content-type": "text/plain"},
            content=base64.b64encode(content),
        )
        return Accepted(response.status)

    async def about_tenant(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str], limit: int
    ) -> dict[str, Any]:
        """Return the object at ``path``, which is about the whole tenant, of up to ``limit`` octets."""
        url = f"{self._api}/{path}?{_query(query)}"
        return (await self._ask("GET", url, headers=headers, limit=limit)).json_object()

    def _message(self, message: str) -> str:
        return f"{self._base}/messages/{quote(message, safe='')}"

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        content: bytes | None = None,
        limit: int = 64 * 1024,
    ) -> Response:
        secret = await self._credentials.secret(self._phases)
        token = secret.get_secret_value()
        if token != self._token:
            self._token = token
            self._phases.transcript.redaction.add_token(token)
        fields = {**headers, "authorization": f"Bearer {token}"}
        self.content_sent_at = None
        async with self._limits.request(self._phases):
            for is_again in (False, True):
                self.asked_at = self._clock.monotonic()
                try:
                    response = await self._client.request(
                        method,
                        url,
                        headers=fields,
                        content=content,
                        limit=limit,
                        before_content=self._note_content,
                    )
                    break
                except ProbeFault as fault:
                    # Graph closes idle connections, perhaps in the very moment of a request.
                    is_stale = self._has_answered and fault.reason is Reason.CONNECTION_LOST
                    if is_again or not is_stale or method != "GET":
                        raise
                    self._has_answered = False
        self._has_answered = True
        if not response.is_success:
            with self._phases.phase("first_byte"):  # names the phase, and redacts the server's text
                raise self._refusal(response, secret)
        return response

    def _note_content(self) -> None:
        self.content_sent_at = self._clock.monotonic()

    def _refusal(self, response: Response, secret: object) -> ProbeFault:
        code, text = _error(response)
        status = response.status
        found = diagnose("graph", str(status), text, Reason.GRAPH_ERROR, code)
        fault = ProbeFault(found.reason, f"{status} {code} {text}".rstrip(), remedy=found.remedy)
        if status == 503 and response.retry_after is not None:
            fault = ProbeFault(Reason.THROTTLED, fault.detail)
        if fault.reason is Reason.THROTTLED:
            fault.retry_after = self._limits.pause(response.retry_after)
        if status == 401 and isinstance(secret, BearerToken):
            secret.refuse()
        # 500, 502 and 504 may come from a gateway in front of a server that did what it was asked.
        if fault.reason is Reason.THROTTLED or status == 503:
            fault.refusal = "temporary"
        elif 300 <= status < 500:
            fault.refusal = "permanent"
        return fault


class GraphSubmission:
    """Hands messages over through Graph; see `probes.delivery.submission.SendingSession`."""

    def __init__(
        self,
        server: ServerSettings,
        credentials: Credentials,
        phases: PhaseTimer,
        clock: Clock,
        slot: Slot | None,
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._phases = phases
        self._clock = clock
        self._slot = slot
        self._session: GraphSession | None = None

    @property
    def dot_sent_at(self) -> float | None:
        """Monotonic time right before the message was sent, if it was."""
        return self._session.content_sent_at if self._session is not None else None

    async def send(self, sender: str, recipient: str, content: bytes, envelope_id: str) -> Accepted:  # noqa: ARG002 # the message has them
        """Send the message in the name of the server's username or of ``sender``; raises `ProbeFault`."""
        mailbox = self._server.username or sender
        slot, self._slot = self._slot, None
        await self.close()
        self._session = GraphSession(
            self._server, mailbox, self._credentials, self._phases, self._clock, slot
        )
        self._phases.transcript.note(f"the message: {len(content):,} octets")
        return await self._session.send(content)

    async def quit(self) -> None:
        """Do nothing: HTTP has no such command."""

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()


@asynccontextmanager
async def graph_submission(
    server: ServerSettings,
    phases: PhaseTimer,
    clock: Clock,
    slot: Slot | None = None,
    tokens: Tokens = NO_TOKENS,
) -> AsyncIterator[GraphSubmission]:
    """Open a session for the block; the connection is opened with the message."""
    credentials = credentials_of(server, tokens)
    assert credentials is not None  # noqa: S101 # as its settings require
    await credentials.secret(phases)  # so that none of its time counts as Graph's
    session = GraphSubmission(server, credentials, phases, clock, slot)
    try:
        yield session
    finally:
        await session.close()


def _query(parameters: Mapping[str, str]) -> str:
    return urlencode(parameters, quote_via=quote, safe="$,")


def _without_headers(url: str) -> str:
    """Return the address of the same list without header fields."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    names = query.get("$select", "").split(",")
    if _HEADERS not in names:
        return url
    query["$select"] = ",".join(name for name in names if name != _HEADERS)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, _query(query), parts.fragment))


def entries_of(answer: Mapping[str, Any]) -> list[Any]:
    """Return the entries of a list; raises `ProbeFault` if the answer is none."""
    entries = answer.get("value")
    if not isinstance(entries, list):
        raise ProbeFault(Reason.PROTOCOL_ERROR, "the answer has no list of entries")
    return entries


def _error(response: Response) -> tuple[str, str]:
    """Return the code and message of an error; empty if the answer is something else."""
    try:
        error = json.loads(response.body).get("error", {})
        code, text = error.get("code", ""), error.get("message", "")
    except (ValueError, RecursionError, AttributeError):
        return "", ""
    return legible(str(code), 80), legible(str(text), 250)


def listed_of(entry: object, names: Collection[str]) -> Listed | None:
    """Return a message from its entry in a list, with the header fields ``names``; ``None`` if it is none."""
    if not isinstance(entry, dict):
        return None
    identity, received, fields = (
        entry.get("id"),
        entry.get("receivedDateTime"),
        entry.get("internetMessageHeaders"),
    )
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        return None
    try:
        at = datetime.fromisoformat(received).timestamp() if isinstance(received, str) else 0.0
    except (ValueError, OverflowError):
        at = 0.0
    if not isinstance(fields, list):
        return Listed(identity, at, None)
    wanted = {name.lower() for name in names}
    found = dict(_fields_in(fields, wanted))
    lines = [b"%s: %s\r\n" % pair for pair in found.values()]
    subject = entry.get("subject")
    if isinstance(subject, str) and "subject" in wanted - found.keys():
        lines.append(b"Subject: %s\r\n" % _octets(subject))
    return Listed(identity, at, b"".join(lines) + b"\r\n")


def _fields_in(fields: list[Any], wanted: Collection[str]) -> Iterator[tuple[object, tuple[bytes, bytes]]]:
    """Yield header fields as name and value, each with a key that is the name for the first of its name."""
    seen = set[str]()
    for position, field in enumerate(fields):
        name, value = (field.get("name"), field.get("value")) if isinstance(field, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(value, str) or not _NAME.fullmatch(name):
            continue
        key = name.lower()
        if key in wanted:
            yield (position if key in seen else key), (name.encode(), _octets(value))
            seen.add(key)


def _octets(value: str) -> bytes:
    """Return a field's value on one line."""
    return _CONTROLS.sub(" ", value).encode("utf-8", "replace")
