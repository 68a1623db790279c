"""Names are resolved according to this machine's files, and slow names do not delay others."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import AddressFamily
from probes.protocols import name_resolution
from probes.protocols.name_resolution import MOST_THREADS, NameResolution, in_order
from tests.fakes.dns_server import Script, dns_server, response, zone
from tests.fakes.resolver_files import resolution
from tests.fakes.scripted_server import on_each_loop

MAIL = ("mail.test. 300 IN A 192.0.2.1", "mail.test. 300 IN A 192.0.2.2")
SIX = "mail.test. 300 IN AAAA 2001:db8::1"
LOCAL = "nameserver 127.0.0.1\n"

Answer = str | dns.rcode.Rcode | None
"""An address, a code without records, or silence."""


async def addresses(names: NameResolution, host: str = "mail.test", seconds: float = 60.0) -> list[str]:
    """Return the addresses of a host; each must have the requested port."""
    found = await names.resolve(host, 25, seconds)
    assert {port for _, port in found} == {25}
    return [address for address, _ in found]


async def fault_of(names: NameResolution, host: str = "mail.test", seconds: float = 60.0) -> ProbeFault:
    with pytest.raises(ProbeFault) as caught:
        await names.resolve(host, 25, seconds)
    return caught.value


def answering(answers: Mapping[tuple[str, str], Answer]) -> Script:
    """Return a script that answers by name and type; anything else does not exist."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        name, rdtype = query.question[0].name.to_text(), query.question[0].rdtype.name
        answer = answers.get((name, rdtype), dns.rcode.NXDOMAIN)
        if isinstance(answer, str):
            return [response(query, f"{name} 300 IN {rdtype} {answer}")]
        return [] if answer is None else [response(query, rcode=answer)]

    return script


def silent(*names: str) -> Mapping[tuple[str, str], Answer]:
    return {(name, rdtype): None for name in names for rdtype in ("A", "AAAA")}


@on_each_loop
async def test_both_families_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv4 and IPv6 addresses are returned, reachable ones first, in the name server's order."""
    monkeypatch.setattr(
        name_resolution, "_source_for", lambda address: None if ":" in address else "192.0.2.9"
    )
    async with dns_server(zone(*MAIL, SIX)) as server:
        found = await addresses(resolution(tmp_path, port=server.port))
    assert found == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]


@on_each_loop
async def test_the_hosts_file_comes_first(tmp_path: Path) -> None:
    """Names in the hosts file are not queried in DNS, in any spelling."""
    hosts = "192.0.2.7 mail.test\n192.0.2.8 mail.test\n"
    async with dns_server(zone(*MAIL)) as server:
        names = resolution(tmp_path, port=server.port, hosts=hosts)
        assert await addresses(names, "Mail.TEST.") == ["192.0.2.7", "192.0.2.8"]
        assert server.asked_over_udp == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", {"192.0.2.1"}),
        ("2001:db8::1", {"2001:db8::1"}),
        ("localhost", {"127.0.0.1", "::1"}),
        ("LOCALHOST.", {"127.0.0.1", "::1"}),
        ("mail.localhost", {"127.0.0.1", "::1"}),
    ],
)
async def test_names_that_need_no_dns(host: str, expected: set[str], tmp_path: Path) -> None:
    """IP addresses, and localhost as this machine (RFC 6761), never need DNS."""
    assert set(await addresses(resolution(tmp_path, port=1), host)) == expected


@pytest.mark.parametrize(
    ("four", "six", "reason"),
    [
        (dns.rcode.NXDOMAIN, dns.rcode.NXDOMAIN, Reason.DNS_NXDOMAIN),
        (dns.rcode.NOERROR, dns.rcode.NOERROR, Reason.DNS_NO_ADDRESS),
        (dns.rcode.NOERROR, dns.rcode.NXDOMAIN, Reason.DNS_NO_ADDRESS),
        (dns.rcode.SERVFAIL, dns.rcode.SERVFAIL, Reason.DNS_SERVFAIL),
        (dns.rcode.REFUSED, dns.rcode.REFUSED, Reason.DNS_REFUSED),
        (dns.rcode.SERVFAIL, dns.rcode.NOERROR, Reason.DNS_SERVFAIL),
        (dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, Reason.DNS_SERVFAIL),
        (None, None, Reason.DNS_TIMEOUT),
        (None, dns.rcode.NOERROR, Reason.DNS_TIMEOUT),
    ],
)
@on_each_loop
async def test_what_is_no_address(four: Answer, six: Answer, reason: Reason, tmp_path: Path) -> None:
    """A name has no address only if DNS says so for both families; otherwise the outcome is unknown."""
    script = answering({("mail.test.", "A"): four, ("mail.test.", "AAAA"): six})
    async with dns_server(script) as server:
        patience = 0.3 if reason is Reason.DNS_TIMEOUT else 60.0
        fault = await fault_of(resolution(tmp_path, port=server.port), seconds=patience)
    assert fault.reason is reason
    absent = reason in {Reason.DNS_NXDOMAIN, Reason.DNS_NO_ADDRESS}
    assert fault.reason.outcome is (Outcome.FAILED if absent else Outcome.UNKNOWN)
    assert "mail.test" in fault.detail


