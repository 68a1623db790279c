"""Which probes a maintenance window or a pause is for: by name, by a pattern of names, or by labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import translate

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


def servers_of(settings: ProbeSettings, site: Site) -> tuple[str | None, str | None]:
    """Return the server that a probe connects to, and the server of the mailbox its messages arrive in."""
    into, mailbox = getattr(settings, "to", None), getattr(settings, "mailbox", None)
    name = getattr(settings, "server", None) or getattr(settings, "send_via", None)
    if mailbox is not None:
        name = site.mailboxes[mailbox].server
    return name, site.mailboxes[into].server if into is not None else None


def chosen(
    names: Mapping[str, Mapping[str, str]], patterns: Collection[str], labels: Mapping[str, str]
) -> set[str]:
    """Return which of these probes, with their labels, a window or pause is for."""
    found = {name for name in patterns if name in names}
    if labels:
        wanted = labels.items()
        found |= {name for name, its in names.items() if wanted <= its.items()}
    for each in patterns:
        if not _ANY.isdisjoint(each):
            matches = re.compile(translate(each)).match
            found |= {name for name in names if matches(name)}
    return found


def labelled(probes: Collection[ProbeSettings], site: Site) -> dict[str, dict[str, str]]:
    """Return the probes' names with their labels."""
    return {probe.name: labels_of(probe, site) for probe in probes}


def nothing_chosen(names: Mapping[str, Mapping[str, str]], choice: str | Mapping[str, str]) -> str:
    """Return why no probe has this name, pattern, or all of these labels; empty if there is one."""
    if isinstance(choice, str):
        if chosen(names, (choice,), {}):
            return ""
        if _ANY.isdisjoint(choice):
            return f"no probe is named {choice!r}.{did_you_mean(choice, names)}"
        return f"the name of no probe matches {choice!r}"
    if not choice or chosen(names, (), choice):
        return ""
    return f"no probe has these labels: {', '.join(f'{label}={value}' for label, value in choice.items())}"
