"""Generates files for Prometheus and Grafana from the site's configuration."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from monitor.cadence import CADENCES
from monitor.config.models import Configuration
from monitor.scrape_access import ScrapeAccess
from monitor.shipped import shipped
from monitor.thresholds import Thresholds, load_thresholds
from probes.core.finding import Check, Severity
from probes.core.reasons import Reason
from probes.core.setting_types import parse_duration
from probes.registry import KINDS

SLOWEST_SCRAPE = 15
"""Scrape interval in seconds, unless a probe runs more often."""

RULES = "rules"
"""The directory next to the Prometheus configuration that must contain the rules."""

RESTART = 900.0
"""For so many seconds, rules bridge an agent's absence, such as an upgrade or a restart of its machine."""

UNSTABLE = ("instance", "pod", "container", "endpoint", "address", "description")
"""Labels that may change while a probe stays the same. Alerts lack them: a change would begin a new one."""

MINUTELY = 60.0
"""At most so many seconds are between two evaluations of rules that can wait."""

LONG_WINDOW = 6 * 3600.0
"""From this many seconds on, a window of an error budget reads samples that are minutes apart."""


def render_alerts(
    configuration: Configuration | None = None,
    thresholds: Thresholds | None = None,
    cadences: Mapping[float, str] = CADENCES,
) -> dict[str, str]:
    """Return the rule files by name, one per template; they are valid for every site.

    ``configuration`` adds the addresses that alerts link to, and the scrape interval of quick probes. Rules
    have windows only for ``cadences``, classes by their longest interval in seconds.
    """
    thresholds = thresholds or load_thresholds()
    own = {
        "scrape_interval": thresholds.scrape_interval or slowest_scrape(configuration),
        "runbooks": runbooks_address(configuration, thresholds),
    }
    thresholds = thresholds.model_copy(update=own)
    long = [window for window in thresholds.slo_windows if parse_duration(window) >= LONG_WINDOW]
    short = [window for window in thresholds.slo_windows if window not in long]
    environment = _environment(thresholds, cadences)
    return {
        f"mailsonde-{name.removesuffix('.yaml.j2')}.rules.yaml": environment.get_template(name).render(
            generated="Generated; do not edit. `mailsonde render alerts` adds links and your own thresholds.",
            thresholds=thresholds,
            live_page=configuration and configuration.agent.url,
            restart=RESTART,
            unstable=UNSTABLE,
            judging=[name for name, kind in KINDS.items() if kind.checks],
            critical_checks=[check for check in Check if Severity.CRITICAL in check.severities],
            warning_checks=[check for check in Check if Severity.WARNING in check.severities],
            bounce_reasons=[reason for reason in Reason if reason.startswith("bounce_")],
            long_windows=long,
            short_windows=short,
            minutely_interval=min(MINUTELY, *(parse_duration(window) / 5 for window in short)),
        )
        for name in environment.list_templates(filter_func=lambda name: name.endswith(".yaml.j2"))
    }


