"""Every query of every dashboard, asked of a Prometheus that scrapes an agent in trouble."""

from __future__ import annotations

import itertools
import json
import math
import re
import socket
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.real_servers import relay
from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import free_port
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.relay import Delivery
from tests.real_servers.site import Site

DASHBOARDS = sorted((Path(__file__).parents[2] / "dashboards").glob("*.json"))
GRAFANAS = {"$__rate_interval": "1m", "$__range": "5m", "$location": ".+", "$probe": ".+"}
"""What takes the place of Grafana's variables: the choice of all, and times that the test has data for."""

TROUBLE = re.compile(
    r'outcome="(failed|unknown)"|outcome!="ok"|state="lost"|result="bad"|mailsonde_arrival_findings_total'
    r"|mailsonde_hops_skewed|mailsonde_mailbox_unexpected_total|ALERTS|mailsonde_probe_success\S+ == 0"
)
"""Queries that must be above 0 here, because the site has just that trouble."""

BUDGET_LEFT = re.compile(r"(min\()?1 - ")
"""Queries that must be below 1 here, because messages came too late."""


_FIELDS = (
    f"Authentication-Results: {relay.HOST}; spf=pass smtp.mailfrom=example.test; dkim=fail\r\n"
    f"Received: from localhost by {relay.HOST} with LMTP; {formatdate(1_600_000_000)}\r\n"
).encode()


def _in_turn() -> relay.Treatment:
    """Let messages arrive with a wrong stamp, twice, marked as spam, altered, or not at all, in turn."""
    treatments = itertools.cycle(
        [
            lambda mail: [Delivery(_FIELDS + mail.raw)],
            relay.duplicated,
            relay.marked_as_spam,
            relay.altered_subject,
            relay.dropped,
        ]
    )
    return lambda mail: next(treatments)(mail)


@pytest.fixture(scope="module")
def silence() -> Iterator[int]:
    """A port where connections are taken and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def prometheus(
    server_tls: TlsFiles, server_directory: Callable[[str], Path], silence: int
) -> Iterator[Prometheus]:
    """Prometheus beside an agent with mail in all sorts of trouble, a server that is mute, and no DNS."""
    with Site(server_directory("dashboards"), server_tls, deadline="3s", relayed=True) as site:
        assert site.relay is not None
        site.relay.treatment = _in_turn()
        document = yaml.safe_load(site.config.read_text())
        document["probes"][0]["slo"] = {"objective": "90%", "within": "2s"}
        document["servers"]["mute"] = {
            "protocol": "smtp",
            "host": "127.0.0.1",
            "port": silence,
            "tls": "none",
        }
        nowhere = {"address": "127.0.0.1", "port": free_port(), "timeout": "200ms"}
        document["probes"] += [
            {"name": "mute", "kind": "smtp", "interval": "1s", "deadline": "500ms", "server": "mute"},
            {"name": "lame", "kind": "mx", "interval": "1s", "domain": "example.test", "resolver": nowhere},
        ]
        site.config.write_text(yaml.safe_dump(document))
        site.start_agent()
        yield site.start_prometheus()


def _queries() -> Iterator[Any]:
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                name = f"{path.stem}: {panel['title']} {target['refId']}"
                yield pytest.param(target["expr"], id=name)
        for annotation in board["annotations"]["list"]:
            yield pytest.param(annotation["expr"], id=f"{path.stem}: {annotation['name']}")
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()
                yield pytest.param(f"count by ({label}) ({selector})", id=f"{path.stem}: ${variable['name']}")


@pytest.mark.parametrize("query", list(_queries()))
def test_every_query_gives_data(prometheus: Prometheus, query: str) -> None:
    """A query gives finite numbers, and where it is of trouble that the site has, one above 0."""
    for variable, value in GRAFANAS.items():
        query = query.replace(variable, value)
    least, most = -math.inf, math.inf
    if BUDGET_LEFT.match(query):
        most = 1.0
    elif TROUBLE.search(query):
        least = 0.0
    prometheus.wait_until(
        lambda p: (
            (values := [value for _, value in p.query(query)])
            and all(map(math.isfinite, values))
            and max(values) > least
            and min(values) < most
        ),
        query,
    )


@pytest.mark.parametrize(
    "query",
    [
        "mailsonde_no_such_metric",
        'mailsonde_probe_success{instance=~".+",probe=~"no-such-probe"}',
        'sum by (probe) (rate(mailsonde_messages_total{result="lost"}[1m]))',
    ],
)
def test_a_query_of_what_is_not_there_gives_nothing(prometheus: Prometheus, query: str) -> None:
    """The check above can fail: a metric, a probe or a label that does not exist gives no series."""
    assert prometheus.query(query) == []
