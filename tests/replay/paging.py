"""Notifications: routing, grouping, inhibition and repetition on a simulated clock.

A model of Alertmanager 0.25 (its packages dispatch, inhibit and notify) for one configuration file;
`test_paging` compares it with a real Alertmanager.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from probes.core.setting_types import parse_duration
from tests.replay.judgement import Alert

_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"?(.*?)"?\s*')


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label; a missing label is empty."""

    label: str
    operator: str
    value: str

    @classmethod
    def parsed(cls, text: str) -> Matcher:
        """Return the matcher in ``text``, such as ``severity = critical``; raises ValueError."""
        match = _MATCHER.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a matcher")
        return cls(*match.groups())

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet the condition."""
        value = labels.get(self.label, "")
        if self.operator in {"=", "!="}:
            return (value == self.value) == (self.operator == "=")
        return (re.fullmatch(self.value, value) is not None) == (self.operator == "=~")


def _matchers(texts: Iterable[str]) -> tuple[Matcher, ...]:
    return tuple(Matcher.parsed(text) for text in texts)


@dataclass(frozen=True, slots=True)
class Route:
    """A node of the routing tree with a receiver; times in seconds."""

    matchers: tuple[Matcher, ...]
    receiver: str
    group_by: tuple[str, ...]
    group_wait: float
    group_interval: float
    repeat_interval: float


@dataclass(frozen=True, slots=True)
class InhibitRule:
    """While a source alert fires, target alerts with equal labels are not sent."""

    source: tuple[Matcher, ...]
    target: tuple[Matcher, ...]
    equal: tuple[str, ...]

    def mutes(self, alert: Mapping[str, str], firing: Iterable[Mapping[str, str]]) -> bool:
        """Whether a firing alert mutes another.

        An alert that is both source and target is not muted by another such alert.
        """
        if not _all_hold(self.target, alert):
            return False
        is_source = _all_hold(self.source, alert)
        return any(
            _all_hold(self.source, other)
            and not (is_source and _all_hold(self.target, other))
            and all(alert.get(label, "") == other.get(label, "") for label in self.equal)
            for other in firing
        )


def _all_hold(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    return all(matcher.holds(labels) for matcher in matchers)


class Policy:
    """Routes and inhibition of a configuration file with routes one level deep and without continue."""

    def __init__(self, path: Path) -> None:
        document = yaml.safe_load(path.read_text())
        self.fallback = _route(document["route"], {})
        self.routes = [_route(child, document["route"]) for child in document["route"]["routes"]]
        self.rules = [
            InhibitRule(
                _matchers(rule["source_matchers"]), _matchers(rule["target_matchers"]), tuple(rule["equal"])
            )
            for rule in document["inhibit_rules"]
        ]

    def route(self, alert: Mapping[str, str]) -> Route:
        """Return the first route that matches the alert."""
        taking = (route for route in self.routes if _all_hold(route.matchers, alert))
        return next(taking, self.fallback)

    def inhibited(self, alert: Mapping[str, str], firing: Iterable[Mapping[str, str]]) -> bool:
        """Whether an alert is inhibited by those that fire."""
        firing = list(firing)
        return any(rule.mutes(alert, firing) for rule in self.rules)


def _route(document: Mapping[str, Any], parent: Mapping[str, Any]) -> Route:
    own = (
        {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"} | dict(parent) | dict(document)
    )
    return Route(
        _matchers(document.get("matchers", ())),
        own["receiver"],
        tuple(own["group_by"]),
        *(parse_duration(own[key]) for key in ("group_wait", "group_interval", "repeat_interval")),
    )


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification: receiver, time, group, and the alerts that fire in it; none means all resolved."""

    at: float
    receiver: str
    group: tuple[str, ...]
    firing: frozenset[Alert]
    news: frozenset[Alert]  # those that were not in an earlier notification
    opens: bool  # nothing of the group was firing before: this pages somebody


@dataclass(slots=True)
class _Group:
    """The alerts of one group, and its last notification."""

    route: Route
    flush_at: float
    alerts: dict[Alert, bool] = field(default_factory=dict)  # whether each still fires


@dataclass(slots=True)
class _Told:
    at: float
    firing: frozenset[Alert]
    resolved: frozenset[Alert]


class Pager:
    """Receives the firing alerts, and yields notifications."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._told: dict[tuple[str, ...], _Told] = {}
        self._firing: frozenset[Alert] = frozenset()

    def advance(self, now: float, firing: frozenset[Alert]) -> list[Notification]:
        """Return the notifications up to ``now``, and set which alerts fire from then on."""
        told = self._flushes(now)
        for alert in self._firing - firing:
            self._group(alert, now).alerts[alert] = False
        for alert in firing - self._firing:
            self._group(alert, now).alerts[alert] = True
        self._firing = firing
        return told

    def _group(self, alert: Alert, now: float) -> _Group:
        labels = dict(alert)
        route = self._policy.route(labels)
        key = (route.receiver, *(f"{label}={labels.get(label, '')}" for label in route.group_by))
        if key not in self._groups:
            self._groups[key] = _Group(route, now + route.group_wait)
        return self._groups[key]

    def _flushes(self, now: float) -> list[Notification]:
        told = []
        while due := [key for key, group in self._groups.items() if group.flush_at <= now]:
            key = min(due, key=lambda key: self._groups[key].flush_at)
            group = self._groups[key]
            at = group.flush_at
            group.flush_at += group.route.group_interval
            if (notification := self._flush(at, key, group)) is not None:
                told.append(notification)
            group.alerts = {alert: True for alert, fires in group.alerts.items() if fires}
            if not group.alerts:
                del self._groups[key]
        return told

    def _flush(self, at: float, key: tuple[str, ...], group: _Group) -> Notification | None:
        others = [dict(alert) for alert in self._firing]
        told = {a: fires for a, fires in group.alerts.items() if not self._policy.inhibited(dict(a), others)}
        firing = frozenset(alert for alert, fires in told.items() if fires)
        resolved = frozenset(told) - firing
        last = self._told.get(key)
        if not told or not self._is_news(at, firing, resolved, last, group.route.repeat_interval):
            return None
        self._told[key] = _Told(at, firing, resolved)
        before = last.firing if last is not None else frozenset()
        return Notification(at, key[0], key[1:], firing, firing - before, bool(firing) and not before)

    @staticmethod
    def _is_news(
        at: float, firing: frozenset[Alert], resolved: frozenset[Alert], last: _Told | None, repeat: float
    ) -> bool:
        """Whether a group's state is sent again (notify.DedupStage)."""
        if last is None:
            return bool(firing)
        if not firing <= last.firing:
            return True
        if not firing:
            return bool(last.firing)
        return not resolved <= last.resolved or last.at <= at - repeat
