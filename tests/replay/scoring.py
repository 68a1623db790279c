"""The score of a replay: who was notified of each incident, how soon, how often, and false pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.replay.incidents import Expected, Incident
from tests.replay.paging import Notification

ON_CALL = "on-call"


@dataclass(slots=True)
class Told:
    """The notifications during an incident and its aftermath."""

    incident: Incident
    notifications: list[Notification] = field(default_factory=list)

    @property
    def delay(self) -> float | None:
        """Seconds from its beginning until the right receiver got one of its alerts; ``None`` if never."""
        for notification in self.notifications:
            heard = self.incident.kind.expected is Expected.WARNING or notification.receiver == ON_CALL
            if heard and any(dict(a)["alertname"] in self.incident.kind.alerts for a in notification.firing):
                return notification.at - self.incident.begins
        return None

    @property
    def missed(self) -> bool:
        """Whether a required notification is missing."""
        return self.incident.kind.expected is not Expected.NOBODY and self.delay is None

    @property
    def pages(self) -> list[Notification]:
        """The pages: notifications to on-call of a group that was not firing before."""
        return [n for n in self.notifications if n.receiver == ON_CALL and n.opens]

    @property
    def false_pages(self) -> int:
        """Pages for an incident that must not page."""
        return 0 if self.incident.kind.expected is Expected.PAGE else len(self.pages)

    @property
    def updates(self) -> int:
        """Further notifications to on-call in an open group, with a new alert."""
        return sum(n.receiver == ON_CALL and bool(n.news) and not n.opens for n in self.notifications)


@dataclass(slots=True)
class Score:
    """The figures of one or more replays."""

    told: list[Told]
    strays: list[Notification]  # pages outside all incidents and their aftermaths

    @property
    def missed(self) -> list[str]:
        """The kinds of the incidents without a required notification."""
        return [one.incident.kind.name for one in self.told if one.missed]

    @property
    def false_pages(self) -> int:
        """Pages without cause."""
        return len(self.strays) + sum(one.false_pages for one in self.told)

    def table(self) -> str:
        """Return the figures by kind, as lines of text."""
        by_kind: dict[str, list[Told]] = defaultdict(list)
        for one in self.told:
            by_kind[one.incident.kind.name].append(one)
        lines = [
            f"  {'kind':24} {'must':8} count missed  delay s (most)  pages/incident  updates  false pages"
        ]
        for name, told in by_kind.items():
            delays = [one.delay for one in told if one.delay is not None]
            shown = f"{median(delays):6.0f} ({max(delays):5.0f})" if delays else f"{'-':>14}"
            lines.append(
                f"  {name:24} {told[0].incident.kind.expected:8} {len(told):5} "
                f"{sum(o.missed for o in told):6}  {shown} {_mean(len(o.pages) for o in told):15.2f} "
                f"{_mean(o.updates for o in told):8.2f} {sum(o.false_pages for o in told):12}"
            )
        paged = [one for one in self.told if one.incident.kind.expected is Expected.PAGE]
        lines.append(
            f"  {len(self.told)} incidents, {len(self.missed)} missed, {self.false_pages} false pages "
            f"({len(self.strays)} outside any incident), {_mean(len(o.pages) for o in paged):.2f} pages and "
            f"{_mean(o.updates for o in paged):.2f} updates an incident that must page"
        )
        return "\n".join(lines)


def _mean(numbers: Iterable[int]) -> float:
    values = list(numbers)
    return sum(values) / len(values) if values else 0.0


def score(incidents: Sequence[Incident], notifications: Iterable[Notification], aftermath: float) -> Score:
    """Return the effects of each incident until ``aftermath`` seconds after its end, and everything else."""
    result = Score([Told(incident) for incident in incidents], [])
    for notification in notifications:
        for one in result.told:
            if one.incident.begins <= notification.at < one.incident.ends + aftermath:
                one.notifications.append(notification)
                break
        else:
            if notification.receiver == ON_CALL and notification.opens:
                result.strays.append(notification)
    return result
