"""Who may read the agent's pages: users with passwords, a limit of requests, and header fields.

The rules come from the web configuration file. Its format and behaviour are those of Prometheus'
exporter-toolkit: it takes effect when it changes, without a restart.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import socket
import ssl
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import bcrypt
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.config.document import Mistake
from monitor.config.web_config import RateLimit, WebConfig, files_of, read_web_config
from monitor.state import AgentState
from monitor.web.fairness import RequestLimit
from monitor.web.serving import served
from probes.core.regular_file import FileVersion, version_of

OPEN_PATHS = frozenset({"/-/healthy", "/-/ready"})
"""Paths for orchestrators, which have no password. They say nothing but whether the agent works."""

PASSWORD_OCTETS = 72
"""bcrypt reads no further; tools that make hashes cut longer passwords off here."""

_MOST_REFUSED = 1000
"""Maximum number of refused credentials that are remembered."""

_NOBODY = "Oauhqnbncuqdkes6efzpe.bnyp7LVH3gDL5uHtTVnF8Y9mOVRvtZi"
"""Salt and digest of a hash that takes the place of an unknown user's."""

_log = logging.getLogger("mailsonde.web")


class WebConfigError(Exception):
    """The web configuration cannot be used; the text lists its mistakes."""


class WebConfigInForce:
    """The web configuration: that of its file, or the last valid one while the file is not valid.

    ``state`` is told whether the file is valid.
    """

    def __init__(self, path: Path, state: AgentState) -> None:
        """Read the file at ``path``; raises `WebConfigError`."""
        self._path = path
        self._files = files_of(path)
        self._versions = self._read_versions()
        found = read_web_config(path)
        if not isinstance(found, WebConfig):
            raise WebConfigError(_listed(found))
        self._config = found
        self._state = state
        state.web_config_is_valid = True

    def current(self) -> WebConfig:
        """Return the configuration in force; reads the file again if it or a file that it names changed."""
        versions = self._read_versions()
        if versions != self._versions:
            self._files = files_of(self._path)
            self._versions = self._read_versions()
            self._take(read_web_config(self._path))
        return self._config

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a new connection; there must be one."""
        tls = self.current().tls_server_config
        assert tls is not None  # noqa: S101 # `_take` refuses to switch TLS off
        return tls.context

    def _take(self, found: WebConfig | list[Mistake]) -> None:
        if isinstance(found, WebConfig) and (found.tls_server_config is None) != (
            self._config.tls_server_config is None
        ):
            told = "switching TLS on or off needs a restart of the agent"
            found = [Mistake(self._path, 0, "tls_server_config", told)]
        if isinstance(found, WebConfig):
            self._config = found
            self._state.web_config_is_valid = True
            _log.info("the web configuration %s was read again", self._path)
        else:
            self._state.web_config_is_valid = False
            _log.error("the previous web configuration stays in force, because of: %s", _listed(found))

    def _read_versions(self) -> list[FileVersion | None]:
        return [version_of(path) for path in self._files]


def _listed(mistakes: list[Mistake]) -> str:
    return "; ".join(map(str, mistakes))


class Access:
    """The application ``app`` for those who may read it by the web configuration in force.

    Only `OPEN_PATHS` need no password and count towards no limit.
    """

    def __init__(self, app: ASGIApp, in_force: WebConfigInForce) -> None:
        self._app = app
        self._in_force = in_force
        self._passwords = _Passwords()
        self._bucket = _Bucket()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        config = self._in_force.current()
        own = config.http_server_config.headers.model_dump(by_alias=True, exclude_none=True)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(own)
            await send(message)

        refusal = None
        if scope["path"] not in OPEN_PATHS:
            refusal = await self._refusal(config, Headers(scope=scope).get("authorization", ""))
        await (refusal or self._app)(scope, receive, send_with_headers)

    async def _refusal(self, config: WebConfig, authorization: str) -> Response | None:
        """Return the answer to a request that is not admitted, or None."""
        if config.rate_limit is not None and not self._bucket.admits(config.rate_limit):
            return PlainTextResponse("too many requests; try again later\n", 429, {"retry-after": "1"})
        if not config.basic_auth_users:
            return None
        try:
            if await self._passwords.admit(config.basic_auth_users, authorization):
                return None
        except HTTPException as busy:
            return PlainTextResponse(f"{busy.detail}\n", busy.status_code, busy.headers)
        challenge = {"www-authenticate": 'Basic realm="mailsonde", charset="UTF-8"'}
        return PlainTextResponse("a user name and password are required\n", 401, challenge)


def served_to_the_admitted(
    app: ASGIApp, bound: socket.socket, in_force: WebConfigInForce | None
) -> AbstractAsyncContextManager[None]:
    """Return a context that serves ``app`` on ``bound``, by the web configuration if there is one."""
    if in_force is None:
        return served(app, bound)
    has_tls = in_force.current().tls_server_config is not None
    return served(Access(app, in_force), bound, in_force.context if has_tls else None)


class _Bucket:
    """A token bucket on the event loop's clock."""

    def __init__(self) -> None:
        self._full_at = 0.0  # when all tokens are back

    def admits(self, limit: RateLimit) -> bool:
        """Take a token, and return whether there was one."""
        if limit.interval == 0:
            return True
        now = asyncio.get_running_loop().time()
        full_at = max(self._full_at, now) + limit.interval
        if full_at - now > limit.burst * limit.interval:
            return False
        self._full_at = full_at
        return True


class _Passwords:
    """Checks passwords against bcrypt hashes (RFC 7617), one at a time in a thread.

    A password that was right is recognized at once from then on, whoever tries wrong ones meanwhile. Only
    digests under a key of this process are remembered.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}  # by user: a hash has one password
        self._wrong: dict[bytes, None] = {}  # oldest first
        self._limit = RequestLimit(at_once=1)

    async def admit(self, users: dict[str, SecretStr], authorization: str) -> bool:
        """Return whether user and password are right; raises HTTPException 503 if too many wait."""
        credentials = _credentials(authorization)
        if credentials is None:
            return False
        user, password = credentials
        hashed = users[user].get_secret_value() if user in users else _hash_of_nobody(users)
        digest = self._digest(user, hashed, password)
        if (known := self._known(user, digest)) is not None:
            return known
        async with self._limit:
            if (known := self._known(user, digest)) is not None:  # by a request that was waiting, too
                return known
            is_right = await asyncio.to_thread(_fits, password, hashed) and user in users
        if is_right:
            self._right[user] = digest
        else:
            self._wrong[digest] = None
            if len(self._wrong) > _MOST_REFUSED:
                del self._wrong[next(iter(self._wrong))]
        return is_right

    def _known(self, user: str, digest: bytes) -> bool | None:
        if hmac.compare_digest(self._right.get(user, b""), digest):
            return True
        return False if digest in self._wrong else None

    def _digest(self, user: str, hashed: str, password: bytes) -> bytes:
        parts = (user.encode(), hashed.encode(), password)
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, text, hashlib.sha256)


def _credentials(authorization: str) -> tuple[str, bytes] | None:
    """Return user and password of an Authorization field (RFC 7617 section 2); None if it has none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _hash_of_nobody(users: dict[str, SecretStr]) -> str:
    """Return a hash that takes as long to check as that of a user."""
    cost = max(each.get_secret_value()[4:6] for each in users.values())
    return f"$2b${cost}${_NOBODY}"


def _fits(password: bytes, hashed: str) -> bool:
    try:
        return bcrypt.checkpw(password[:PASSWORD_OCTETS], hashed.encode())
    except ValueError:  # a password with NUL, which some versions refuse
        return False
