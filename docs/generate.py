"""Generates docs/reference/ from the code; ``--check`` only compares."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from monitor.collector import AgentCollector
from monitor.config.hybrid import LABELS
from monitor.config.models import Configuration
from monitor.labels import Labels
from monitor.ledger.counters import Counters, Total
from monitor.ledger.pauses import Pause
from monitor.maintenance import Maintenance
from monitor.rendering import render_alerts
from monitor.self_watch import SelfWatch
from monitor.state import AgentState, DeliveryState, Exchange, ProbeState
from monitor.thresholds import Thresholds, load_thresholds
from probes.core.clock import SystemClock
from probes.core.finding import Check, Severity
from probes.core.histogram import Histogram
from probes.core.reasons import Area, Outcome, Reason
from probes.core.remedies import GENERAL
from probes.core.setting_types import parse_duration
from probes.core.settings import CommonAlertSettings, Settings
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Unexpected
from probes.delivery.message_probe import DeliveryAlertSettings
from probes.delivery.polling import ArrivalModel
from probes.delivery.service_level import SloSettings
from probes.delivery.watcher import LONGEST_GAP
from probes.exchange import DIRECTORY_LABEL, NODE_LABEL
from probes.messages.authentication_results import METHODS
from probes.messages.exchange_report import ExchangeReport
from probes.oauth2.settings import GenericOAuth2
from probes.oauth2.tokens import TokenSource
from probes.registry import KINDS

DOCS = Path(__file__).parent
ROOT = DOCS.parent

_EXPORTED = {
    "MailsondeMessageOverdue": "overdue",
    "MailsondeDeliverySlow": "slow",
    "MailsondeProbeStale": "stale",
    "MailsondeProbeDown": "down",
    "MailsondeFindingCritical": "down",
}
"""The thresholds of `mailsonde_threshold_seconds` that alerts read."""

_MADE = "Generated from the code by `make docs`; do not edit."


def settings_page() -> list[str]:
    """Return the settings of every section of the configuration file."""
    definitions = {
        name: definition
        for name, definition in Configuration.model_json_schema(by_alias=True)["$defs"].items()
        if "Defaults" not in name  # which has the same settings again
    }
    lines = [
        "# Settings",
        "",
        f"{_MADE} [config/example.yaml](../../config/example.yaml) shows each setting in context.",
        "Durations are written `500ms`, `30s`, `5m`, `1h` or `1d`. Host names, domains, mail addresses, user",
        "names, `location`, `listen` and `ledger` may be `{env: NAME}`, for an environment variable's value.",
        "Keys at the top of the file that begin with `x-` are ignored: a place for anchors.",
        "[Large configurations](../large-configurations.md) explains `include`, `defaults` and `for_each`.",
    ]
    models = {model.__name__: model for model in _models(Settings)}
    titles = {
        "AgentSettings": "`agent`",
        "ServerSettings": "An entry of `servers`",
        "MailboxSettings": "An entry of `mailboxes`",
        "MicrosoftOAuth2": "An entry of `oauth2` with the provider `microsoft`",
        "GoogleOAuth2": "An entry of `oauth2` with the provider `google`",
        "GenericOAuth2": "An entry of `oauth2` with any other provider, `generic`",
        "HybridSettings": "An entry of `hybrid`",
        "HybridSide": "`on_premises` and `cloud` of a hybrid organization",
        "HybridOutside": "`outside` of a hybrid organization",
        "CommonAlertSettings": "`alerts`",
        "WindowSettings": "An entry of `maintenance`",
    }
    for name, definition in sorted(definitions.items(), key=lambda item: (item[0] not in titles, item[0])):
        title = titles.get(name) or _title(name, definition)
        lines += ["", f"## {title}", "", "| key | default | description |", "|---|---|---|"]
        for key, schema in definition["properties"].items():
            lines.append(_settings_row(key, models[name], schema))
    return lines


def _models(base: type[Settings]) -> Iterator[type[Settings]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _title(name: str, definition: dict[str, Any]) -> str:
    kind = definition["properties"].get("kind", {}).get("const")
    return f"A probe of kind `{kind}`" if kind else f"`{name.removesuffix('Settings').lower()}`"


def _settings_row(key: str, model: type[Settings], schema: dict[str, Any]) -> str:
    field = next(field for name, field in model.model_fields.items() if key in {name, field.alias})
    about, _, described = (field.description or "").partition("Default: ")
    parts = [about.rstrip()]
    if "enum" in schema:
        parts.insert(0, "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".")
    if key == "kind":
        default = f"required: `{schema['const']}`"
    else:
        default = "required" if field.is_required() else described.removesuffix(".") or _default(field)
    return f"| `{key}` | {default} | {' '.join(filter(None, parts))} |"


def _default(field: FieldInfo) -> str:
    """Return a setting's default as it would be written in the file."""
    value = field.get_default(call_default_factory=True)
    if value in (None, {}):
        return "none"
    if isinstance(value, Settings):
        return "the defaults of its keys"
    if any(isinstance(mark, BeforeValidator) and mark.func is parse_duration for mark in field.metadata):
        return f"`{_duration(value)}`"
    if isinstance(value, tuple) and value:
        return f"`{':'.join(map(str, value))}`"  # host and port
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _duration(seconds: float) -> str:
    units = {"d": 86400, "h": 3600, "m": 60}
    fitting = (unit for unit, size in units.items() if seconds >= 2 * size and seconds % size == 0)
    unit = next(fitting, "s")
    return f"{seconds / units.get(unit, 1):g}{unit}"


