"""The demo's live view: recent deliveries, latencies, and the states of all messages."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from monitor.ledger.counters import Counters
from monitor.runner import Result
from probes.core.verdict import MessageState

ROWS = 12
"""Number of deliveries shown."""

_BAR_CELLS = 30
_BAR_SECONDS = 10.0  # the demo's deadline fills the bar

_STYLES = {
    MessageState.DELIVERED: "green",
    MessageState.LATE: "yellow",
    MessageState.LOST: "bold red",
    MessageState.AMBIGUOUS: "magenta",
}


class DemoView:
    """The view of the results so far."""

    def __init__(self, address: str, route: tuple[str, str]) -> None:
        self._address = address
        self.route = route
        self._rows: deque[Result] = deque(maxlen=ROWS)
        self._seen = 0

    def add(self, result: Result) -> None:
        """Add a finished run."""
        self._seen += 1
        self._rows.append(result)

    def render(self, counters: Counters) -> Group:
        """Return the current view."""
        probe, target = self.route
        counts = Text()
        for state in MessageState:
            entered = counters.entered(probe, target, state)
            if entered and state is not MessageState.SENT:
                counts.append(f"{state} {entered}   ", style=_STYLES.get(state, ""))
        counts.append(f"in flight {counters.flight(probe, target).messages}", style="cyan")
        deliveries = Table("sent", "state", "delivery", "± error", "", box=None, pad_edge=False)
        for result in reversed(self._rows):
            deliveries.add_row(*_cells(result))
        body = deliveries if self._seen else Text("waiting for the first message to arrive …", style="dim")
        return Group(
            Panel(
                body, title="mailsonde demo: round trips through the sandbox mail server", title_align="left"
            ),
            Text.assemble("messages   ", counts),
            Text.assemble("live page  ", (self._address, "underline")),
            Text.assemble(
                "metrics    ", (f"{self._address}/metrics", "underline"), "    Ctrl-C stops the demo"
            ),
        )


def _cells(result: Result) -> tuple[str | Text, ...]:
    at = datetime.fromtimestamp(result.started_at).strftime("%H:%M:%S")  # local time, for people
    message = result.verdict.message
    if message is None:
        return (
            at,
            Text(str(result.verdict.reason), style="bold red"),
            "",
            "",
            Text(result.verdict.detail[:60]),
        )
    state = Text(str(message.state), style=_STYLES.get(message.state, ""))
    if message.delivery_seconds is None or message.uncertainty_seconds is None:
        return at, state, "", "", Text(result.verdict.detail[:60], style="dim")
    return (
        at,
        state,
        f"{message.delivery_seconds:.3f} s",
        f"± {message.uncertainty_seconds:.3f} s",
        _bar(message.delivery_seconds, message.uncertainty_seconds),
    )


def _bar(seconds: float, uncertainty: float) -> Text:
    """Return a bar as long as the certain part of the latency, with a lighter part for the uncertainty."""
    scale = _BAR_CELLS / _BAR_SECONDS
    sure = min(_BAR_CELLS, round(max(0.0, seconds - uncertainty) * scale))
    reach = min(_BAR_CELLS, max(1, round((seconds + uncertainty) * scale)))
    return Text.assemble(("█" * sure, "green"), ("▒" * (reach - sure), "green dim"))


def totals(counters: Counters, route: tuple[str, str]) -> str:
    """Return the final line: the number of messages, and how many are in each state."""
    held = {state: total.held for state, total in counters.of(route).totals.items()}
    in_flight = held.pop(MessageState.INTENT, 0) + held.pop(MessageState.SENT, 0)
    ends = [f"{held[state]} {state}" for state in MessageState if held.get(state)]
    parts = ", ".join([*ends, f"{in_flight} in flight"])
    return f"{counters.entered(*route, MessageState.INTENT)} messages: {parts}"


def plain_line(result: Result) -> str:
    """Return a result as one line, for output that is not a terminal."""
    at, state, latency, error, extra = _cells(result)
    return "  ".join(str(cell) for cell in (at, state, latency, error, extra) if str(cell)).rstrip(" █▒")
