"""The shipped rules in a Prometheus that scrapes 1,000 and 10,000 routes: what they take to evaluate."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.many_routes import many_routes
from tests.benchmarks.processes import cpu_seconds, workplace
from tests.real_servers.prometheus import Prometheus

RULES = Path(__file__).parents[2] / "alerts" / "rules"
ROUTES = (1000, 10_000)
SCRAPED_EVERY = 15
WATCHED = 300.0
"""Seconds of data. A longer window reads only these, and takes longer once Prometheus has more."""

GOAL = 4.0
"""The processor time, in seconds, that all rules may take in each `SCRAPED_EVERY`."""


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the size of the rules, and what each group takes; return whether all have enough time."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks rules")
    options.add_argument("--routes", default=",".join(map(str, ROUTES)), help="such as 1000,10000")
    options.add_argument("--rules", type=Path, default=RULES, help="another folder, to compare with")
    told = options.parse_args(arguments)
    rules: Path = told.rules.resolve()
    files = sorted(rules.glob("*.rules.yaml"))
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} rule files, {size / 1000:.0f} KB, the same for any number of routes")
    return all([_evaluated(int(routes), rules) for routes in told.routes.split(",")])  # noqa: C419 # each is printed


def _evaluated(routes: int, rules: Path) -> bool:
    with workplace() as (directory, _), many_routes(routes) as (address, _):
        prometheus = Prometheus(directory / "rules", _configuration(directory / "rules", address, rules))
        without = Prometheus(directory / "none", _configuration(directory / "none", address, directory))
        try:
            for each in (prometheus, without):
                each.wait_until(lambda p: p.query("up == 1"), "scraped", 120.0)
            begun = [cpu_seconds(each.pid) for each in (prometheus, without)]
            time.sleep(WATCHED)
            used = [cpu_seconds(each.pid) for each in (prometheus, without)]
            taken = (used[0] - begun[0] - (used[1] - begun[1])) / WATCHED * SCRAPED_EVERY
            ((_, samples),) = prometheus.query("scrape_samples_post_metric_relabeling")
            ((_, firing),) = prometheus.query('count(ALERTS{alertstate="firing"})')
            print(f"{routes} routes, {samples:.0f} samples a scrape, {firing:.0f} alerts firing:", flush=True)
            _tell(prometheus.evaluations())
            print(
                f"  all rules: {taken:.2f} s of processor time in {SCRAPED_EVERY} s; goal: at most {GOAL:g}"
            )
            return taken <= GOAL
        finally:
            prometheus.stop()
            without.stop()


def _configuration(directory: Path, address: str, rules: Path) -> Path:
    directory.mkdir()
    every = f"{SCRAPED_EVERY}s"
    config = directory / "prometheus.yml"
    document = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [f"{rules}/*.rules.yaml"],
        "scrape_configs": [{"job_name": "mailsonde", "static_configs": [{"targets": [address]}]}],
    }
    config.write_text(json.dumps(document))  # JSON is YAML
    return config


def _tell(groups: Sequence[dict[str, Any]]) -> None:
    """Print each group, and its slowest rules, by the clock."""
    for group in groups:
        seconds, interval = group["evaluationTime"], group["interval"]
        print(f"  {group['name']:20} {seconds:7.3f} s of {interval:3.0f} s  {seconds / interval:6.1%}")
        for rule in sorted(group["rules"], key=lambda rule: -rule["evaluationTime"])[:3]:
            window = rule.get("labels", {}).get("window", "")
            print(f"    {rule['evaluationTime']:7.3f} s  {rule['name']} {window}")
