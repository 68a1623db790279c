"""Where mail is stuck, in one sentence of words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probes.core.reasons import Reason

_HOPS = {
    "submission": "at the host that took it from us",
    "relay": "at the relays between",
    "final": "on the way into the last host",
}


@dataclass(frozen=True, slots=True)
class Flight:
    """The messages of a route that are under way; ages and times in seconds."""

    count: int
    oldest_age: float
    usual: float | None  # the longest of the latest deliveries

    @property
    def is_overdue(self) -> bool:
        """Whether the oldest has been under way more than twice as long as any of the latest, and 5 s."""
        return self.count > 0 and self.oldest_age > max(5.0, 2 * (self.usual or 5.0))


def sentence(
    last: Mapping[str, Any] | None,
    *,
    mailbox: str | None = None,
    flight: Flight | None = None,
    hop_seconds: Mapping[str, float] | None = None,
) -> str:
    """Return what the last run of a route, and the messages under way, say about where mail is."""
    if flight is not None and flight.is_overdue and last is not None:
        return _overdue(last, mailbox, flight)
    if last is None:
        return (
            "No run has ended yet."
            if flight is None or not flight.count
            else "The first message is under way."
        )
    if last.get("message"):
        return _of_message(last, mailbox, hop_seconds or {})
    if last["outcome"] == "failed" and mailbox is not None:
        return f"Mail does not get away: {last['target']} did not take the last message ({explained(last)})."
    if last["outcome"] == "unknown":
        return f"Nothing can be said: {explained(last)}."
    if last["outcome"] == "failed":
        return f"{capital(explained(last))}."
    after = f", and {explained(last)}" if last["reason"] != Reason.NONE else ""
    return f"All well: the last run took {duration(last['duration_seconds'])}{after}."


def _overdue(last: Mapping[str, Any], mailbox: str | None, flight: Flight) -> str:
    usually = f"; the latest ones took at most {duration(flight.usual)}" if flight.usual is not None else ""
    many = "a message is" if flight.count == 1 else f"{flight.count} messages are"
    return (
        f"Mail is late now: {many} between {last['target']} and mailbox {mailbox}, "
        f"since {duration(flight.oldest_age)}{usually}."
    )


def _of_message(last: Mapping[str, Any], mailbox: str | None, hop_seconds: Mapping[str, float]) -> str:
    message, target = last["message"], last["target"]
    state = message["state"]
    if state in {"delivered", "late"} and message["delivery_seconds"] is not None:
        return _arrived(last, mailbox, hop_seconds)
    if state == "bounced":
        return f"{target} took the last message, and a host after it sent it back ({explained(last)})."
    if state == "lost":
        return (
            f"{target} took the last message, and it has not come to mailbox {mailbox}: "
            f"it is stuck or gone between the two."
        )
    if state == "ambiguous":
        return f"Nobody knows whether {target} has the last message: {explained(last)}."
    if last["outcome"] == "ok":
        return f"The last message is {state}."
    return f"{target} took the last message; whether it arrived cannot be seen ({explained(last)})."


def _arrived(last: Mapping[str, Any], mailbox: str | None, hop_seconds: Mapping[str, float]) -> str:
    message = last["message"]
    took = f"{duration(message['delivery_seconds'])} ± {duration(message['uncertainty_seconds'])}"
    begins = {
        "message_junked": "Mail arrives as junk: the last message took",
        "message_altered": "Mail is changed on its way: the last message took",
    }.get(
        last["reason"],
        "Mail came too late: it took" if message["state"] == "late" else "Mail flows: the last message took",
    )
    parts = [f"{begins} {took}"]
    if message["submission_seconds"] is not None:
        parts.append(f"{duration(message['submission_seconds'])} of it until {last['target']} had taken it")
    if hop_seconds:
        position = max(hop_seconds, key=lambda name: hop_seconds[name])
        if hop_seconds[position] >= 1.0:  # stamps count whole seconds
            parts.append(f"and {duration(hop_seconds[position])} {_HOPS[position]}, by its stamps")
    where = f" into mailbox {mailbox}" if mailbox else ""
    return f"{parts[0]}{where}" + "".join(f", {part}" for part in parts[1:]) + "."


def explained(run: Mapping[str, Any]) -> str:
    """Return a run's detail, or what its reason means where there is none, without its full stop."""
    return str(run["detail"] or Reason[run["reason"].upper()].meaning).rstrip(".")


def duration(seconds: float) -> str:
    """Return seconds for people: milliseconds below one, minutes and hours above."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def capital(text: str) -> str:
    """Return ``text`` with its first letter in upper case, and the others as they are."""
    return text[:1].upper() + text[1:]
