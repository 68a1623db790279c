"""Checks that the limits of servers and of the agent allow what is configured, with the arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from monitor.config.document import Location
from probes.core.mail_protocols import KEEP_CONNECTIONS
from probes.core.setting_types import parse_duration
from probes.core.settings import ProbeSettings, ServerSettings
from probes.protocols.connection_limits import DESCRIPTORS_EACH, MOST

START_MINUTES = 15.0
"""Maximum minutes that the first connections of all IMAP or Graph mailboxes of one server may take."""

MOST_LOGINS = 30.0
"""Logins a minute from which a POP3 mailbox is watched well, however many messages arrive in it."""

Entry = Mapping[str, object]
Table = Mapping[str, Entry]


def overloads(
    agent: Entry, servers: Table, mailboxes: Table, probes: Mapping[Location, Entry]
) -> Iterator[tuple[Location, str]]:
    """Yield the place of each limit that is too low, and why. Time is proportional to the entries."""
    watched = Counter(str(mailbox.get("server")) for mailbox in mailboxes.values())
    kept_open = {name: watched[name] for name in servers if servers[name].get("protocol") in KEEP_CONNECTIONS}
    yield from _connections_used_up(agent, servers, kept_open)
    yield from _too_many_messages(servers, probes)
    rates = {name: _number(servers[name], "logins_per_minute") for name in servers}
    for name, count in kept_open.items():
        if (rate := rates[name]) and count / rate > START_MINUTES:
            yield (
                ("servers", name, "logins_per_minute"),
                f"the first logins to its {count} mailboxes take {count / rate:.0f} min at {rate:g} a "
                f"minute; set at least {math.ceil(count / START_MINUTES)}",
            )
    for name, (count, needed) in _logins_by_pop3(servers, mailboxes, probes).items():
        if (rate := rates[name]) and needed > rate:
            yield (
                ("servers", name, "logins_per_minute"),
                f"its {count} mailboxes need {needed:.0f} logins a minute, each one in every interval of its "
                f"probes or every {60 / MOST_LOGINS:g} s, and {rate:g} are allowed; set at least "
                f"{math.ceil(needed)}, use longer intervals, or read them by IMAP",
            )


def _too_many_messages(servers: Table, probes: Mapping[Location, Entry]) -> Iterator[tuple[Location, str]]:
    """Yield each server that would get more messages a minute than it takes."""
    sent: dict[str, list[float]] = {}
    for probe in probes.values():
        interval = probe.get("interval")
        if isinstance(interval, float) and probe.get("scheduled") is not False:
            sent.setdefault(str(probe.get("send_via")), []).append(interval)
    for name, server in servers.items():
        most, intervals = server.get("messages_per_minute"), sent.get(name, [])
        rate = sum(60.0 / interval for interval in intervals)
        if not isinstance(most, float) or rate <= most * (1 + 1e-9):
            continue
        groups = Counter(intervals).items()
        sums = " + ".join(f"{count} every {interval:g}s" for interval, count in sorted(groups)[:5])
        more = ", …" if len(groups) > 5 else ""
        yield (
            ("servers", name, "messages_per_minute"),
            f"the probes send {sums}{more} = {rate:.4g} messages a minute, and the server takes {most:g}; "
            "lengthen their intervals, or use more accounts or servers",
        )


def _connections_used_up(
    agent: Entry, servers: Table, kept_open: Mapping[str, int]
) -> Iterator[tuple[Location, str]]:
    """Yield each limit that mailboxes with a connection of their own reach by themselves."""
    total = sum(kept_open.values())
    limits: list[tuple[Location, object, int]] = [
        (("servers", name, "max_connections"), servers[name].get("max_connections"), count)
        for name, count in kept_open.items()
    ]
    limits.append((("agent", "max_connections"), agent.get("max_connections"), total))
    for at, most, count in limits:
        if isinstance(most, int) and most <= count:
            yield at, f"each watched IMAP or Graph mailbox keeps a connection open; set at least {count + 1}"
    if agent.get("max_connections") is None and total >= MOST:
        yield (
            ("agent", "max_connections"),
            f"each of the {total} watched IMAP or Graph mailboxes keeps a connection open, and by default "
            f"there are at most {MOST}; set at least {total + 1}, and allow the agent "
            f"{DESCRIPTORS_EACH} times as many open files",
        )


def _logins_by_pop3(
    servers: Table, mailboxes: Table, probes: Mapping[Location, Entry]
) -> dict[str, tuple[int, float]]:
    """Return how many POP3 mailboxes with probes each server has, and the logins a minute that they need."""
    needed: dict[str, float] = {}
    for probe in probes.values():
        if probe.get("scheduled", True) is True and isinstance(mailbox := probe.get("to"), str):
            rate = min(60.0 / _interval(probe), MOST_LOGINS)
            needed[mailbox] = max(rate, needed.get(mailbox, 0.0))
    sums: dict[str, tuple[int, float]] = {}
    for mailbox, rate in needed.items():
        name = str(mailboxes.get(mailbox, {}).get("server"))
        if servers.get(name, {}).get("protocol") == "pop3":
            count, before = sums.get(name, (0, 0.0))
            sums[name] = count + 1, before + rate
    return sums


def _interval(probe: Entry) -> float:
    """Return a probe's interval in seconds; infinite if it is no duration."""
    value = probe.get("interval", ProbeSettings.model_fields["interval"].default)
    try:
        seconds = float(value) if isinstance(value, float | int) else parse_duration(value)
    except ValueError:
        return math.inf
    return seconds if seconds > 0.0 else math.inf


def _number(server: Entry, key: str) -> float | None:
    value = server.get(key, ServerSettings.model_fields[key].default)
    return float(value) if isinstance(value, float | int) and value > 0 else None
