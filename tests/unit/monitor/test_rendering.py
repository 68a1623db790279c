"""What is rendered for Prometheus from a configuration."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from monitor.config.models import Configuration
from monitor.rendering import render_prometheus


def _job(agent: dict[str, str], interval: str = "60s") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the global part, and what is said of the agent as a target."""
    probe = {"name": "hq-mx", "kind": "mx", "domain": "example.com", "interval": interval}
    text = render_prometheus(Configuration.model_validate({"agent": agent, "probes": [probe]}))
    document = yaml.safe_load(text["prometheus.yml"])
    ((target,),) = [job["static_configs"] for job in document["scrape_configs"]]
    return document["global"], target


def test_an_agent_is_called_by_its_location() -> None:
    """The location becomes the label that alerts and dashboards tell agents apart by."""
    _, target = _job({"location": "fra1", "listen": "127.0.0.1:9800"})
    assert target == {"targets": ["127.0.0.1:9800"], "labels": {"instance": "fra1"}}


def test_agents_without_a_location_do_not_share_a_name() -> None:
    """Where no location is given the address stays, for the default would make all agents one."""
    _, target = _job({"listen": "[::1]:9725"})
    assert target == {"targets": ["[::1]:9725"]}


@pytest.mark.parametrize(("interval", "scrape"), [("60s", "15s"), ("5s", "5s"), ("1s", "1s")])
def test_a_quick_probe_is_scraped_as_often_as_it_runs(interval: str, scrape: str) -> None:
    """No run of a quick probe goes unseen between two scrapes; none is scraped less than every 15 s."""
    shared, _ = _job({}, interval)
    assert shared == {"scrape_interval": scrape, "evaluation_interval": scrape}
