"""The shipped alert rules in a Prometheus that scrapes 1,000 and 10,000 routes: how long each group takes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.many_routes import many_routes
from tests.benchmarks.processes import workplace
from tests.real_servers.prometheus import Prometheus

RULES = Path(__file__).parents[2] / "alerts" / "rules"
ROUTES = (1000, 10_000)
SCRAPED_EVERY = 15
WATCHED = 300.0
"""Seconds of data. A longer window reads only these, and takes longer once Prometheus has more."""

GOAL = 0.5
"""The largest share of its interval that a group's evaluation may take, so that there is room for more."""


def main() -> bool:
    """Print the size of the rules, and what each group takes; return whether all have enough time."""
    files = sorted(RULES.glob("*.rules.yaml"))
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} rule files, {size / 1000:.0f} KB, the same for any number of routes")
    return all([_evaluated(routes) for routes in ROUTES])  # noqa: C419 # each is printed


def _evaluated(routes: int) -> bool:
    with workplace() as (directory, _), many_routes(routes) as (address, _):
        prometheus = Prometheus(directory, _configuration(directory, address))
        try:
            prometheus.wait_until(lambda p: p.query("up == 1"), "scraped", 120.0)
            time.sleep(WATCHED)
            ((_, samples),) = prometheus.query("scrape_samples_post_metric_relabeling")
            ((_, firing),) = prometheus.query('count(ALERTS{alertstate="firing"})')
            print(f"{routes} routes, {samples:.0f} samples a scrape, {firing:.0f} alerts firing:", flush=True)
            return _tell(prometheus.evaluations())
        finally:
            prometheus.stop()


def _configuration(directory: Path, address: str) -> Path:
    every = f"{SCRAPED_EVERY}s"
    config = directory / "prometheus.yml"
    document = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [f"{RULES}/*.rules.yaml"],
        "scrape_configs": [{"job_name": "mailsonde", "static_configs": [{"targets": [address]}]}],
    }
    config.write_text(json.dumps(document))  # JSON is YAML
    return config


def _tell(groups: Sequence[dict[str, Any]]) -> bool:
    """Print each group, and its slowest rules; return whether all take little of their interval."""
    for group in groups:
        seconds, interval = group["evaluationTime"], group["interval"]
        print(f"  {group['name']:20} {seconds:7.3f} s of {interval:3.0f} s  {seconds / interval:6.1%}")
        for rule in sorted(group["rules"], key=lambda rule: -rule["evaluationTime"])[:3]:
            window = rule.get("labels", {}).get("window", "")
            print(f"    {rule['evaluationTime']:7.3f} s  {rule['name']} {window}")
    return all(group["evaluationTime"] <= GOAL * group["interval"] for group in groups)
