"""The agent's HTTP application: metrics, health checks and the pages."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from monitor.reload_request import Outcome
from monitor.web.metrics import Families, Metrics
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint

_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]*)?")  # RFC 9110 section 7.2


class _OwnNames:
    """Admits requests for an IP address, localhost or one of ``names``; raises HTTPException 421 for others.

    Otherwise another site could point one of its names at the agent's address and read the pages through
    a visitor's browser (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = {"localhost", *(_canonical(name) for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host")
        if host is not None and not self._is_own(host):  # every browser sends Host
            raise HTTPException(
                421, "the agent does not answer under this name; to allow it, add the name to agent.hosts"
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


def _is_of_another_site(headers: Headers) -> bool:
    """Return whether a page of another site makes the request. Programs send neither field.

    Browsers send Sec-Fetch-Site only by HTTPS and to this machine, but Origin with each POST.
    """
    origin = headers.get("origin")
    return headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} or (
        origin is not None and origin.partition("://")[2] != headers.get("host")
    )


def _canonical(name: str) -> str:
    return name.lower().removesuffix(".")


def web_app(
    collector: Families,
    ready: Callable[[], bool],
    pages: Pages,
    endpoint: ProbeEndpoint,
    names: Iterable[str],
    reload: Callable[[], Awaitable[Outcome]] | None = None,
) -> Starlette:
    """Return the application; ``ready`` says whether probes are running.

    ``reload`` makes the agent read its configuration again; without it, clients cannot.

    The pages open only under ``names``. Requests from programs are answered under any name, because clusters
    have their own names for the agent; these answers contain nothing that a server said.
    """

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("mailsonde is alive\n")

    async def is_ready(_: Request) -> Response:
        if ready():
            return PlainTextResponse("mailsonde is ready\n")
        return PlainTextResponse("mailsonde is starting or stopping\n", status_code=503)

    async def reloaded(request: Request) -> Response:
        if reload is None:
            return PlainTextResponse("to allow this, add http to agent.reload\n", status_code=403)
        if _is_of_another_site(request.headers):
            return PlainTextResponse("pages of other sites may not reload\n", status_code=403)
        outcome = await reload()
        text = "\n".join(["reloaded:" if outcome.is_applied else "refused:", *outcome.told, ""])
        return PlainTextResponse(text, status_code=200 if outcome.is_applied else 500)

    by_name = [*pages.routes(), Route("/-/reload", reloaded, methods=["POST"])]
    for_people = Router(by_name, redirect_slashes=False)
    app = Starlette(
        routes=[
            Route("/metrics", Metrics(collector).answer),
            Route("/-/healthy", healthy),
            Route("/-/ready", is_ready),
            *endpoint.routes(),
            Mount("", for_people, middleware=[Middleware(_OwnNames, names)]),
        ],
        exception_handlers={HTTPException: pages.refuse},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the client's Host
    return app
