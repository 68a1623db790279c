"""Which probes a maintenance window or a pause is for: by name, by a pattern of names, or by labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import translate
from types import MappingProxyType
from typing import NamedTuple, Self

from monitor.config.mistakes import did_you_mean
from probes.core.settings import ProbeSettings, Site

_PATTERN = re.compile(r"[A-Za-z0-9*?\[\]!._-]{1,63}")
_ANY = frozenset("*?[")


def pattern(value: str) -> str:
    """Return the name of a probe, or a pattern of names, as it is; raises ValueError."""
    if not _PATTERN.fullmatch(value):
        raise ValueError(f"{value!r} is neither the name of a probe nor a pattern such as hq-*")
    return value


def labels_of(settings: ProbeSettings, site: Site) -> dict[str, str]:
    """Return the site's own labels of a probe.

    The probe's own replaces that of the server it connects to, which replaces that of its mailbox's server.
    """
    found: dict[str, str] = {}
    for name in reversed(servers_of(settings, site)):
        server = site.servers.get(name or "")  # MX hosts are not in it
        found |= server.labels if server is not None else {}
    return {**found, **settings.labels}


def mailbox_of(settings: ProbeSettings) -> str | None:
    """Return the mailbox that a probe reads, or that its messages arrive in."""
    found: str | None = getattr(settings, "to", None) or getattr(settings, "mailbox", None)
    return found


def servers_of(settings: ProbeSettings, site: Site) -> tuple[str | None, str | None]:
    """Return the server that a probe connects to, and the server of the mailbox its messages arrive in."""
    into, mailbox = getattr(settings, "to", None), getattr(settings, "mailbox", None)
    name = getattr(settings, "server", None) or getattr(settings, "send_via", None)
    if mailbox is not None:
        name = site.mailboxes[mailbox].server
    return name, site.mailboxes[into].server if into is not None else None


class Choice(NamedTuple):
    """Chooses the probes that match one of ``patterns``, if there are any, and have all of ``labels``."""

    patterns: tuple[str, ...]
    labels: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, patterns: Iterable[str], labels: Mapping[str, str] = MappingProxyType({})) -> Self:
        """Return what these names and patterns, and these labels, choose."""
        return cls(tuple(patterns), frozenset(labels.items()))


def chosen(names: Mapping[str, Mapping[str, str]], choice: Choice) -> set[str]:
    """Return which of these probes, with their labels, a window or pause is for."""
    patterns, labels = choice
    found = {name for name in patterns if name in names}
    for each in patterns:
        if not _ANY.isdisjoint(each):
            matches = re.compile(translate(each)).match
            found |= {name for name in names if matches(name)}
    if not labels:
        return found
    return {name for name in (found if patterns else names) if labels <= names[name].items()}


def grouped(chosen_by: Mapping[Choice, Collection[str]]) -> list[tuple[list[str], list[Choice]]]:
    """Return the probes that the same choices choose, with these choices; others are left out."""
    # A group is what earlier choices chose, which is a group too, and one choice more.
    parts: list[tuple[int, Choice | None]] = [(0, None)]
    numbers: dict[tuple[int, Choice], int] = {}
    group_of: dict[str, int] = {}
    for choice, probes in chosen_by.items():
        for probe in probes:
            part = group_of.get(probe, 0), choice
            if part not in numbers:
                numbers[part] = len(parts)
                parts.append(part)
            group_of[probe] = numbers[part]
    members: dict[int, list[str]] = {}
    for probe, group in group_of.items():
        members.setdefault(group, []).append(probe)
    found: list[tuple[list[str], list[Choice]]] = []
    for group, probes_of_group in members.items():
        choices: list[Choice] = []
        while group:
            group, added = parts[group]
            assert added is not None  # noqa: S101 # only of group 0
            choices.insert(0, added)
        found.append((probes_of_group, choices))
    return found


def labelled(probes: Collection[ProbeSettings], site: Site) -> dict[str, dict[str, str]]:
    """Return the probes' names with their labels."""
    return {probe.name: labels_of(probe, site) for probe in probes}


def nothing_chosen(
    names: Mapping[str, Mapping[str, str]], name: str | None, labels: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return why no probe has this name or matches it, and has all of the labels; empty if there is one."""
    patterns = () if name is None else (name,)
    if chosen(names, Choice.of(patterns, labels)):
        return ""
    told = ", ".join(f"{label}={value}" for label, value in labels.items())
    if name is None:
        return f"no probe has these labels: {told}"
    if labels and chosen(names, Choice.of(patterns)):
        return f"no probe that {name!r} names has these labels: {told}"
    if _ANY.isdisjoint(name):
        return f"no probe is named {name!r}.{did_you_mean(name, names)}"
    return f"the name of no probe matches {name!r}"