def metrics_page() -> list[str]:
    """Return every metric with its type, labels and meaning, as the collector yields them."""
    state = AgentState(["mailbox"])
    own = ("severity", "description", "mailbox_server", "address", NODE_LABEL, DIRECTORY_LABEL)
    info = Labels(dict.fromkeys((*own, *LABELS), ""))
    probe = ProbeState("probe", "target", "kind", 60.0, info, last_run=0.0)
    probe.reasons[Reason.CONNECT_REFUSED] = 1
    probe.failed_runs = 1
    probe.thresholds = {"down": 600.0}
    probe.success, probe.certificate_not_after, probe.phases = 1, 0.0, {"connect": 0.0}
    probe.failures = {Outcome.FAILED: (Reason.CONNECT_REFUSED, "connect")}
    probe.findings = frozenset({(Check.MX_MISSING, Severity.CRITICAL)})
    state.probes["probe", "target"] = probe
    objective = SloSettings(objective="99%", within="30s")
    delivery = DeliveryState(objective, has_arrivals=True, last=0.0, uncertainty=0.0)
    delivery.hops_skewed, delivery.hop_seconds = 1, {"final": 1.0}
    delivery.authentication = Labels(dict.fromkeys(METHODS, "pass"))
    delivery.exchange = Exchange.of(ExchangeReport({"hub": 1.0}, end_to_end_seconds=1.0, scl="1"))
    state.deliveries["probe", "target"] = delivery
    state.skipped["probe"] = Counter(missed=0)
    state.poll_throttled("mailbox", 0.0)
    state.scheduled["probe"] = "target"
    pause = Pause("probe", begins_at=0.0, ends_at=inf, comment="", set_by="")
    state.maintenance = Maintenance({"probe": {}}).paused([pause])
    counters = Counters().updated([Total("probe", "target", MessageState.INTENT, 1, held=1, oldest=0.0)])
    lines = ["# Metrics", "", _MADE, "", "| name | type | labels | meaning |", "|---|---|---|---|"]
    tokens = TokenSource(
        "oauth2",
        GenericOAuth2.model_construct(provider="generic", credential_expires=date(2027, 5, 1)),
        SystemClock(),
    )
    tokens.requests.obtained_at = tokens.requests.expires_at = 0.0
    state.web_config_is_valid = True
    own = SelfWatch(Histogram(), Histogram(), lambda: 0.0, lambda: 0, lambda: 1)
    collector = AgentCollector(
        state, lambda: counters, lambda *_: 60.0, lambda: {"oauth2": tokens}, self_watch=own
    )
    for family in collector.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"`{family.name}{suffix}`"
        lines.append(f"| {name} | {family.type} | {', '.join(labels)} | {family.documentation} |")
    reasons = ", ".join(f"`{reason}`" for reason in Unexpected)
    lines += [
        "",
        f"`mailsonde_mailbox_unexpected_total` has the reasons {reasons}: see [messages](../messages.md).",
        "`mailsonde_schedule_skipped_total` has the reasons `missed` (not started in time), `overrun` (the",
        "previous run was still in progress) and `overload` (held back: see",
        "[measurement](../measurement.md)).",
        "`mailsonde_finding` has one series for each [check](checks.md) that found something.",
    ]
    return lines