class _Compiled(BytecodeCache):
    """Compiled templates while the process runs: each rendering has an environment of its own."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType | None] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key, bucket.checksum] = bucket.code


_COMPILED = _Compiled()


def _environment(thresholds: Thresholds, cadences: Mapping[float, str]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(shipped("alerts")),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 # PromQL in YAML, not HTML; nothing of a site's is inserted unchecked
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        keep_trailing_newline=True,
        bytecode_cache=_COMPILED,
    )
    environment.filters |= {"number": lambda number: f"{number:g}", "duration": promql_duration}
    environment.globals["paces"] = partial(_paces, thresholds, cadences)
    return environment


def _paces(thresholds: Thresholds, cadences: Mapping[float, str], *names: str) -> list[dict[str, Any]]:
    """Return the named windows: once for all classes of intervals that have the same.

    Each has the windows in seconds by name, and as ``cadence`` the matcher of its classes.
    """
    classes: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for interval, label in cadences.items():
        windows = _windows(interval, thresholds)
        classes[tuple(windows[name] for name in names)].append(label)
    return [
        {"cadence": _matcher(labels), **dict(zip(names, windows, strict=True))}
        for windows, labels in classes.items()
    ]


def _matcher(labels: list[str]) -> str:
    return f'cadence=~"{"|".join(labels)}"' if len(labels) > 1 else f'cadence="{labels[0]}"'


def _windows(interval: float, thresholds: Thresholds) -> dict[str, float]:
    """Return the windows of rules for probes with this interval, in seconds."""
    lost = min(thresholds.lost_intervals * interval, thresholds.lost_at_most)
    unsteady = min(thresholds.unsteady_intervals * interval, thresholds.unsteady_at_most)
    third = 3 * thresholds.unsteady_failures * interval  # holds enough failed runs if every third fails
    latest = (
        1.5 * interval
    )  # holds the latest run or two; without a run, a probe would be neither up nor down
    windows = {
        "latest": latest,
        "again": max(latest, 3 * MINUTELY),  # holds the latest run and an evaluation after the one before
        "down": max(thresholds.down_intervals * interval, latest),
        "refused": max(thresholds.refused_intervals * interval, latest),
        "lost": max(thresholds.lost_at_least, latest, lost),
        "blocked": max(thresholds.blocked_at_least, latest),
        "inactive": max(thresholds.exchange_inactive_for, thresholds.down_intervals * interval),
        "slow": max(thresholds.slow_at_least, thresholds.slow_intervals * interval),
        "unknown": max(thresholds.unknown_at_least, thresholds.unknown_intervals * interval),
        "unsteady": max(thresholds.unsteady_at_least, unsteady, third),
        "skipped": max(thresholds.skipped_at_least, thresholds.skipped_intervals * interval),
        # always holds two bad runs if every other one is bad
        **{window: max(parse_duration(window), 4 * interval) for window in thresholds.slo_windows},
    }
    return {name: max(window, 4 * thresholds.scrape_interval) for name, window in windows.items()}


def runbooks_address(configuration: Configuration | None, thresholds: Thresholds) -> str:
    """Return the start of links to runbooks: an address, or only a path if the site has none."""
    agent = configuration and configuration.agent.url
    return thresholds.runbooks or (f"{agent}/runbooks" if agent else "alerts/runbooks")


def promql_duration(seconds: float) -> str:
    """Return a time as PromQL writes it, such as ``2m30s``, to the millisecond."""
    rest = round(seconds * 1000)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def slowest_scrape(configuration: Configuration | None) -> int:
    """Return the scrape interval in seconds that misses no run of the site's most frequent probe."""
    if configuration is None:
        return SLOWEST_SCRAPE
    return max(1, min(SLOWEST_SCRAPE, int(min(probe.interval for probe in configuration.enabled_probes))))


def render_prometheus(
    configuration: Configuration,
    alertmanagers: Iterable[tuple[str, int]] = (),
    access: ScrapeAccess | None = None,
) -> dict[str, str]:
    """Return a Prometheus configuration that scrapes this agent and loads the rules in ``rules/`` beside it.

    It sends alerts to ``alertmanagers``, given as host and port. ``access`` is what the agent asks of it.
    """
    every = slowest_scrape(configuration)
    settings = "".join(
        f"    {key}: {json.dumps(value)}\n" for key, value in (access.settings if access else {}).items()
    )
    text = f"""\
# Generated by `mailsonde render prometheus`. `mailsonde render alerts --out {RULES}/` writes the rules.
global:
  scrape_interval: {every}s
  evaluation_interval: {every}s

rule_files:
  - {RULES}/mailsonde-*.rules.yaml

scrape_configs:
  - job_name: mailsonde
{settings}    static_configs:
      - targets: [{json.dumps(_address(*configuration.agent.listen))}]
"""
    if targets := [_address(*alertmanager) for alertmanager in alertmanagers]:
        text += f"""
alerting:
  alertmanagers:
    - static_configs:
        - targets: {json.dumps(targets)}
"""
    return {"prometheus.yml": text}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def render_dashboards(configuration: Configuration) -> dict[str, str]:
    """Return the dashboards as JSON, refreshed as often as the site's most frequent probe runs.

    Dashboards that cover days keep their own, slower refresh.
    """
    fastest = max(5.0, min(60.0, *(probe.interval for probe in configuration.enabled_probes)))
    files = {}
    for path in sorted(shipped("dashboards").glob("*.json")):
        dashboard: dict[str, Any] = json.loads(path.read_text())
        if parse_duration(dashboard["refresh"]) <= 60.0:
            dashboard["refresh"] = promql_duration(fastest)
        dashboard["tags"] = [*dashboard.get("tags", []), configuration.agent.location]
        files[f"mailsonde-{path.name}"] = json.dumps(dashboard, indent=2) + "\n"
    return files


def write_files(files: Mapping[str, str], directory: Path) -> list[Path]:
    """Write the files, each completely or not at all, and return their paths. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files.items():
        path = directory / name
        unfinished = path.with_name(f".{name}.unfinished")
        unfinished.write_text(text)
        unfinished.replace(path)
        written.append(path)
    return written
