"""Generates files for Prometheus and Grafana from the site's configuration."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from monitor.config.models import Configuration
from monitor.shipped import shipped
from monitor.state import DELIVERY_BUCKETS
from monitor.thresholds import Thresholds, load_thresholds
from probes.core.setting_types import parse_duration
from probes.core.settings import ProbeSettings
from probes.delivery.message_probe import DeliveryAlertSettings, MessageProbeSettings
from probes.registry import KINDS

SLOWEST_SCRAPE = 15
"""Scrape interval in seconds, unless a probe runs more often."""

RULES = "rules"
"""The directory next to the Prometheus configuration that must contain the rendered rules."""


@dataclass(frozen=True, slots=True)
class TimingGroup:
    """Probes that share the terms of a rule because they have the same times; in seconds."""

    names: tuple[str, ...]
    interval: float
    run_limit: float
    overdue: float
    slow: float
    slow_bucket: str  # the bound of the delivery histogram at `slow`, or the next below
    down_window: float
    down_runs: int  # how many failed runs it takes
    refused_window: float  # as down_window, for refused connections
    lost_window: float
    slow_window: float
    unknown_window: float
    unsteady_window: float
    latest_window: float  # holds the latest run or two
    skipped_window: float


def render_alerts(configuration: Configuration, thresholds: Thresholds | None = None) -> dict[str, str]:
    """Return the rule files by name: one per template that has rules for these probes."""
    thresholds = thresholds or load_thresholds()
    own = {
        "scrape_interval": thresholds.scrape_interval or slowest_scrape(configuration),
        "runbooks": runbooks_address(configuration, thresholds),
    }
    thresholds = thresholds.model_copy(update=own)
    environment = Environment(
        loader=FileSystemLoader(shipped("alerts")),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 # PromQL in YAML, not HTML; filters quote what is inserted
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "groupby_interval": _interval_groups,
        "groupby_address": lambda probes: _addresses(probes, configuration),
        "groupby_mailbox_server": lambda routes: _mailbox_servers(routes, configuration),
        "groupby_timing": lambda probes: list(_timing_groups(probes, thresholds)),
        "promql_any": promql_any,
        "regex_any": _regex_any,
        "widened": lambda window, interval: promql_duration(max(parse_duration(window), 3 * interval)),
        "number": lambda number: f"{number:g}",
        "duration": promql_duration,
    }
    routes = [probe for probe in configuration.probes if isinstance(probe, MessageProbeSettings)]
    objectives = [probe for probe in routes if probe.slo]
    quiet = [probe.name for probe in configuration.probes if probe.severity == "warning"]
    judging = [probe for probe in configuration.probes if KINDS[probe.kind].checks]
    files = {}
    for name in environment.list_templates(filter_func=lambda name: name.endswith(".yaml.j2")):
        text = environment.get_template(name).render(
            probes=configuration.probes,
            routes=routes,
            objectives=objectives,
            judging=judging,
            quiet=quiet,
            thresholds=thresholds,
            live_page=configuration.agent.url,
        )
        if any(group["rules"] for group in yaml.safe_load(text)["groups"]):
            files[f"mailsonde-{name.removesuffix('.yaml.j2')}.rules.yaml"] = text
    return files


def runbooks_address(configuration: Configuration, thresholds: Thresholds) -> str:
    """Return the start of links to runbooks: an address, or only a path if the site has none."""
    agent = configuration.agent.url
    return thresholds.runbooks or (f"{agent}/runbooks" if agent else "alerts/runbooks")


def _timing_groups(probes: Iterable[ProbeSettings], thresholds: Thresholds) -> Iterator[TimingGroup]:
    def timing(probe: ProbeSettings) -> tuple[float, ...]:
        own = probe.alerts if isinstance(probe, MessageProbeSettings) else DeliveryAlertSettings()
        return (
            probe.interval,
            probe.run_limit,
            own.overdue or thresholds.overdue_share_of_deadline * probe.deadline,
            # The histogram cannot distinguish deliveries longer than its last bound.
            own.slow or min(thresholds.slow_share_of_deadline * probe.deadline, DELIVERY_BUCKETS[-1]),
            probe.alerts.down or thresholds.down_intervals * probe.interval,
            probe.alerts.down or thresholds.refused_intervals * probe.interval,
        )

    def window(seconds: float) -> float:
        return max(seconds, 4 * thresholds.scrape_interval)

    groups = groupby(sorted(probes, key=timing), timing)
    for (interval, limit, overdue, slow, down, refused), members in groups:
        lost = min(thresholds.lost_intervals * interval, thresholds.lost_at_most)
        yield TimingGroup(
            names=tuple(sorted(probe.name for probe in members)),
            interval=interval,
            run_limit=limit,
            overdue=overdue,
            slow=slow,
            slow_bucket=str(
                max((bound for bound in DELIVERY_BUCKETS if bound <= slow), default=DELIVERY_BUCKETS[0])
            ),
            # In a window without a run, the probe would be neither up nor down.
            down_window=window(max(down, 1.5 * interval)),
            down_runs=2 if down > interval else 1,
            refused_window=window(max(refused, 1.5 * interval)),
            lost_window=window(max(thresholds.lost_at_least, 1.5 * interval, lost)),
            slow_window=window(max(thresholds.slow_at_least, thresholds.slow_intervals * interval)),
            unknown_window=window(max(thresholds.unknown_at_least, thresholds.unknown_intervals * interval)),
            unsteady_window=window(
                max(
                    thresholds.unsteady_at_least,
                    min(thresholds.unsteady_intervals * interval, thresholds.unsteady_at_most),
                )
            ),
            latest_window=window(1.5 * interval),
            skipped_window=window(max(thresholds.skipped_at_least, thresholds.skipped_intervals * interval)),
        )


def _mailbox_servers(
    routes: Iterable[MessageProbeSettings], configuration: Configuration
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each server with the names of the routes into its mailboxes."""

    def server(route: MessageProbeSettings) -> str:
        return configuration.mailboxes[route.to].server

    for name, members in groupby(sorted(routes, key=server), server):
        yield name, tuple(sorted(route.name for route in members))