@pytest.mark.parametrize("six", [None, dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL])
async def test_one_family_is_enough(six: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server drops, denies or refuses AAAA queries, the IPv4 address is found without much delay."""
    monkeypatch.setattr(name_resolution, "OTHER_FAMILY", 0.05)
    monkeypatch.setattr(name_resolution, "TIMEOUT", 60.0)
    script = answering({("mail.test.", "A"): "192.0.2.1", ("mail.test.", "AAAA"): six})
    async with dns_server(script) as server, asyncio.timeout(30):  # less than the first attempt
        assert await addresses(resolution(tmp_path, port=server.port)) == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("family", "expected", "asked"),
    [("ipv4", ["192.0.2.1", "192.0.2.2"], {"A"}), ("ipv6", ["2001:db8::1"], {"AAAA"})],
)
@on_each_loop
async def test_only_one_family_is_asked_for(
    family: AddressFamily, expected: list[str], asked: set[str], tmp_path: Path
) -> None:
    """With a family, DNS is queried only for its addresses, and lookups of families are separate."""
    async with dns_server(zone(*MAIL, SIX)) as server:
        names = resolution(tmp_path, port=server.port)
        found = await asyncio.gather(
            names.resolve("mail.test", 25, 5.0, family), names.resolve("mail.test", 25, 5.0, family)
        )
        assert {query.question[0].rdtype.name for query in server.asked_over_udp} == asked
        both = await names.resolve("mail.test", 25, 5.0)
    assert found == [[(address, 25) for address in expected]] * 2
    assert len(both) == 3


@pytest.mark.parametrize("hosts", ["", "192.0.2.7 mail.test\n"])
async def test_a_name_without_addresses_of_the_family(hosts: str, tmp_path: Path) -> None:
    """A name with addresses of only the other family, in DNS or the hosts file, definitely has none."""
    known = {("mail.test.", "A"): "192.0.2.1", ("mail.test.", "AAAA"): dns.rcode.NOERROR}
    async with dns_server(answering(known if not hosts else {})) as server:
        with pytest.raises(ProbeFault) as caught:
            await resolution(tmp_path, port=server.port, hosts=hosts).resolve("mail.test", 25, 5.0, "ipv6")
    assert caught.value.reason is Reason.DNS_NO_ADDRESS
    assert caught.value.detail == "mail.test has no IPv6 address"


async def test_the_hosts_file_has_addresses_of_both_families(tmp_path: Path) -> None:
    """The family also applies to the hosts file; if it lacks such an address, DNS is queried."""
    async with dns_server(zone(SIX)) as server:
        names = resolution(tmp_path, port=server.port, hosts="192.0.2.7 mail.test\n::7 two.test\n")
        assert await names.resolve("mail.test", 25, 5.0, "ipv4") == [("192.0.2.7", 25)]
        assert await names.resolve("two.test", 25, 5.0, "ipv6") == [("::7", 25)]
        assert await names.resolve("localhost", 25, 5.0, "ipv6") == [("::1", 25)]
        assert server.asked_over_udp == []
        assert await names.resolve("mail.test", 25, 5.0, "ipv6") == [("2001:db8::1", 25)]


async def test_a_name_that_dns_cannot_hold(tmp_path: Path) -> None:
    """A name with a label of more than 63 octets does not exist, and is not a defect."""
    assert (await fault_of(resolution(tmp_path), "x" * 64 + ".test")).reason is Reason.DNS_NXDOMAIN


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("mail", ["mail.a.test.", "mail.b.test."]),
        ("mail.b", ["mail.b.", "mail.b.a.test.", "mail.b.b.test."]),
        ("mail.b.test", ["mail.b.test."]),
    ],
)
async def test_the_search_list_is_used(host: str, asked: list[str], tmp_path: Path) -> None:
    """Short names are completed by the search list until one has an address."""
    known = {("mail.b.test.", "A"): "192.0.2.1", ("mail.b.b.test.", "A"): "192.0.2.1"}
    async with dns_server(answering(known)) as server:
        names = resolution(tmp_path, port=server.port, resolv_conf=f"{LOCAL}search a.test b.test\n")
        assert await addresses(names, host) == ["192.0.2.1"]
    assert list(dict.fromkeys(query.question[0].name.to_text() for query in server.asked_over_udp)) == asked


async def test_the_search_list_does_not_hide_that_a_name_is_gone(tmp_path: Path) -> None:
    """A full name that does not exist is reported, whatever DNS says about names from the search list."""
    guessed = {("mail.test.corp.", rdtype): dns.rcode.SERVFAIL for rdtype in ("A", "AAAA")}
    async with dns_server(answering(guessed)) as server:
        names = resolution(tmp_path, port=server.port, resolv_conf=f"{LOCAL}search corp\n")
        assert (await fault_of(names)).reason is Reason.DNS_NXDOMAIN


@on_each_loop
async def test_another_name_server_is_asked(tmp_path: Path) -> None:
    """If a name server is down or does not answer, the next one is queried."""
    resolv_conf = f"nameserver 127.0.0.2\n{LOCAL}options timeout:1\n"
    async with dns_server(zone(*MAIL)) as server:
        names = resolution(tmp_path, port=server.port, resolv_conf=resolv_conf)
        assert await addresses(names) == ["192.0.2.1", "192.0.2.2"]
        with socket.socket(type=socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.2", server.port))
            assert await addresses(names) == ["192.0.2.1", "192.0.2.2"]


async def test_name_servers_change(tmp_path: Path) -> None:
    """A change of resolv.conf takes effect at the next lookup."""
    async with dns_server(zone(*MAIL)) as server:
        names = resolution(tmp_path, port=server.port, resolv_conf="nameserver 127.0.0.2\n")
        assert (await fault_of(names)).reason is Reason.DNS_TIMEOUT  # nothing listens there
        resolution(tmp_path, resolv_conf=f"# of another network\n{LOCAL}")
        assert await addresses(names) == ["192.0.2.1", "192.0.2.2"]


@on_each_loop
async def test_a_name_is_looked_up_once_at_a_time(tmp_path: Path) -> None:
    """Concurrent lookups of a name share one query, and each gets its own fault to redact."""
    async with dns_server(answering({})) as server:
        names = resolution(tmp_path, port=server.port)
        waiting = [asyncio.create_task(fault_of(names, host)) for host in ["mail.test", "MAIL.test"] * 10]
        faults = await asyncio.gather(*waiting)
        assert len(server.asked_over_udp) == 2  # A and AAAA
        await fault_of(names)
        assert len(server.asked_over_udp) == 4
    assert len({id(fault) for fault in faults}) == 20


@on_each_loop
async def test_a_lookup_ends_with_the_last_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled caller ends no other's lookup; after the last caller, nothing is left."""
    monkeypatch.setattr(name_resolution, "TIMEOUT", 60.0)
    reached = asyncio.Event()

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        reached.set()
        return []

    async with dns_server(script) as server:
        names = resolution(tmp_path, port=server.port)
        before = asyncio.all_tasks()
        patient, hasty = (asyncio.create_task(names.resolve("mail.test", 25, 60.0)) for _ in range(2))
        await reached.wait()
        hasty.cancel()
        assert (await fault_of(names, seconds=0.01)).reason is Reason.DNS_TIMEOUT
        assert not patient.done()
        assert asyncio.all_tasks() > {*before, patient}
        patient.cancel()
        await asyncio.wait([patient])
        assert (
            await fault_of(names, seconds=0.01)
        ).reason is Reason.DNS_TIMEOUT  # not the one that was cancelled
        async with asyncio.timeout(30):  # less than one attempt takes
            while asyncio.all_tasks() != before:  # noqa: ASYNC110 # the loop's own turns are meant
                await asyncio.sleep(0)


@on_each_loop
async def test_silent_names_keep_nobody_waiting(tmp_path: Path) -> None:
    """While many names wait for DNS, another name is resolved."""
    stuck = [f"stuck{number}.test." for number in range(50)]
    script = answering({**silent(*stuck), ("mail.test.", "A"): "192.0.2.1"})
    async with dns_server(script) as server:
        names = resolution(tmp_path, port=server.port)
        waiting = [asyncio.create_task(names.resolve(host, 25, 60.0)) for host in stuck]
        async with asyncio.timeout(60):
            assert await addresses(names) == ["192.0.2.1"]
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


MDNS = "hosts: files mdns4_minimal [NOTFOUND=return] dns\n"


def c_library(monkeypatch: pytest.MonkeyPatch, *found: str, error: OSError | None = None) -> list[str]:
    """Make getaddrinfo return addresses or raise; return the list of names that it is asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        if error is not None:
            raise error
        return [(socket.AF_INET, 1, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@on_each_loop
async def test_other_sources_are_left_to_the_c_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nsswitch.conf has other sources, they are asked for names that DNS does not know."""
    with monkeypatch.context() as patched:
        asked = c_library(patched, "192.0.2.5")
        async with dns_server(zone(*MAIL)) as server:
            names = resolution(tmp_path, port=server.port, nsswitch=MDNS)
            assert await addresses(names) == ["192.0.2.1", "192.0.2.2"]
            assert await addresses(names, "printer.local") == ["192.0.2.5"]
            names = resolution(tmp_path, port=server.port, nsswitch="hosts: files ldap\n")
            assert await addresses(names) == ["192.0.2.5"]
        assert asked == ["printer.local", "mail.test"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(socket.EAI_NONAME, Reason.DNS_NXDOMAIN), (socket.EAI_AGAIN, Reason.DNS_TIMEOUT)],
)
async def test_other_sources_that_know_nothing(
    number: int, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that no source knows does not exist; if a source fails, that is unknown."""
    c_library(monkeypatch, error=socket.gaierror(number, "words"))
    async with dns_server(answering({})) as server:
        fault = await fault_of(resolution(tmp_path, port=server.port, nsswitch=MDNS), "printer.local")
    assert fault.reason is reason


async def test_the_c_library_is_not_asked_without_other_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with only files and DNS, no lookup ever blocks a thread."""
    asked = c_library(monkeypatch)
    async with dns_server(answering({})) as server:
        await fault_of(resolution(tmp_path, port=server.port))
        await fault_of(resolution(tmp_path, port=server.port, nsswitch="hosts: files\n"))
    assert asked == []
    assert len(server.asked_over_udp) == 2


async def test_threads_of_the_c_library_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that hangs uses a limited number of threads; further names are unknown at once."""
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait() and [])
    threads = threading.active_count()
    async with dns_server(answering({})) as server:
        names = resolution(tmp_path, port=server.port, nsswitch=MDNS)
        faults = [await fault_of(names, f"printer{n}.local", 0.05) for n in range(MOST_THREADS)]
        assert threading.active_count() == threads + MOST_THREADS
        faults.append(await fault_of(names, "late.local"))
        assert threading.active_count() == threads + MOST_THREADS
    end.set()
    assert {fault.reason for fault in faults} == {Reason.DNS_TIMEOUT}
    assert faults[-1].detail == "late.local: the other sources of names are busy"


SOURCES = {
    "2001:db8::1": "2001:db8::9",
    "2001:db8::3": "fd00::9",
    "fd00::1": "fd00::9",
    "192.0.2.1": "192.0.2.9",
    "::1": "::1",
}


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        (["192.0.2.1", "2001:db8::1"], ["2001:db8::1", "192.0.2.1"]),
        (["198.51.100.1", "192.0.2.1"], ["198.51.100.1", "192.0.2.1"]),
        (["2001:db8::2", "192.0.2.1"], ["192.0.2.1", "2001:db8::2"]),
        (["fd00::1", "192.0.2.1"], ["192.0.2.1", "fd00::1"]),
        (["2001:db8::3", "192.0.2.1"], ["192.0.2.1", "2001:db8::3"]),
        (["192.0.2.1", "2001:db8::1", "192.0.2.1"], ["2001:db8::1", "192.0.2.1"]),
        (["127.0.0.1", "::1"], ["::1", "127.0.0.1"]),
    ],
    ids=["IPv6 first", "as found", "no route", "private", "only a private route", "once", "loopback"],
)
def test_order(found: list[str], ordered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reachable addresses come first, then in the order of RFC 6724."""
    monkeypatch.setattr(name_resolution, "_source_for", SOURCES.get)
    assert in_order(found) == ordered
