"""What Microsoft Graph says about a whole tenant: where a message ended, and issues of Exchange Online.

Version 1.0 of the API: ``admin/exchange/tracing/messageTraces`` needs the application permission
``ExchangeMessageTrace.Read.All``, ``admin/serviceAnnouncement/issues`` needs ``ServiceHealth.Read.All``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from probes.core.clock import Clock
from probes.core.credentials import Credentials
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.graph import GraphSession, entries_of
from probes.protocols.https import Response

STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "gettingStatus": "its status is not known yet",
        "pending": "it is still being delivered",
        "failed": "it could not be delivered",
        "delivered": "it was delivered",
        "expanded": "it was sent on to the members of a group",
        "quarantined": "it is in quarantine",
        "filteredAsSpam": "it was treated as spam",
        "recalled": "it was recalled",
    }
)
"""What each documented status of a message means; any other is not told."""

ISSUES_SHOWN = 3
"""Maximum number of issues of a tenant that are told."""

_TRACES = "admin/exchange/tracing/messageTraces"
_ISSUES = "admin/serviceAnnouncement/issues"
_PERMISSIONS = MappingProxyType({_TRACES: "ExchangeMessageTrace.Read.All", _ISSUES: "ServiceHealth.Read.All"})
_SERVICE_OF_TRACES = "8bd644d1-64a1-4d4b-ae52-2e0cbf64e373"  # what Microsoft's own application has as its id
_ANSWER_LIMIT = 256 * 1024
_EVERY_STATUS = MappingProxyType({"prefer": "include-unknown-enum-members"})  # else `recalled` is not told


@dataclass(frozen=True, slots=True)
class Traced:
    """Where a message ended: a documented status, and when the tenant took it in, as it says."""

    status: str
    received: str

    @property
    def is_final(self) -> bool:
        """Whether no other status follows."""
        return self.status not in {"gettingStatus", "pending"}

    def __str__(self) -> str:
        when = f", taken in at {self.received}" if self.received else ""
        return f"{STATUSES[self.status]} ({self.status}{when})"


class GraphTenant(GraphSession):
    """Requests about a tenant. A token that is refused here is not called wrong: mail goes on with it."""

    def __init__(
        self, server: ServerSettings, credentials: Credentials, phases: PhaseTimer, clock: Clock
    ) -> None:
        super().__init__(server, "", credentials, phases, clock)

    async def traced(self, subject: str, since: float, until: float) -> Traced | None:
        """Return where the newest message ended whose subject contains ``subject``: letters and digits.

        ``None`` if the tenant knows no such message between two unix times, which are at most 10 days apart.
        """
        query = {
            "$filter": (
                f"receivedDateTime ge {_stamp(since)} and receivedDateTime le {_stamp(until)} "
                f"and contains(subject,'{subject}')"
            ),
            "$top": "10",
        }
        found = [
            Traced(str(entry["status"]), _told_time(entry.get("receivedDateTime")))
            for entry in await self._list(_TRACES, query)
            if str(entry.get("status")) in STATUSES and subject in str(entry.get("subject"))
        ]
        return max(found, key=lambda one: one.received, default=None)

    async def issues(self) -> tuple[str, ...]:
        """Return the issues of Exchange Online that are not resolved, at most `ISSUES_SHOWN`."""
        query = {"$filter": "service eq 'Exchange Online' and isResolved eq false", "$top": "20"}
        redaction = self._phases.transcript.redaction  # the run that shows them has another

        def told(entry: Mapping[str, Any], name: str, limit: int) -> str:
            return legible(redaction.text(str(entry.get(name))), limit)

        return tuple(
            f"{told(entry, 'id', 20)}: {told(entry, 'title', 120)}"
            for entry in await self._list(_ISSUES, query)
            if entry.get("service") == "Exchange Online" and entry.get("isResolved") is False
        )[:ISSUES_SHOWN]

    async def _list(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        entries = entries_of(await self.about_tenant(path, query, _EVERY_STATUS, _ANSWER_LIMIT))
        return [entry for entry in entries if isinstance(entry, dict)]

    def _refusal(self, response: Response, secret: object) -> ProbeFault:
        """Name the permission that is missing; whatever the code is, 403 has no other cause here."""
        del secret
        fault = super()._refusal(response, None)
        if response.status == 403:
            missing = " and ".join(name for path, name in _PERMISSIONS.items() if f"/{path}?" in response.url)
            remedy = f"Add the application permission {missing} of Microsoft Graph, and grant consent."
            return ProbeFault(Reason.NOT_GRANTED, fault.detail, remedy=remedy)
        if response.status == 401 and _SERVICE_OF_TRACES in fault.detail:
            fault.remedy = (
                "Create the service principal that message traces need: New-MgServicePrincipal -AppId "
                f"{_SERVICE_OF_TRACES}. It may take hours to count."
            )
        return fault


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _told_time(value: object) -> str:
    try:
        return _stamp(datetime.fromisoformat(str(value)).timestamp())
    except (ValueError, OverflowError, OSError):
        return ""
