"""A page for those who log in by NTLM: pyspnego's server side behind a small web application with TLS."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import spnego
import uvicorn
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.real_servers.dovecot import TlsFiles

PASSWORD = "canary-Pa55word"
ACCOUNT = "FABRIKAM\\canary"


class ExtendedProtection:
    """A page for those who log in on a connection that ends here, as with Windows' setting.

    Without a login, it offers ``schemes``, each on a line of its own.
    """

    def __init__(self, certificate: Path, schemes: Sequence[str] = ("NTLM",)) -> None:
        self._accepting: dict[object, spnego.ContextProxy] = {}
        self._schemes = schemes
        self.connections: list[object] = []
        """The connection of each request."""
        self.said: list[str] = []
        """The credentials in each request."""
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).digest()
        self._bindings = GssChannelBindings(application_data=b"tls-server-end-point:" + digest)

    async def page(self, request: Request) -> Response:
        """Answer a request: 401 with the schemes or a challenge, 401 alone, or the name of the user."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        self.connections.append(request.client)
        self.said.append(token)
        if not token:
            answer = PlainTextResponse("", 401)
            for offered in self._schemes:
                answer.headers.append("WWW-Authenticate", offered)
            return answer
        if scheme == "Basic":
            is_right = base64.b64decode(token).decode() == f"{ACCOUNT}:{PASSWORD}"
            return PlainTextResponse(ACCOUNT if is_right else "", 200 if is_right else 401)
        context = self._accepting.get(request.client)
        if context is None:
            context = self._accepting[request.client] = spnego.server(
                protocol=scheme.lower(),
                options=getattr(spnego.NegotiateOptions, f"use_{scheme.lower()}"),
                channel_bindings=self._bindings,
            )
        try:
            reply = context.step(base64.b64decode(token))
        except SpnegoError as error:
            return PlainTextResponse(type(error).__name__, 401)
        if context.complete:
            return PlainTextResponse(context.client_principal or "", headers={"X-Sent": token})
        challenge = base64.b64encode(reply or b"").decode()
        return PlainTextResponse("", 401, {"WWW-Authenticate": f"{scheme} {challenge}"})


@asynccontextmanager
async def serving(page: ExtendedProtection, tls: TlsFiles) -> AsyncIterator[int]:
    """Serve ``page`` over TLS; yield the port. The accounts are those of the fixture ``accounts``."""
    app = Starlette(routes=[Route("/", page.page)])
    config = uvicorn.Config(app, port=0, http="h11", log_config=None, lifespan="off")
    config.ssl_certfile, config.ssl_keyfile = tls.certificate, tls.key
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()
