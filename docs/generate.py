"""Writes docs/reference.md from the code: settings, metrics, looks, reasons. ``--check`` only compares."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from monitor.collector import AgentCollector
from monitor.config.models import Configuration
from monitor.ledger.tally import Tally
from monitor.state import AgentState, DeliveryState, ProbeState
from probes.arrivals import Unexpected
from probes.polling import ArrivalModel
from probes.reasons import Area, Reason
from probes.service_level import SloSettings
from probes.watcher import LONGEST_GAP

REFERENCE = Path(__file__).with_name("reference.md")

_HEAD = """\
# Reference

Made by `make docs` from the code. Settings are explained in [config/example.yaml](../config/example.yaml).
"""


def settings_section() -> list[str]:
    """Return the settings of every part of the configuration file."""
    definitions = Configuration.model_json_schema(by_alias=True)["$defs"]
    lines = ["## Settings", "", "Durations are written `500ms`, `30s`, `5m`, `1h` or `1d`."]
    titles = {
        "AgentSettings": "`agent`",
        "ServerSettings": "an entry of `servers`",
        "MailboxSettings": "an entry of `mailboxes`",
    }
    for name, definition in sorted(definitions.items(), key=lambda item: (item[0] not in titles, item[0])):
        title = titles.get(name) or _title(name, definition)
        lines += ["", f"### {title}", "", "| key | what it is |", "|---|---|"]
        required = definition.get("required", [])
        for key, field in definition["properties"].items():
            lines.append(f"| `{key}` | {_about(key, field, required)} |")
    return lines


def _title(name: str, definition: dict[str, Any]) -> str:
    kind = definition["properties"].get("kind", {}).get("const")
    return f"a probe of kind `{kind}`" if kind else f"`{name.removesuffix('Settings').lower()}`"


def _about(key: str, field: dict[str, Any], required: list[str]) -> str:
    parts = []
    if key in required:
        parts.append("Required.")
    if "enum" in field:
        parts.append("One of " + ", ".join(f"`{value}`" for value in field["enum"]) + ".")
    if "description" in field:
        parts.append(field["description"])
    return " ".join(parts) or "Optional."


def metrics_section() -> list[str]:
    """Return every metric with its type, labels and meaning, as the collector yields them."""
    state = AgentState(["mailbox"])
    probe = ProbeState("probe", "target", "kind", 60.0, Counter({Reason.NONE: 0}), last_run=0.0)
    probe.success, probe.certificate_not_after, probe.phases = 1.0, 0.0, {"connect": 0.0}
    state.probes["probe", "target"] = probe
    delivery = DeliveryState(SloSettings(objective="99%", within="30s"), last=0.0, uncertainty=0.0)
    delivery.hop_seconds, delivery.authentication = {"final": 0.0}, {"spf": "pass"}
    state.deliveries["probe", "target"] = delivery
    state.skipped["probe", "missed"] = 0
    lines = ["## Metrics", "", "| name | type | labels | meaning |", "|---|---|---|---|"]
    for family in AgentCollector(state, Tally).collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"`{family.name}{suffix}`"
        lines.append(f"| {name} | {family.type} | {', '.join(labels)} | {family.documentation} |")
    reasons = ", ".join(f"`{reason}`" for reason in Unexpected)
    lines += [
        "",
        f"`mailsonde_mailbox_unexpected_total` has the reasons {reasons}: see [messages](messages.md).",
        "`mailsonde_schedule_skipped_total` has the reasons `missed` (not started in time) and `overrun`",
        "(the previous run was still going on).",
    ]
    return lines


def reasons_section() -> list[str]:
    """Return every reason with its outcome and meaning, by area."""
    lines = ["## Reasons", "", "An outcome `ok` with a reason other than `none` is a warning."]
    for area in Area:
        lines += ["", f"### {area}", "", "| reason | outcome | meaning |", "|---|---|---|"]
        lines += [f"| `{r}` | {r.outcome} | {r.meaning} |" for r in Reason if r.area is area]
    return lines


def looks_section() -> list[str]:
    """Return what looking for a message costs and gives, before anything is learnt and after."""
    lines = [
        "## Looks into a mailbox",
        "",
        "Logins until a POP3 mailbox shows a message, and how far its latency can then be off, where a look",
        "takes no time: for a route whose latency is not known yet, and after 50 messages that took half to",
        "twice as long as the one looked for.",
        "",
        "| true delay | logins, route unknown | error at most | logins, route known | error at most |",
        "|---|---|---|---|---|",
    ]
    for delay in (0.2, 1.0, 10.0, 60.0, 300.0, 3600.0):
        unknown, known = ArrivalModel(6, 0.02, LONGEST_GAP), ArrivalModel(6, 0.02, LONGEST_GAP)
        for n in range(50):
            arrival = delay * 2 ** ((n * 7 % 50) / 25 - 1)
            known.learn(arrival * 0.98, arrival * 1.02)
        cells = (
            f"{logins} | ± {error:.2g} s" for logins, error in (_looks(unknown, delay), _looks(known, delay))
        )
        lines.append(f"| {delay:g} s | {' | '.join(cells)} |")
    return lines


def _looks(model: ArrivalModel, delay: float) -> tuple[int, float]:
    """Return the looks until a message of that delay is found, and half the last gap."""
    looks, latest, previous = 0, 0.0, 0.0
    while latest < delay:
        previous, latest = latest, latest + model.gap(latest)
        looks += 1
    return looks, (latest - previous) / 2


def reference() -> str:
    """Return the whole page."""
    sections = [settings_section(), metrics_section(), looks_section(), reasons_section()]
    return _HEAD + "".join("\n" + "\n".join(section) + "\n" for section in sections)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if not REFERENCE.exists() or REFERENCE.read_text() != reference():
            sys.exit("docs/reference.md is not what the code says; run `make docs`")
    else:
        REFERENCE.write_text(reference())
