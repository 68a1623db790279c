"""The ``exchange`` kind finds the sick node behind the healthy name, and leaves the others alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

from monitor.probe_info import probe_info
from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.finding import Check, Severity
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.exchange import AuthCertificate, Exchange, ExchangeSettings
from probes.posture.exchange import build_standing, build_text, known_builds
from tests.fakes.exchange import (
    HANG,
    HANG_UP,
    HOST,
    HTML,
    HUGE_PAGE,
    ExchangeSite,
    certificate_in_der,
    exchange_site,
    metadata_of,
)
from tests.fakes.graph.http import Answer
from tests.fakes.held_connections import all_connections_in_use
from tests.faults.running import bounded_memory
from tests.real_servers.dovecot import TlsFiles

DIRECTORIES = ["owa", "ews", "mapi"]


def probe_of(site: ExchangeSite, tls: TlsFiles, **settings: Any) -> Exchange:
    nodes = {name: {"address": server.address, "fqdn": server.fqdn} for name, server in site.servers.items()}
    written = {
        "name": "exchange",
        "kind": "exchange",
        "host": HOST,
        "port": site.port,
        "smtp_port": site.smtp_port,
        "nodes": nodes,
        "directories": DIRECTORIES,
        "auth_certificate": False,
        "tls_ca": str(tls.authority),
        "certificate_warning": "1d",
    }
    made = ExchangeSettings.model_validate(written | settings)
    return Exchange(made, Context(SystemClock(), Site("here", {}, {})))


async def run(probe: Exchange) -> dict[str, Result]:
    """Run a probe and its siblings as the agent does; return the results by target."""
    runner = Runner(SystemClock(), "here")
    results = await asyncio.gather(*(runner.run(one) for one in (probe, *probe.siblings)))
    assert all(result.verdict.reason.area in Exchange.areas for result in results)
    return {result.target: result for result in results}


def reasons(results: dict[str, Result]) -> dict[str, Reason]:
    """Return the reason of each target that is not ok."""
    return {
        target: result.verdict.reason
        for target, result in results.items()
        if result.verdict.reason is not Reason.NONE
    }


async def test_healthy_servers(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """Each directory of each node is a target, and one connection serves all directories of a node."""
    async with exchange_site(certificate_authority) as site:
        probe = probe_of(site, server_tls)
        results = await run(probe)
        again = await run(probe)
    assert list(results) == [f"{directory}@{node}" for node in ("ex1", "ex2") for directory in DIRECTORIES]
    assert reasons(results) == reasons(again) == {}
    assert results["ews@ex2"].verdict.values["server"] == "ex2.corp.fabrikam.test"
    assert [server.connections for server in site.servers.values()] == [2, 2]
    assert site.servers["ex1"].smtp_connections == 0
    assert set(results["owa@ex1"].verdict.phases) == {"queue", "connect", "tls", "first_byte", "body"}
    assert set(results["mapi@ex1"].verdict.phases) == {"queue", "first_byte", "body"}
    ends = {target: result.verdict.certificate_not_after for target, result in results.items()}
    assert [target for target, end in ends.items() if end is not None] == ["owa@ex1", "owa@ex2"]


def test_rules_can_tell_nodes_and_directories_apart() -> None:
    """Each target has its node and directory as labels. The Auth certificate is no node's and has neither."""
    written = {
        "name": "exchange",
        "kind": "exchange",
        "host": HOST,
        "nodes": {"ex1": {}, "ex2": {"address": "ex2"}},
    }
    settings = ExchangeSettings.model_validate(written | {"directories": ["owa", "ews"]})
    probe = Exchange(settings, Context(SystemClock(), Site("here", {}, {})))
    labels = {
        one.target: {name: text for name, text in probe_info(one).items() if name.startswith("exchange_")}
        for one in (probe, *probe.siblings)
    }
    assert labels == {
        f"{directory}@{node}": {"exchange_node": node, "exchange_directory": directory}
        for node in ("ex1", "ex2")
        for directory in ("owa", "ews")
    } | {"auth-certificate": {}}


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        (Answer(503), Reason.EXCHANGE_UNHEALTHY, "503 Service Unavailable"),
        (Answer(401), Reason.EXCHANGE_UNHEALTHY, "401 Unauthorized"),
        (Answer(200), Reason.EXCHANGE_UNHEALTHY, "200 OK without a page"),
        (HTML, Reason.EXCHANGE_UNHEALTHY, "200 OK with another page than the healthy one: <!DOCTYPE html>"),
        (
            HUGE_PAGE,
            Reason.EXCHANGE_UNHEALTHY,
            "200 OK with another page than the healthy one: 200 OK<br/>xxx",
        ),
        (
            Answer(302, headers={"Location": "/ews/healthcheck.htm?x"}),
            Reason.EXCHANGE_UNHEALTHY,
            "302 Found, which redirects to https://mail.fabrikam.test:PORT/ews/healthcheck.htm",
        ),
        (
            Answer(200, b"200 OK<br/>EX2.corp.fabrikam.test"),
            Reason.EXCHANGE_WRONG_SERVER,
            "the page is that of ex2.corp.fabrikam.test, expected ex1.corp.fabrikam.test",
        ),
        (HANG_UP, Reason.CONNECTION_LOST, "in phase first_byte: "),
        (HANG, Reason.COMMAND_TIMEOUT, "in phase first_byte: no answer within "),
    ],
)
async def test_a_sick_directory(
    certificate_authority: trustme.CA, server_tls: TlsFiles, fault: object, reason: Reason, detail: str
) -> None:
    """A directory that is not healthy has its reason, within the deadline; no other target is affected."""
    async with exchange_site(certificate_authority) as site:
        site.servers["ex1"].faults["ews"] = fault
        probe = probe_of(site, server_tls, deadline="4s")
        with bounded_memory():
            results = await run(probe)
    assert reasons(results) == {"ews@ex1": reason}
    assert results["ews@ex1"].verdict.detail.replace(str(site.port), "PORT").startswith(detail)
    assert results["ews@ex1"].duration_seconds < 4.0


