"""The status text of a route: where mail is stuck, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probes.core.reasons import Reason

_HOPS = {
    "submission": "at the host that accepted it",
    "relay": "at the relays in between",
    "final": "on the way to the last host",
}


@dataclass(frozen=True, slots=True)
class Flight:
    """The messages of a route that are in flight; ages and times in seconds."""

    count: int
    oldest_age: float
    usual: float | None  # the longest recent delivery
    intents: int = 0  # how many of them no server has accepted yet
    oldest_intent_age: float = 0.0
    trace: str = ""  # what a message trace says about one of them

    @property
    def is_overdue(self) -> bool:
        """Whether the oldest has been in flight for over 5 s and twice as long as any recent delivery."""
        return self.count > 0 and self.oldest_age > max(5.0, 2 * (self.usual or 5.0))

    @property
    def is_held_up(self) -> bool:
        """Whether the oldest is not handed over yet."""
        return self.intents > 0 and self.oldest_intent_age >= self.oldest_age


def sentence(
    last: Mapping[str, Any] | None,
    *,
    target: str,
    mailbox: str | None = None,
    flight: Flight | None = None,
    hop_seconds: Mapping[str, float] | None = None,
) -> str:
    """Return where mail is, according to a route's last run and its messages in flight."""
    if flight is not None and flight.is_overdue:
        return _overdue(target, mailbox, flight)
    if last is None:
        if flight is None or not flight.count:
            return "No run has finished yet."
        return (
            f"The first message is being handed over to {target}."
            if flight.is_held_up
            else "The first message is in flight."
        )
    if last.get("message"):
        return _of_message(last, mailbox, hop_seconds or {})
    if last["outcome"] == "failed" and mailbox is not None:
        return f"Mail is not going out: {last['target']} did not accept the last message ({explained(last)})."
    if last["outcome"] == "unknown":
        return f"The state is unknown: {explained(last)}."
    if last["outcome"] == "failed":
        return f"{capital(explained(last))}."
    took = f"the last run took {duration(last['duration_seconds'])}"
    return f"All ok: {took}." if last["reason"] == Reason.NONE else f"Warning: {explained(last)}; {took}."


def _overdue(target: str, mailbox: str | None, flight: Flight) -> str:
    for_long = f"for {duration(flight.oldest_age)}"
    if flight.usual is not None:
        for_long += f"; recent ones took at most {duration(flight.usual)}"
    if flight.is_held_up:
        many = "a message has" if flight.intents == 1 else f"{flight.intents} messages have"
        return f"Mail is not going out: {many} been waiting for {target} to accept it {for_long}."
    under_way = flight.count - flight.intents
    many = "a message has" if under_way == 1 else f"{under_way} messages have"
    if flight.trace:
        for_long += f"; by the message trace, {flight.trace}"
    return f"Mail is late: {many} been between {target} and mailbox {mailbox} {for_long}."


def _of_message(last: Mapping[str, Any], mailbox: str | None, hop_seconds: Mapping[str, float]) -> str:
    message, target = last["message"], last["target"]
    state = message["state"]
    is_measured = message["delivery_seconds"] is not None and message["uncertainty_seconds"] is not None
    if state == "delivered" and last["reason"] == Reason.LOCAL_RESOURCES:
        return f"The last message arrived in mailbox {mailbox}, but {explained(last)}."
    if state in {"delivered", "late"} and is_measured:
        return _arrived(last, mailbox, hop_seconds)
    if state == "bounced":
        return f"{target} accepted the last message, but a later host returned it ({explained(last)})."
    if state == "lost":
        trace = last.get("values", {}).get("message_trace")
        found = f"by the message trace, {trace}" if trace else "it is stuck or lost in between"
        return f"{target} accepted the last message, but it has not arrived in mailbox {mailbox}: {found}."
    if state == "ambiguous":
        return f"It is unknown whether {target} has the last message: {explained(last)}."
    if last["outcome"] == "ok":
        return f"The last message is {state}."
    return f"{target} accepted the last message, but its arrival cannot be confirmed ({explained(last)})."


def _arrived(last: Mapping[str, Any], mailbox: str | None, hop_seconds: Mapping[str, float]) -> str:
    message = last["message"]
    took = f"{duration(message['delivery_seconds'])} ± {duration(message['uncertainty_seconds'])}"
    begins = {
        "message_junked": "Mail goes to junk: the last message took",
        "message_altered": "Mail is altered on the way: the last message took",
    }.get(
        last["reason"],
        "Mail arrived too late: the last message took"
        if message["state"] == "late"
        else "Mail flows: the last message took",
    )
    parts = [f"{begins} {took}"]
    if message["submission_seconds"] is not None:
        parts.append(
            f"including {duration(message['submission_seconds'])} until {last['target']} accepted it"
        )
    if hop_seconds:
        position = max(hop_seconds, key=lambda name: hop_seconds[name])
        if hop_seconds[position] >= 1.0:  # timestamps are in whole seconds
            parts.append(
                f"and {duration(hop_seconds[position])} {_HOPS[position]}, according to its timestamps"
            )
    where = f" to reach mailbox {mailbox}" if mailbox else ""
    return f"{parts[0]}{where}" + "".join(f", {part}" for part in parts[1:]) + "."


def explained(run: Mapping[str, Any]) -> str:
    """Return a run's detail, or the meaning of its reason if there is none, without the full stop."""
    return str(run["detail"] or Reason[run["reason"].upper()].meaning).rstrip(".")


def duration(seconds: float) -> str:
    """Return seconds in readable units: ms, s, min and s, or h and min."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 5999.5:
        return _two_units(round(seconds), "min", "s")
    return _two_units(round(seconds / 60), "h", "min")


def _two_units(small: int, large_unit: str, small_unit: str) -> str:
    large, rest = divmod(small, 60)
    return f"{large} {large_unit} {rest} {small_unit}" if rest else f"{large} {large_unit}"


def share(part: int, whole: int) -> str:
    """Return a share in per cent, rounded down, so that 100 % means all."""
    return f"{part * 1000 // whole / 10:g} % of {whole:,}"


def capital(text: str) -> str:
    """Return ``text`` with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]