def reasons_page() -> list[str]:
    """Return every reason with its outcome and meaning, by area."""
    lines = [
        "# Reasons",
        "",
        _MADE,
        "An outcome `ok` with a reason other than `none` is a warning.",
        "",
        "The live page, `mailsonde check` and the member `remedy` of its JSON say what to do, if that is",
        "known. If a server's reply says more than the reason, they show a remedy for that instead.",
    ]
    for area in Area:
        lines += ["", f"## {area}", "", "| reason | outcome | meaning | remedy |", "|---|---|---|---|"]
        lines += [
            f"| `{r}` | {r.outcome} | {r.meaning} | {GENERAL.get(r, '')} |" for r in Reason if r.area is area
        ]
    return lines


def checks_page() -> list[str]:
    """Return every check with its severities, meaning, source and remedy, by kind of probe."""
    lines = [
        "# Checks",
        "",
        f"{_MADE} A check that finds something wrong reports",
        "a finding: its severity, the subject (such as a host name), what was seen, what was expected,",
        "and the remedy. `mailsonde check` and the live page show all of that. `mailsonde_finding` has",
        "the check and the severity.",
        "",
        "A `critical` finding fails the run and pages somebody, a `warning` leaves the run `ok` with a",
        "warning, and `info` is shown and alerts nobody.",
    ]
    for kind, probe in KINDS.items():
        if probe.checks:
            lines += [
                "",
                f"## {kind}",
                "",
                "| check | severity | meaning | source | remedy |",
                "|---|---|---|---|---|",
            ]
        for check in (check for check in Check if check in probe.checks):
            severities = ", ".join(check.severities)
            lines.append(f"| `{check}` | {severities} | {check.meaning} | {check.source} | {check.remedy} |")
    return lines


def alerts_page() -> list[str]:
    """Return every alert with its severity, text, thresholds and runbook, by subsystem."""
    lines = [
        "# Alerts",
        "",
        f"{_MADE} These are the rules in [alerts/rules](../../alerts/rules).",
        "The alert fills in the words in *italics*. Thresholds are keys of",
        "[alerts/thresholds.yaml](../../alerts/thresholds.yaml), shown with their defaults, and of `alerts`",
        "in the agent's configuration, for all probes or for one.",
    ]
    shipped = load_thresholds()
    deciding = _deciding_keys(shipped)
    for file, rules in _alerts(shipped).items():
        if not rules:
            continue
        lines += ["", f"## {file.removeprefix('mailsonde-').removesuffix('.rules.yaml')}"]
        for name, variants in rules.items():
            severities = ", ".join(_severity(rule) for rule in variants)
            runbook = f"../../alerts/runbooks/{name}.md"
            lines += ["", f"### {name}", "", f"Severity: {severities}. [Runbook]({runbook})."]
            lines += ["", f"> {_in_words(variants[0]['annotations']['summary'])}"]
            for description in dict.fromkeys(rule["annotations"]["description"] for rule in variants):
                lines += ["", _in_words(description)]
            if keys := deciding[name]:
                lines += ["", "Thresholds:", "", *(f"- {key}" for key in keys)]
    return lines


