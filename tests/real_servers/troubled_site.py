"""A site with all kinds of trouble, so that every dashboard panel has data."""

from __future__ import annotations

import itertools
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import trustme
import yaml
from anyio.from_thread import start_blocking_portal

from tests.fakes.exchange import HOST, exchange_site
from tests.real_servers import relay
from tests.real_servers.bind import Named
from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import free_port
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.relay import Delivery
from tests.real_servers.site import Site
from tests.real_servers.token_server import TokenServer
from tests.real_servers.windows_exporter import windows_exporter

GRAFANAS = {
    **dict.fromkeys(
        ("$location", "$probe", "$target", "${selected:pipe}", "${narrowed:pipe}", "$worst"), ".+"
    ),
    "$labels": "",
    "$__rate_interval": "1m",
    "$__range": "5m",
}
"""What takes the place of Grafana's variables: the choice of all, and times that the site has data for."""

_FIELDS = (
    f"Authentication-Results: {relay.HOST}; spf=pass smtp.mailfrom=example.test; dkim=fail; dmarc=pass\r\n"
    f"Received: from localhost by {relay.HOST} with LMTP; {formatdate(1_600_000_000)}\r\n"
    "X-MS-Exchange-Organization-MessageLatency: SRV=mbx1:TOTAL-FE=0.002|SMR=0.001\r\n"
    "X-MS-Exchange-Transport-EndToEndLatency: 00:00:00.0030000\r\n"
    "X-Forefront-Antispam-Report: SCL:1;SFV:NSPM;CAT:NONE;\r\n"
).encode()


def _in_turn() -> relay.Treatment:
    """Let messages arrive in turn with a wrong timestamp, twice, marked as spam, altered, or not at all."""
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


class _Throttling(socketserver.StreamRequestHandler):
    """Refuses each client, because it has too many connections."""

    def handle(self) -> None:
        self.wfile.write(b"421 4.3.2 Connection rate limit exceeded.\r\n")


@contextmanager
def _throttling_server() -> Iterator[int]:
    """Yield the port of a server that throttles."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Throttling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def _exchange(directory: Path) -> Iterator[dict[str, object]]:
    """Yield a probe of two old Exchange servers, one of them in maintenance."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "exchange.pem")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(exchange_site(authority)) as site,
    ):
        site.servers["ex2"].is_in_maintenance = True
        yield {
            "name": "exchange",
            "kind": "exchange",
            "interval": "2s",
            "host": HOST,
            "port": site.port,
            "smtp_port": site.smtp_port,
            "nodes": {name: {"address": server.address} for name, server in site.servers.items()},
            "minimum_build": "15.2.9999.1",
            "tls_ca": str(directory / "exchange.pem"),
        }


@contextmanager
def troubled_site(directory: Path, tls: TlsFiles) -> Iterator[Prometheus]:
    """Yield a Prometheus and an agent with mail in trouble, a silent server, and wrong or missing DNS."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silence,
        _throttling_server() as throttling,
        Site(directory, tls, deadline="3s", relayed=True) as site,
        ExitStack() as stack,
    ):
        assert site.relay is not None
        site.relay.treatment = _in_turn()
        document = yaml.safe_load(site.config.read_text())
        document["probes"][0]["slo"] = {"objective": "90%", "within": "2s"}
        document["probes"][0]["alerts"] = {"overdue": "2s"}  # a learned one takes hours
        port = silence.getsockname()[1]
        document["servers"]["mute"] = {"protocol": "smtp", "host": "127.0.0.1", "port": port, "tls": "none"}
        document["servers"]["busy"] = document["servers"]["mute"] | {"port": throttling}
        nowhere = {"address": "127.0.0.1", "port": free_port(), "timeout": "200ms"}
        named = Named(
            directory / "named", {"wrong.test": "@ MX 10 alias\nalias CNAME host\nhost A 10.0.0.1\n"}
        )
        stack.callback(named.stop)
        wrong = {"address": "127.0.0.1", "port": named.port}
        issuer = TokenServer(directory / "tokens", tls)
        stack.callback(issuer.stop)
        document["oauth2"] = {"contoso": issuer.entry("canary") | {"credential_expires": "2030-01-01"}}
        document["servers"]["tokens"] = document["servers"]["mute"] | {
            "username": "canary",
            "oauth2": "contoso",
            "allow_insecure_auth": True,
        }
        document["probes"][0]["labels"] = {"hybrid": "contoso", "connector": "to the cloud"}
        document["probes"] += [
            stack.enter_context(_exchange(directory)),
            {"name": "busy", "kind": "smtp", "interval": "1s", "server": "busy"},
            {"name": "tokens", "kind": "smtp", "interval": "1s", "server": "tokens"},
            {
                "name": "mute",
                "kind": "smtp",
                "interval": "1s",
                "deadline": "500ms",
                "server": "mute",
                "alerts": {"down": "2s"},
            },
            {**document["probes"][0], "name": "stuck", "send_via": "mute"},  # never handed over
            {"name": "lame", "kind": "mx", "interval": "1s", "domain": "example.test", "resolver": nowhere},
            {"name": "wrong", "kind": "mx", "interval": "1s", "domain": "wrong.test", "resolver": wrong},
            {"name": "at-work", "kind": "mx", "interval": "1s", "domain": "wrong.test", "resolver": wrong},
            {  # no step of it leads anywhere
                "name": "lost-clients",
                "kind": "autodiscover",
                "interval": "2s",
                "email": "canary@wrong.test",
                "port": free_port(),
                "http_port": 0,
                "resolver": wrong,
            },
        ]
        now = datetime.now(UTC)
        times = {"from": now - timedelta(hours=1), "until": now + timedelta(hours=1)}
        window = {key: f"{time:%Y-%m-%d %H:%M}" for key, time in times.items()}
        document["maintenance"] = {"works": {**window, "probes": ["at-work"]}}
        site.config.write_text(yaml.safe_dump(document))
        site.start_agent()
        yield site.start_prometheus(stack.enter_context(windows_exporter()))
