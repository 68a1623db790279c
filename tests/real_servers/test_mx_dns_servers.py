"""The ``mx`` probe with real DNS servers and all kinds of MX records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.core.verdict import PhaseTimer, Run, Verdict
from probes.mx import RECORDS_EXAMINED, Mx, MxSettings
from tests.real_servers.bind import Named
from tests.real_servers.knot import Knot
from tests.real_servers.nsd import Nsd

DnsServer = Named | Knot | Nsd

# Hosts of `pool.test` resolve or not; the other zones refer to them. Addresses are only data.
ZONES = {
    "pool.test": "\n".join(
        (
            "mx1 A 9.9.9.9",
            "mx1 AAAA 2620:fe::fe",
            "mx2 60 A 149.112.112.112",
            "real A 9.9.9.9",
            "alias CNAME real",
            "inside A 10.1.2.3",
            "empty TXT here",
            *(f"mail-{n:04d}-{'x' * 30} A 9.9.9.9" for n in range(90)),
            "",
        )
    ),
    "sound.test": "@ MX 10 mx1.pool.test.\n@ MX 20 mx2.pool.test.\n",
    "null.test": "@ MX 0 .\n",
    "mixed.test": "@ MX 0 .\n@ MX 10 mx1.pool.test.\n",
    "implicit.test": "@ A 9.9.9.9\n",
    "nothing.test": "@ TXT nothing\n",
    "alias.test": "@ MX 10 alias.pool.test.\n",
    "gone.test": "@ MX 10 gone.pool.test.\n@ MX 20 empty.pool.test.\n",
    "partly.test": "@ MX 10 gone.pool.test.\n@ MX 20 mx1.pool.test.\n",
    "private.test": "@ MX 10 inside.pool.test.\n",
    "literal.test": "@ MX 10 192.0.2.1.\n",
    "half.test": "@ MX 10 mx1.pool.test.\n@ MX 20 mx.broken.test.\n",
    "proven.test": "@ MX 10 inside.pool.test.\n@ MX 20 mx.broken.test.\n",
    "big.test": "".join(f"@ MX {n} mail-{n:04d}-{'x' * 30}.pool.test.\n" for n in range(90)),
    "parent.test": "sub CNAME real\nreal MX 10 mx1.pool.test.\noutside CNAME sound.example.\n",
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Named, marks=pytest.mark.tried("mx", "BIND")),
        pytest.param(Knot, marks=pytest.mark.tried("mx", "Knot")),
        pytest.param(Nsd, marks=pytest.mark.tried("mx", "NSD")),
    ],
)
def dns_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DnsServer]:
    server = request.param(tmp_path_factory.mktemp("dns") / "server", ZONES, ("broken.test",))
    yield server
    server.stop()


async def run_for(domain: str, server: DnsServer, **changes: object) -> Verdict:
    written: dict[str, Any] = {
        "name": "mx",
        "kind": "mx",
        "domain": domain,
        "resolver": {"address": "127.0.0.1", "port": server.port},
        **changes,
    }
    probe = Mx(MxSettings.model_validate(written), Context(SystemClock(), Site("here", {}, {})))
    return await probe.run(Run("0" * 32, 0.0, PhaseTimer(SystemClock())))


@pytest.mark.parametrize(
    ("domain", "changes", "reason", "outcome"),
    [
        ("sound.test", {}, Reason.NONE, Outcome.OK),
        ("sound.test", {"expect": ["mx1.pool.test", "mx2.pool.test"]}, Reason.NONE, Outcome.OK),
        ("sound.test", {"expect": ["*.pool.test"]}, Reason.NONE, Outcome.OK),
        ("sound.test", {"expect": ["mx1.pool.test"]}, Reason.MX_UNEXPECTED, Outcome.FAILED),
        ("sound.test", {"expect": ["*.pool.test", "mx9.test"]}, Reason.MX_EXPECTED_ABSENT, Outcome.OK),
        ("null.test", {}, Reason.MX_NULL, Outcome.FAILED),
        ("null.test", {"expect": ["."]}, Reason.NONE, Outcome.OK),
        ("mixed.test", {}, Reason.MX_NULL_MIXED, Outcome.FAILED),
        ("implicit.test", {}, Reason.MX_IMPLICIT, Outcome.OK),
        ("nothing.test", {}, Reason.MX_MISSING, Outcome.FAILED),
        ("alias.test", {}, Reason.MX_TARGET_CNAME, Outcome.OK),
        ("gone.test", {}, Reason.MX_TARGET_UNRESOLVED, Outcome.FAILED),
        ("partly.test", {}, Reason.MX_TARGET_PARTLY_UNRESOLVED, Outcome.OK),
        ("private.test", {}, Reason.MX_PRIVATE_ADDRESS, Outcome.FAILED),
        ("private.test", {"allow_private": True}, Reason.NONE, Outcome.OK),
        ("literal.test", {}, Reason.MX_TARGET_INVALID, Outcome.FAILED),
        ("half.test", {}, Reason.DNS_SERVFAIL, Outcome.UNKNOWN),
        ("proven.test", {}, Reason.MX_PRIVATE_ADDRESS, Outcome.FAILED),
        ("sub.parent.test", {}, Reason.NONE, Outcome.OK),
        ("absent.parent.test", {}, Reason.DNS_NXDOMAIN, Outcome.FAILED),
    ],
)
async def test_each_kind_of_records(
    dns_server: DnsServer, domain: str, changes: dict[str, object], reason: Reason, outcome: Outcome
) -> None:
    """Each state of a real zone has its reason and outcome."""
    verdict = await run_for(domain, dns_server, **changes)
    assert (verdict.reason, verdict.outcome) == (reason, outcome)


@pytest.mark.parametrize(
    ("domain", "reason", "outcome"),
    [
        ("broken.test", Reason.DNS_SERVFAIL, Outcome.UNKNOWN),
        ("sound.example", Reason.DNS_REFUSED, Outcome.UNKNOWN),
        ("outside.parent.test", Reason.DNS_REFUSED, Outcome.UNKNOWN),
    ],
)
async def test_faults_of_the_first_question(
    dns_server: DnsServer, domain: str, reason: Reason, outcome: Outcome
) -> None:
    """A broken zone and a server without recursion say nothing about the domain: unknown."""
    with pytest.raises(ProbeFault) as caught:
        await run_for(domain, dns_server)
    assert (caught.value.reason, caught.value.reason.outcome) == (reason, outcome)


async def test_what_a_sound_domain_shows(dns_server: DnsServer) -> None:
    """Records are listed by preference, with their addresses and the smallest TTL."""
    verdict = await run_for("sound.test", dns_server)
    records = cast(list[dict[str, Any]], verdict.values["records"])
    assert [(record["host"], record["preference"], record["addresses"]) for record in records] == [
        ("mx1.pool.test", 10, ["9.9.9.9", "2620:fe::fe"]),
        ("mx2.pool.test", 20, ["149.112.112.112"]),
    ]
    assert (verdict.values["mx_count"], verdict.values["ttl_min"]) == (2, 60)


async def test_more_records_than_udp_holds(dns_server: DnsServer) -> None:
    """A truncated UDP answer is fetched over TCP: every record is counted, and some are examined."""
    verdict = await run_for("big.test", dns_server)
    assert (verdict.reason, verdict.values["mx_count"]) == (Reason.NONE, 90)
    records = cast(list[dict[str, Any]], verdict.values["records"])
    assert [record["preference"] for record in records] == list(range(RECORDS_EXAMINED))


@pytest.mark.tried("mx", "BIND")
async def test_a_resolver_that_was_stopped(start_named: Callable[..., Named]) -> None:
    """With a stopped resolver, the domain is unknown, and the sentence has the resolver."""
    server = start_named({"sound.test": ZONES["sound.test"]})
    server.stop()
    with pytest.raises(ProbeFault) as caught:
        await run_for("sound.test", server)
    assert caught.value.reason.outcome is Outcome.UNKNOWN
    assert f"resolver 127.0.0.1 port {server.port}" in caught.value.detail