def _addresses(
    probes: Iterable[ProbeSettings], configuration: Configuration
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each server's ``HOST:PORT`` with the names of the probes that connect to it."""
    names: dict[str, list[str]] = defaultdict(list)
    for probe in probes:
        mailbox = getattr(probe, "mailbox", None)
        server = getattr(probe, "server", None) or getattr(probe, "send_via", None)
        if mailbox is not None:
            server = configuration.mailboxes[mailbox].server
        if server in configuration.servers:  # MX hosts are not in it; their target is already a host name
            settings = configuration.servers[server]
            names[_address(settings.host, settings.port)].append(probe.name)
    for address in sorted(names):
        yield address, tuple(sorted(names[address]))


def _interval_groups(probes: Iterable[ProbeSettings]) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Yield each interval with the names of its probes."""
    for interval, members in groupby(sorted(probes, key=lambda p: p.interval), lambda p: p.interval):
        yield interval, tuple(sorted(probe.name for probe in members))


def promql_any(names: Iterable[str]) -> str:
    """Return a PromQL string with a regular expression that matches exactly these names."""
    return json.dumps(_regex_any(names))


def _regex_any(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\-", "-") for name in names)


def promql_duration(seconds: float) -> str:
    """Return a time as PromQL writes it, such as ``2m30s``, to the millisecond."""
    rest = round(seconds * 1000)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def slowest_scrape(configuration: Configuration) -> int:
    """Return the scrape interval in seconds that misses no run of the site's most frequent probe."""
    return max(1, min(SLOWEST_SCRAPE, int(min(probe.interval for probe in configuration.probes))))


def render_prometheus(
    configuration: Configuration, alertmanagers: Iterable[tuple[str, int]] = ()
) -> dict[str, str]:
    """Return a Prometheus configuration that scrapes this agent and loads the rules in ``rules/`` beside it.

    It sends alerts to ``alertmanagers``, given as host and port.
    """
    every = slowest_scrape(configuration)
    text = f"""\
# Generated by `mailsonde render prometheus`. `mailsonde render alerts --out {RULES}/` writes the rules.
global:
  scrape_interval: {every}s
  evaluation_interval: {every}s

rule_files:
  - {RULES}/mailsonde-*.rules.yaml

scrape_configs:
  - job_name: mailsonde
    static_configs:
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
    fastest = max(5.0, min(60.0, *(probe.interval for probe in configuration.probes)))
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
