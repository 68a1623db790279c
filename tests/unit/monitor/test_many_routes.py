"""An agent with many routes in front of servers that keep their own log; `scale` is the long form."""

from __future__ import annotations

import pytest

from tests.benchmarks.mail_load import Load, running
from tests.real_servers.process import wait_until

ROUTES = 20


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_published_latency(protocol: str) -> None:
    """Every published latency is right within its uncertainty, however busy the machine is."""
    load = Load(ROUTES, interval=2.0, routes_a_mailbox=5, protocol=protocol, delay=0.1)
    with running(load, pinned=False) as at_work:
        wait_until(
            lambda: at_work.metrics().total("mailsonde_messages_total", state="delivered") >= 2 * ROUTES,
            "two messages a route are delivered",
            seconds=60.0,
        )
        at_work.agent.stop()
        published = at_work.published()
    assert len(published) >= 2 * ROUTES
    assert [each for each in published if not each.is_within] == []