async def test_a_node_in_maintenance(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A node whose transport service is inactive is in maintenance; the same pages elsewhere are a fault."""
    async with exchange_site(certificate_authority) as site:
        site.servers["ex1"].is_in_maintenance = True
        site.servers["ex2"].faults = dict.fromkeys(DIRECTORIES, Answer(503))
        results = await run(probe_of(site, server_tls))
        unasked = await run(probe_of(site, server_tls, smtp_port=0))
    found = reasons(results)
    assert {found[f"{directory}@ex1"] for directory in DIRECTORIES} == {Reason.MAINTENANCE}
    assert {found[f"{directory}@ex2"] for directory in DIRECTORIES} == {Reason.EXCHANGE_UNHEALTHY}
    assert "4.3.2 Service not active" in results["owa@ex1"].verdict.detail
    assert [server.smtp_connections for server in site.servers.values()] == [1, 1]
    assert set(reasons(unasked).values()) == {Reason.EXCHANGE_UNHEALTHY}


async def test_a_dead_node(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A node that refuses connections is tried once for all its directories; the others are well."""
    async with exchange_site(certificate_authority) as site:
        nodes = {"ex1": {"address": site.servers["ex1"].address}, "gone": {"address": "127.0.0.99"}}
        probe = probe_of(site, server_tls, nodes=nodes)
        results = await run(probe)
        gone = next(one for one in probe.siblings if one.target == "ews@gone")
        assert isinstance(gone, Exchange)
        assert gone.connections == 1
    assert reasons(results) == {f"{directory}@gone": Reason.CONNECT_REFUSED for directory in DIRECTORIES}


async def test_all_directories_of_a_node_hang(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """Every directory gets its share of the deadline, even if none before it was answered."""
    async with exchange_site(certificate_authority) as site:
        site.servers["ex1"].faults = dict.fromkeys(["owa", "ews"], HANG)
        results = await run(probe_of(site, server_tls, deadline="4s"))
    assert reasons(results) == {"owa@ex1": Reason.COMMAND_TIMEOUT, "ews@ex1": Reason.COMMAND_TIMEOUT}


async def test_our_own_limit_on_connections(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """If all our connections to a node are in use, nothing is known of it, and it is not called down."""
    many = [*DIRECTORIES, "ecp", "oab", "rpc"]
    async with exchange_site(certificate_authority) as site:
        probe = probe_of(site, server_tls, deadline="2s", directories=many)
        async with all_connections_in_use(site.servers["ex1"].address, site.port):
            results = await run(probe)
    assert reasons(results) == {f"{directory}@ex1": Reason.LOCAL_RESOURCES for directory in many}
    assert {result.verdict.outcome for result in results.values()} == {Outcome.UNKNOWN, Outcome.OK}


async def test_our_own_limit_on_connections_to_smtp(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """A wait for a connection to a node's transport service leaves enough time to the other directories."""
    async with exchange_site(certificate_authority, 1) as site:
        site.servers["ex1"].faults["owa"] = Answer(503)
        async with all_connections_in_use(site.servers["ex1"].address, site.smtp_port):
            results = await run(probe_of(site, server_tls, deadline="4s"))
    assert reasons(results) == {"owa@ex1": Reason.EXCHANGE_UNHEALTHY}


async def test_builds(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A build below the minimum is a warning, an outdated one a finding, and so is one that is not told."""
    async with exchange_site(certificate_authority, 5) as site:
        for server, build in zip(
            site.servers.values(), ["15.2.2562.46", "15.2.1748.36", "", "15.9.1.2", "hidden"], strict=True
        ):
            server.build = build
        results = await run(probe_of(site, server_tls, minimum_build="15.2.1748.39", directories=["owa"]))
    assert reasons(results) == {"owa@ex2": Reason.EXCHANGE_OLD_BUILD}
    verdicts = {target: result.verdict for target, result in results.items()}
    assert verdicts["owa@ex2"].outcome is Outcome.OK
    assert verdicts["owa@ex2"].values["release"] == "Exchange 2019 CU15"
    assert [str(finding.check) for finding in verdicts["owa@ex2"].findings or ()] == [
        "exchange_build_below_minimum",
        "exchange_build_outdated",
    ]
    assert verdicts["owa@ex1"].findings == ()
    for target, seen in {"owa@ex3": "no such field", "owa@ex5": "hidden"}.items():
        (finding,) = verdicts[target].findings or ()
        assert (finding.check, finding.severity) == (Check.EXCHANGE_BUILD_UNKNOWN, Severity.INFO)
        assert finding.seen == f"X-OWA-Version: {seen}"
    assert (verdicts["owa@ex4"].values["release"], verdicts["owa@ex4"].findings) == ("not known", ())


def test_standing_of_a_build() -> None:
    """A build is shown with its release, and with the newest known one if that is newer."""
    newest = known_builds().releases[0].newest
    assert build_standing("15.20.8857.21") == "15.20.8857.21"
    assert build_standing(build_text(newest)) == f"{build_text(newest)}, {known_builds().releases[0].name}"
    old = build_standing("15.2.1748.0")
    assert old.startswith("15.2.1748.0, Exchange 2019 CU15; 15.2.1748.")
    assert old.endswith(f" is known as of {known_builds().as_of}")


NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.mark.parametrize(
    ("metadata", "reason", "detail"),
    [
        ([100], Reason.NONE, ""),
        ([1, 100], Reason.NONE, ""),
        ([5], Reason.CERTIFICATE_EXPIRING, "ends on"),
        ([-5], Reason.CERTIFICATE_EXPIRED, "it has ended"),
        (metadata_of(b"no certificate"), Reason.PROTOCOL_ERROR, "keys[0] is no certificate"),
        (
            {"keys": [{"keyvalue": {"type": "x509Certificate", "value": "&"}}]},
            Reason.PROTOCOL_ERROR,
            "keys[0] is no certificate: &",
        ),
        ({"keys": []}, Reason.PROTOCOL_ERROR, "has no certificate"),
        ({"keys": {}}, Reason.PROTOCOL_ERROR, "has no list of keys"),
        (HTML, Reason.PROTOCOL_ERROR, "HTTP status 200, without a JSON object"),
        (Answer(200, b"[" * 200_000), Reason.PROTOCOL_ERROR, "without a JSON object"),
        (HUGE_PAGE, Reason.RESPONSE_TOO_LARGE, "262,144 octets"),
        (Answer(401), Reason.HTTP_STATUS, "401 Unauthorized"),
        (Answer(503), Reason.HTTP_UNAVAILABLE, "503 Service Unavailable"),
    ],
)
async def test_auth_certificate(
    certificate_authority: trustme.CA, server_tls: TlsFiles, metadata: object, reason: Reason, detail: str
) -> None:
    """The Auth certificate that ends last counts; a document without one has its reason."""
    if isinstance(metadata, list):
        ends = [NOW + timedelta(days=days) for days in metadata]
        metadata = metadata_of(*(certificate_in_der(certificate_authority, end) for end in ends))
    async with exchange_site(certificate_authority, 1, metadata=metadata) as site:
        probe = probe_of(
            site, server_tls, host="127.0.0.10", certificate_warning="30d", auth_certificate=True
        )
        asked = probe.siblings[-1]
        assert isinstance(asked, AuthCertificate)
        result = await Runner(SystemClock(), "here").run(asked)
    assert result.target == "auth-certificate"
    assert result.verdict.reason is reason, result.verdict.detail
    assert detail in result.verdict.detail
    if reason in {Reason.NONE, Reason.CERTIFICATE_EXPIRED, Reason.CERTIFICATE_EXPIRING}:
        assert result.verdict.certificate_not_after == max(ends).timestamp()