def _alerts(thresholds: Thresholds) -> dict[str, dict[str, list[Any]]]:
    """Return the alerting rules by file and name, with the recorded expressions that they read.

    An alert of two severities has two rules.
    """
    files: dict[str, dict[str, list[Any]]] = {}
    recorded: dict[str, list[str]] = defaultdict(list)
    for file, text in render_alerts(thresholds=thresholds).items():
        rules = files.setdefault(file, {})
        for rule in _rules(text):
            if "alert" in rule:
                rules.setdefault(rule["alert"], []).append(dict(rule))
            else:
                recorded[rule["record"]].append(rule["expr"])
    for rule in (rule for rules in files.values() for variants in rules.values() for rule in variants):
        rule["reads"] = [recorded[name] for name in re.findall(r"mailsonde:\w+", rule["expr"])]
    return files


@cache
def _rules(text: str) -> list[dict[str, Any]]:
    """Return the rules of a file: one threshold changes few files."""
    groups = yaml.load(text, Loader=yaml.CSafeLoader)["groups"]  # a safe loader too, ten times as fast
    return [rule for group in groups for rule in group["rules"]]


def _deciding_keys(shipped: Thresholds) -> dict[str, list[str]]:
    """Return, by alert, the keys that it depends on.

    Changing such a key changes what is rendered, or a threshold of a probe that the rule reads.
    """
    before = _by_name(_alerts(shipped))
    keys: dict[str, list[str]] = {name: [] for name in before}
    for shown, altered in _alterations(shipped):
        for name, rules in _by_name(_alerts(altered)).items():
            if rules != before[name]:
                keys[name].append(shown)
    for name, threshold in _EXPORTED.items():
        common = CommonAlertSettings.model_fields
        keys[name] += [
            f"`alerts: {{{key}: {common[key].default:g}}}`" for key in common if key.startswith(threshold)
        ]
        if threshold in DeliveryAlertSettings.model_fields:
            keys[name].append(f"the probe's `alerts: {{{threshold}: …}}`")
    return keys


