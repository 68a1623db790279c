"""What Graph says about a whole tenant: message traces and service health, as documented.

It enforces permissions, the form of filters, and the limit of 100 traces in 5 minutes.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from probes.core.clock import Clock
from tests.fakes.graph.http import Answer, Request

_FILTER = re.compile(
    r"receivedDateTime ge (?P<since>[0-9TZ:-]{20}) and receivedDateTime le (?P<until>[0-9TZ:-]{20})"
    r" and contains\(subject,'(?P<subject>[^']+)'\)"
)
TRACES = "admin/exchange/tracing/messageTraces"
ISSUES = "admin/serviceAnnouncement/issues"


def _error(status: int, code: str, text: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {"error": {"code": code, "message": text}}, headers or {})


@dataclass
class Tenant:
    """The traces of a tenant, as Graph lists them, and its issues."""

    clock: Clock
    traces: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # the paths of all requests
    _recent: deque[float] = field(default_factory=deque)

    def trace(self, raw: bytes, status: str, received: str = "2023-11-14T22:13:21Z", **more: object) -> None:
        """Know about a message, by its header section."""
        subject = re.sub(r"\r\n ", " ", raw.decode()).partition("Subject: ")[2].partition("\r\n")[0]
        self.traces.append({"subject": subject, "status": status, "receivedDateTime": received, **more})

    def answer(self, request: Request, roles: set[str]) -> Answer:
        """Answer a request of an application with these roles."""
        path = "/".join(request.path[1:])
        self.asked.append(path)
        needed = {TRACES: "ExchangeMessageTrace.Read.All", ISSUES: "ServiceHealth.Read.All"}.get(path)
        if needed is None:
            return _error(400, "BadRequest", "Resource not found for the segment.")
        if needed not in roles:
            return _error(403, "Forbidden", "The application lacks a required permission.")
        if path == ISSUES:
            return Answer(200, {"value": self.issues})
        now = self.clock.monotonic()
        while self._recent and self._recent[0] <= now - 300:
            self._recent.popleft()
        if len(self._recent) >= 100:
            left = {"Retry-After": str(int(self._recent[0] + 301 - now))}
            return _error(429, "TooManyRequests", "Too many requests.", left)
        self._recent.append(now)
        if (wanted := _FILTER.fullmatch(request.query.get("$filter", ""))) is None:
            return _error(400, "BadRequest", "Invalid filter clause.")
        return Answer(200, {"value": [one for one in self.traces if wanted["subject"] in one["subject"]]})
