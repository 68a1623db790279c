"""The application that the agent serves over HTTP: metrics, whether it lives and works, and the pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from monitor.web.fairness import RequestLimit
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint

SHARED_FOR = 1.0
"""Seconds that a text of the metrics is for all who ask, from when it is begun, or until it is made."""

_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d*)?")  # RFC 9110 section 7.2


class _Metrics:
    """The metrics as text, in at most two formats at once: a text takes much work and memory."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        self._limit = RequestLimit(at_once=2)
        self._texts: dict[str, asyncio.Task[bytes]] = {}  # by content type

    async def answer(self, request: Request) -> Response:
        """Answer in the format that is asked for, or in Prometheus' text format 0.0.4."""
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # a version that is no number
            encode, content_type = choose_encoder("")
        if content_type not in self._texts:
            self._texts[content_type] = asyncio.create_task(self._text(encode, content_type), name="metrics")
        # Shielded, for it is not this client's alone.
        text = await asyncio.shield(self._texts[content_type])
        return Response(text, headers={"content-type": content_type})

    async def _text(self, encode: Callable[[Collector], bytes], content_type: str) -> bytes:
        loop = asyncio.get_running_loop()
        shared_until = loop.time() + SHARED_FOR
        try:
            async with self._limit:
                # On another thread: with thousands of probes the text takes longer than a probe can wait.
                return await asyncio.to_thread(encode, self._registry)
        finally:
            loop.call_at(shared_until, self._texts.pop, content_type)


class _OwnNames:
    """Lets in who calls the agent by an IP address, localhost or one of ``names``; else HTTPException 421.

    A foreign page could otherwise read all that a browser here may read, under a name that its owner
    makes resolve to the agent's address (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = {"localhost", *(_canonical(name) for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host")
        if host is not None and not self._is_own(host):  # every browser sends it
            raise HTTPException(
                421, "the agent is not known under this name; if it is to be, add the name to agent.hosts"
            )
        await self._app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        if not (match := _HOST.fullmatch(host)):
            return False
        name = _canonical(match[1] or match[2])
        try:
            return bool(ip_address(name))
        except ValueError:
            return name in self._names


def _canonical(name: str) -> str:
    return name.lower().removesuffix(".")


def web_app(
    collector: Collector,
    ready: Callable[[], bool],
    pages: Pages,
    endpoint: ProbeEndpoint,
    names: Iterable[str],
) -> Starlette:
    """Return the application; ``ready`` says whether probes are being run.

    ``names`` are what people may call the agent on its pages. What programs ask for has nothing in it
    that servers said, and is answered under any name: in a cluster they have their own for the agent.
    """

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("mailsonde is alive\n")

    async def is_ready(_: Request) -> Response:
        if ready():
            return PlainTextResponse("mailsonde is ready\n")
        return PlainTextResponse("mailsonde is starting or stopping\n", status_code=503)

    for_people = Router(pages.routes(), redirect_slashes=False)
    app = Starlette(
        routes=[
            Route("/metrics", _Metrics(collector).answer),
            Route("/-/healthy", healthy),
            Route("/-/ready", is_ready),
            *endpoint.routes(),
            Mount("", for_people, middleware=[Middleware(_OwnNames, names)]),
        ],
        exception_handlers={HTTPException: pages.refuse},
    )
    app.router.redirect_slashes = False  # a redirect would name the host that the client named
    return app