def _by_name(files: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    return {name: variants for rules in files.values() for name, variants in rules.items()}


def _alterations(shipped: Thresholds) -> Iterator[tuple[str, Thresholds]]:
    """Yield every threshold as the page shows it, with thresholds where it differs."""
    for key, written in yaml.safe_load((ROOT / "alerts" / "thresholds.yaml").read_text()).items():
        value = getattr(shipped, key)
        if key == "scrape_interval":
            altered: object = 600.0
        elif key.endswith("_at_most"):
            altered = value / 1000
        elif isinstance(value, float):
            altered = value * 2 or 1.0
        elif key in {"slo_fast", "slo_slow"}:
            altered = tuple(pair.model_copy(update={"factor": pair.factor * 2}) for pair in value)
        else:
            continue  # recorded windows, names and addresses
        shown = yaml.safe_dump(written, default_flow_style=True, width=1000, sort_keys=False)
        yield f"`{key}: {shown.split(chr(10))[0]}`", shipped.model_copy(update={key: altered})


def _severity(rule: Mapping[str, Any]) -> str:
    severity: str = rule["labels"]["severity"]
    return "critical" if "{{" in severity else severity  # a template, for probes whose alerts do not page


def _in_words(text: str) -> str:
    """Return an annotation with placeholders for its variables; raises ValueError for an unknown template."""
    ask = r"{{ with query \(printf `[^`]*`[^`]*?\) }}"
    text = re.sub(
        ask + r'{{ with \. \| first \| label "address" }}.*?{{ end }}{{ end }}', " (*host:port*)", text
    )
    text = re.sub(ask + r"{{ with \. \| first \| .*?{{ end }}{{ end }}", " *description*", text)
    text = re.sub(ask + r'( ?){{ \. \| first \| label "(\w+)" }}{{ end }}', r"\1*\2*", text)
    text = re.sub(
        r"{{ range query \(printf `[^`]*`[^`]*?\)[^}]*}}( ?){{ \.Labels\.(\w+) }}{{ end }}", r"\1*\2*", text
    )
    text = re.sub(ask + r"{{ \. \| first \| value .*? }}{{ else }}.*?{{ end }}", "*threshold*", text)
    text = re.sub(
        r"{{ with query `[^`]*` }}(.*?){{ \. \| first \| value }}(.*?){{ else }}(.*?){{ end }}",
        r"\1*number*\2 (or: \3)",
        text,
    )
    text = re.sub(r"{{ range query .*? }}(.*?){{ end }}{{ end }}", r"\1", text)
    text = re.sub(r"{{ \.Labels\.(\w+) }}{{ with \.Labels\.(\w+) }}(.*?){{ \. }}", r"*\1*\3*\2*", text)
    text = re.sub(r"{{ with \$labels\.(\w+) }}(.*?){{ \. }}(.*?){{ end }}", r"\2*\1*\3", text)
    text = re.sub(r"{{ if .*? }}(.*?){{ else }}(.*?){{ end }}", r"\1 (or: \2)", text)
    text = re.sub(r"{{ \$labels\.(\w+) }}", r"*\1*", text)
    text = re.sub(r"{{ \$value( \| [^}]*)? }}", "*value*", text)
    if "{{" in text:
        raise ValueError(f"docs/generate.py does not know a template in this annotation: {text}")
    return text


def polls_page() -> list[str]:
    """Return what polling for a message costs and how precise it is, on a new route and on a known one."""
    lines = [
        "# Polls and precision",
        "",
        f"{_MADE} See [how latency is measured](../measurement.md).",
        "",
        "The number of logins until a POP3 mailbox shows a message, and the largest error of its latency,",
        "if a poll takes no time. On a new route, nothing is known about the latency. On a known route, 50",
        "messages have taken between half and twice as long as this one.",
        "",
        "| true delay | logins, new route | largest error | logins, known route | largest error |",
        "|---|---|---|---|---|",
    ]
    for delay in (0.2, 1.0, 10.0, 60.0, 300.0, 3600.0):
        unknown, known = ArrivalModel(6, 0.02, LONGEST_GAP), ArrivalModel(6, 0.02, LONGEST_GAP)
        for n in range(50):
            arrival = delay * 2 ** ((n * 7 % 50) / 25 - 1)
            known.learn(arrival * 0.98, arrival * 1.02)
        cells = (
            f"{logins} | ± {error:.2g} s" for logins, error in (_polls(unknown, delay), _polls(known, delay))
        )
        lines.append(f"| {delay:g} s | {' | '.join(cells)} |")
    return lines


def _polls(model: ArrivalModel, delay: float) -> tuple[int, float]:
    """Return the number of polls until a message with that delay is found, and half the last gap."""
    polls, latest, previous = 0, 0.0, 0.0
    while latest < delay:
        previous, latest = latest, latest + model.gap(latest)
        polls += 1
    return polls, (latest - previous) / 2


_INDEX = f"""\
# Reference

{_MADE}

- [Settings](reference/settings.md): every key of the configuration file
- [Metrics](reference/metrics.md): every series at `/metrics`
- [Reasons](reference/reasons.md): why a run ended the way it did
- [Checks](reference/checks.md): what a check can find wrong, how bad it is, and what to do about it
- [Alerts](reference/alerts.md): when each alert fires, and its thresholds
- [Polls and precision](reference/polls.md): how many logins a measurement costs
"""


def pages() -> dict[Path, str]:
    """Return every generated page by its path."""
    made = {
        "settings": settings_page(),
        "metrics": metrics_page(),
        "reasons": reasons_page(),
        "checks": checks_page(),
        "alerts": alerts_page(),
        "polls": polls_page(),
    }
    reference = {DOCS / "reference" / f"{name}.md": "\n".join(lines) + "\n" for name, lines in made.items()}
    return {DOCS / "reference.md": _INDEX, **reference}


def main(arguments: list[str]) -> None:
    """Write the pages, or with ``--check`` exit with the names of those that are out of date."""
    made = pages()
    if "--check" in arguments:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        stale += sorted(set((DOCS / "reference").glob("*.md")) - set(made))
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            sys.exit(f"out of date: {names}; run `make docs`")
        return
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
