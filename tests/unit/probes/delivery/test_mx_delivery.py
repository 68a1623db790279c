"""Which addresses of a domain's MX hosts are delivered to."""

from __future__ import annotations

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.setting_types import AddressFamily
from probes.delivery.mx_delivery import MxDelivery, MxDeliverySettings
from tests.fakes.dns_server import DnsServer, dns_server, zone

RECORDS = (
    "example.test. 300 IN MX 10 both.test.",
    "example.test. 300 IN MX 20 four.test.",
    "both.test. 300 IN A 192.0.2.1",
    "both.test. 300 IN AAAA 2001:db8::1",
    "four.test. 300 IN A 192.0.2.2",
    "old.test. 300 IN MX 10 four.test.",
)


def delivery(domain: str, family: AddressFamily, server: DnsServer) -> MxDelivery:
    return MxDelivery(domain, MxDeliverySettings(family=family, resolver=server.settings()))


@pytest.mark.parametrize(
    ("family", "addresses", "without"),
    [
        ("any", {"both.test": "192.0.2.1", "four.test": "192.0.2.2"}, []),
        ("ipv4", {"both.test": "192.0.2.1", "four.test": "192.0.2.2"}, []),
        ("ipv6", {"both.test": "2001:db8::1"}, ["four.test"]),
    ],
)
async def test_family_of_the_hosts(
    family: AddressFamily, addresses: dict[str, str], without: list[str]
) -> None:
    """Each host is reached by an address of the family; one that has none is named."""
    async with dns_server(zone(*RECORDS)) as server:
        reached, unreached = await delivery("example.test", family, server).hosts()
    assert {host.name: host.server.host for host in reached} == addresses
    assert unreached == without


async def test_no_host_has_an_address_of_the_family() -> None:
    """A domain whose hosts have addresses of the other family only says which one is missing."""
    async with dns_server(zone(*RECORDS)) as server:
        with pytest.raises(ProbeFault) as caught:
            await delivery("old.test", "ipv6", server).hosts()
    assert caught.value.reason is Reason.MX_TARGET_UNRESOLVED
    assert caught.value.detail == "the MX hosts of old.test have no IPv6 address"
