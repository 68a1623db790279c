"""The resolver distinguishes all kinds of answer and absence, and accepts only answers to its query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import is_host_name
from probes.protocols import dns as dns_module
from probes.protocols.dns import DomainName, Resolver, ResolverSettings
from probes.protocols.resolver_files import ResolverFiles
from tests.fakes.dns_server import Script, dns_server, response, zone
from tests.fakes.resolver_files import resolver_files

MX = ("example.com. 300 IN MX 10 mx1.example.com.", "example.com. 300 IN MX 20 mx2.example.com.")


async def fault_of_asking(
    over_udp: Script, over_tcp: Script | None = None, patience: str = "2s"
) -> ProbeFault:
    async with dns_server(over_udp, over_tcp) as server:
        with pytest.raises(ProbeFault) as caught:
            await Resolver(server.settings(patience)).ask("example.com", "MX")
    return caught.value


async def test_records_and_the_smallest_ttl_on_the_way() -> None:
    """An answer through aliases has the records, the aliases and the smallest TTL."""
    script = zone(
        "www.example.com. 60 IN CNAME a.example.com.",
        "a.example.com. 30 IN CNAME b.example.com.",
        "b.example.com. 300 IN A 198.51.100.7",
    )
    async with dns_server(script) as server:
        answer = await Resolver(server.settings()).ask("www.example.com", "A")
    assert [record.to_text() for record in answer.records] == ["198.51.100.7"]
    assert [alias.to_text() for alias in answer.aliases] == ["a.example.com.", "b.example.com."]
    assert answer.ttl == 30


async def test_a_name_without_that_type_is_an_empty_answer() -> None:
    """NOERROR without data is not a fault: the name exists."""
    async with dns_server(lambda query: [response(query)]) as server:
        answer = await Resolver(server.settings()).ask("example.com", "MX")
    assert answer.records == ()


@pytest.mark.parametrize(
    ("rcode", "reason", "outcome"),
    [
        (dns.rcode.NXDOMAIN, Reason.DNS_NXDOMAIN, Outcome.FAILED),
        (dns.rcode.SERVFAIL, Reason.DNS_SERVFAIL, Outcome.UNKNOWN),
        (dns.rcode.REFUSED, Reason.DNS_REFUSED, Outcome.UNKNOWN),
        (dns.rcode.FORMERR, Reason.DNS_REFUSED, Outcome.UNKNOWN),
        (dns.rcode.NOTIMP, Reason.DNS_REFUSED, Outcome.UNKNOWN),
    ],
)
async def test_response_codes(rcode: dns.rcode.Rcode, reason: Reason, outcome: Outcome) -> None:
    """Only NXDOMAIN is about the domain; every other error code is about the resolver."""
    fault = await fault_of_asking(lambda query: [response(query, rcode=rcode)])
    assert (fault.reason, fault.reason.outcome) == (reason, outcome)
    assert "example.com" in fault.detail


async def test_refusal_names_the_resolver() -> None:
    """The fault has the resolver, its port, and the query."""
    async with dns_server(lambda query: [response(query, rcode=dns.rcode.REFUSED)]) as server:
        with pytest.raises(ProbeFault) as caught:
            await Resolver(server.settings()).ask("example.com", "MX")
    assert (
        caught.value.detail == f"resolver 127.0.0.1 port {server.port}, asked for MX of example.com: REFUSED"
    )


async def test_foreign_answers_are_ignored() -> None:
    """Answers with a wrong id or question, echoes and noise are ignored until the true answer."""

    def script(query: dns.message.Message) -> list[bytes | dns.message.Message]:
        forged = "example.com. 300 IN MX 1 evil.example.net."
        wrong_id = response(query, forged)
        wrong_id.id = (query.id + 1) % 65536
        other = dns.message.make_query("example.net", "MX", id=query.id)
        other_question = response(other, "example.net. 300 IN MX 1 evil.example.net.")
        noise = ((query.id + 1) % 65536).to_bytes(2, "big") + b"\xff" * 40
        return [wrong_id, other_question, query.to_wire(), noise, b"", b"\0", response(query, *MX)]

    async with dns_server(script) as server:
        answer = await Resolver(server.settings()).ask("example.com", "MX")
    assert sorted(record.to_text() for record in answer.records) == [
        "10 mx1.example.com.",
        "20 mx2.example.com.",
    ]


async def test_only_foreign_answers_are_a_timeout() -> None:
    """If all answers have a wrong id, the result is a timeout."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        wrong = response(query, *MX)
        wrong.id ^= 1
        return [wrong] * 5

    fault = await fault_of_asking(script, patience="100ms")
    assert fault.reason is Reason.DNS_TIMEOUT


async def test_silence_is_asked_twice_and_then_a_timeout() -> None:
    """A resolver that does not answer is queried twice within the timeout, and the result is unknown."""
    async with dns_server(lambda query: []) as server:
        began = asyncio.get_running_loop().time()
        with pytest.raises(ProbeFault) as caught:
            await Resolver(server.settings("100ms")).ask("example.com", "MX")
        took = asyncio.get_running_loop().time() - began
    assert caught.value.reason is Reason.DNS_TIMEOUT
    assert caught.value.reason.outcome is Outcome.UNKNOWN
    assert len(server.asked_over_udp) == 2
    assert 0.09 < took < 10.0


async def test_a_lost_datagram_is_made_good() -> None:
    """If the first query is lost, the second is answered within the timeout."""
    seen: list[int] = []

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        seen.append(query.id)
        return [response(query, *MX)] if len(seen) == 2 else []

    async with dns_server(script) as server:
        answer = await Resolver(server.settings("200ms")).ask("example.com", "MX")
    assert len(answer.records) == 2


async def test_until_cuts_the_timeout_short() -> None:
    """A caller can shorten the timeout of the resolver's settings."""
    async with dns_server(lambda query: []) as server:
        began = asyncio.get_running_loop().time()
        with pytest.raises(ProbeFault) as caught:
            await Resolver(server.settings("60s")).ask("example.com", "MX", until=began + 0.05)
        assert asyncio.get_running_loop().time() - began < 30
    assert caught.value.reason is Reason.DNS_TIMEOUT


async def test_a_cut_answer_is_asked_again_over_tcp() -> None:
    """After a truncated UDP answer, the complete answer comes over TCP."""
    records = [f"example.com. 300 IN MX {n} mx{n}.example.com." for n in range(100)]
    async with dns_server(
        lambda query: [response(query, cut=True)], lambda query: [response(query, *records)]
    ) as server:
        answer = await Resolver(server.settings()).ask("example.com", "MX")
    assert len(answer.records) == 100
    assert len(server.asked_over_tcp) == 1


async def test_a_forged_cut_does_not_lead_to_tcp() -> None:
    """A truncated answer with a wrong id is ignored like any other."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        forged = response(query, cut=True)
        forged.id ^= 1
        return [forged, response(query, *MX)]

    async with dns_server(script, lambda query: []) as server:
        await Resolver(server.settings()).ask("example.com", "MX")
    assert server.asked_over_tcp == []


@pytest.mark.parametrize("over_tcp", [None, lambda query: []], ids=["port closed", "hangs up"])
async def test_a_cut_answer_without_tcp(over_tcp: Script | None) -> None:
    """If TCP fails after a truncated answer, the result is unknown, with its own reason."""
    fault = await fault_of_asking(lambda query: [response(query, *MX, cut=True)], over_tcp)
    assert fault.reason is Reason.DNS_TRUNCATED
    assert fault.reason.outcome is Outcome.UNKNOWN


async def test_a_foreign_answer_over_tcp() -> None:
    """Over TCP, an answer to another query is malformed."""

    def other(query: dns.message.Message) -> list[dns.message.Message]:
        return [response(dns.message.make_query("example.net", "MX"))]

    fault = await fault_of_asking(lambda query: [response(query, cut=True)], other)
    assert fault.reason is Reason.DNS_MALFORMED


@pytest.mark.parametrize(
    "junk", [b"", b"\x81\x80", b"\x81\x80" + b"\xff" * 500, b"\x81\x80\0\1\0\1" + b"\0" * 4]
)
async def test_garbage_under_our_id(junk: bytes) -> None:
    """Octets with our id that are not a DNS message are malformed, not a timeout."""
    fault = await fault_of_asking(lambda query: [query.id.to_bytes(2, "big") + junk])
    assert fault.reason is Reason.DNS_MALFORMED
    assert fault.reason.outcome is Outcome.UNKNOWN


async def test_an_alias_loop() -> None:
    """An endless chain of aliases is reported and not followed for ever."""
    loop = ("example.com. 9 IN CNAME b.example.com.", "b.example.com. 9 IN CNAME example.com.")
    fault = await fault_of_asking(lambda query: [response(query, *loop)])
    assert fault.reason is Reason.DNS_MALFORMED


async def test_a_referral_is_no_absence() -> None:
    """A referral, from a server that is not recursive, proves nothing missing."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        referral = response(query)
        referral.authority.append(dns.rrset.from_text("com.", 9, "IN", "NS", "a.example.net."))
        return [referral]

    fault = await fault_of_asking(script)
    assert fault.reason is Reason.DNS_REFUSED


async def test_a_name_that_dns_cannot_hold() -> None:
    """A name of more than 255 octets does not exist, and is not a defect."""
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    async with dns_server(lambda query: [response(query)]) as server:
        assert (await Resolver(server.settings()).ask(longest, "A")).records == ()
        with pytest.raises(ProbeFault, match="no name that DNS can hold") as caught:
            await Resolver(server.settings()).ask(f"mail.{longest}", "A")
    assert caught.value.reason is Reason.DNS_NXDOMAIN


async def test_nothing_listens() -> None:
    """A resolver that is down is reported at once, and says nothing about the domain: unknown."""
    async with dns_server(lambda query: []) as server:
        settings = server.settings("60s")
    with pytest.raises(ProbeFault) as caught:
        async with asyncio.timeout(30):
            await Resolver(settings).ask("example.com", "MX")
    assert caught.value.reason.outcome is Outcome.UNKNOWN
    assert f"resolver 127.0.0.1 port {settings.port}" in caught.value.detail


async def test_the_question_is_of_edns_size() -> None:
    """Queries ask for UDP answers of at most 1232 octets, which are never fragmented."""
    async with dns_server(zone(*MX)) as server:
        await Resolver(server.settings()).ask("example.com", "MX")
    assert server.asked_over_udp[0].payload == 1232


async def test_questions_do_not_repeat_their_id() -> None:
    """Each query has its own id, which an attacker would have to guess."""
    async with dns_server(zone(*MX)) as server:
        for _ in range(20):
            await Resolver(server.settings()).ask("example.com", "MX")
    assert len({query.id for query in server.asked_over_udp}) > 10


@given(tail=st.binary(max_size=200), flip=st.integers(0, 10_000))
async def test_no_datagram_raises_anything_else(tail: bytes, flip: int) -> None:
    """Any octets with our id give an answer or a fault."""

    def script(query: dns.message.Message) -> list[bytes]:
        wire = bytearray(response(query, *MX).to_wire() + tail)
        wire[2 + flip % (len(wire) - 2)] ^= 1 + flip % 255
        return [bytes(wire)]

    async with dns_server(script) as server:
        with suppress(ProbeFault):
            await Resolver(server.settings("10ms")).ask("example.com", "MX")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail.example.com", True),
        ("MX1.Example.COM", True),
        ("localhost", True),
        ("xn--bcher-kva.example", True),
        ("1.example.com", True),
        ("192.0.2.1", False),
        ("[192.0.2.1]", False),
        ("2001:db8::1", False),
        ("mx_1.example.com", False),
        ("-mx.example.com", False),
        ("mx-.example.com", False),
        ("mx..example.com", False),
        ("mx.example.com.", False),
        ("", False),
        (".", False),
        ("mx\\032.example.com", False),
        ("a" * 64 + ".example.com", False),
        (".".join(["a" * 60] * 5), False),
    ],
)
def test_host_names(text: str, expected: bool) -> None:
    """A host name has letters, digits and inner hyphens, and is no IP address (RFC 5321 section 2.3.5)."""
    assert is_host_name(text) is expected


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("bücher。example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_domains_become_a_labels(written: str, meant: str) -> None:
    """A configured domain may have any letters; DNS is queried for its A-labels."""
    assert TypeAdapter(DomainName).validate_python(written) == meant


@pytest.mark.parametrize(
    "written", ["192.0.2.1", "", ".", "a b.example", "exa_mple.com", "a..b", "ü" * 70, "\ud800.x"]
)
def test_bad_domains(written: str) -> None:
    """An invalid domain name is refused with a sentence."""
    with pytest.raises(ValidationError, match=r"is not a domain name such as example\.com|valid string"):
        TypeAdapter(DomainName).validate_python(written)


def test_a_resolver_is_an_address() -> None:
    """A resolver must be an IP address, because a name would need another resolver."""
    with pytest.raises(ValidationError, match=r"'dns\.example' is not an IP address such as 192\.0\.2\.53"):
        ResolverSettings(address="dns.example")


def test_the_default_resolver_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, the system's first name server is used, or else this machine."""
    files = resolver_files(tmp_path, resolv_conf="nameserver 192.0.2.53\nnameserver 192.0.2.54\n")
    monkeypatch.setattr(dns_module, "SYSTEM_FILES", files)
    assert ResolverSettings().address == "192.0.2.53"
    monkeypatch.setattr(dns_module, "SYSTEM_FILES", ResolverFiles(resolv_conf_path=tmp_path / "missing"))
    assert ResolverSettings().address == "127.0.0.1"


def without_edns(refusal: Callable[[dns.message.Message], Sequence[bytes | dns.message.Message]]) -> Script:
    """Return the script of a resolver without EDNS: such queries get ``refusal``."""

    def script(query: dns.message.Message) -> Sequence[bytes | dns.message.Message]:
        return refusal(query) if query.edns >= 0 else [response(query, *MX)]

    return script


def refusing(rcode: dns.rcode.Rcode) -> Script:
    """Return the refusal of a resolver without EDNS."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        refusal = response(query, rcode=rcode)
        refusal.use_edns(False)
        return [refusal]

    return script


@pytest.mark.parametrize(
    ("refusal", "patience"),
    [
        (refusing(dns.rcode.FORMERR), "60s"),
        (refusing(dns.rcode.NOTIMP), "60s"),
        (lambda query: [query.to_wire()[:2] + b"\x81\x81" + b"\0" * 8], "60s"),  # only a header
        (lambda query: [query.to_wire()[:2] + b"\x81\x81" + query.to_wire()[4:-8]], "60s"),  # half a copy
        (lambda query: [], "400ms"),
    ],
    ids=["FORMERR", "NOTIMP", "header", "cut copy", "silence"],
)
async def test_a_resolver_without_edns(refusal: Script, patience: str) -> None:
    """A resolver that refuses or drops EDNS is queried again without it, and then only so."""
    async with dns_server(without_edns(refusal)) as server, asyncio.timeout(30):  # a refusal takes no time
        resolver = Resolver(server.settings(patience))
        for _ in range(2):
            assert len((await resolver.ask("example.com", "MX")).records) == 2
    assert [query.edns for query in server.asked_over_udp] == [0, -1, -1]


async def test_edns_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost datagram does not turn off EDNS for ever."""
    monkeypatch.setattr(dns_module, "WITHOUT_EDNS", 0.0)
    async with dns_server(without_edns(refusing(dns.rcode.FORMERR))) as server:
        resolver = Resolver(server.settings())
        for _ in range(2):
            await resolver.ask("example.com", "MX")
    assert [query.edns for query in server.asked_over_udp] == [0, -1, 0, -1]


async def test_a_late_answer_with_edns_counts() -> None:
    """A slow resolver that answers the first query after the second was sent supports EDNS."""
    seen: list[dns.message.Message] = []

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        seen.append(query)
        return [response(seen[0], *MX)] if len(seen) > 1 else []

    async with dns_server(script) as server:
        resolver = Resolver(server.settings("200ms"))
        assert len((await resolver.ask("example.com", "MX")).records) == 2
        seen.clear()
        await resolver.ask("example.com", "MX")
    assert [query.edns for query in server.asked_over_udp] == [0, -1, 0, -1]


async def test_a_cut_answer_without_edns() -> None:
    """After a truncated answer without EDNS, the query over TCP has no EDNS either."""
    script = without_edns(refusing(dns.rcode.FORMERR))

    def cut(query: dns.message.Message) -> Sequence[bytes | dns.message.Message]:
        return script(query) if query.edns >= 0 else [response(query, cut=True)]

    async with dns_server(cut, script) as server:
        assert len((await Resolver(server.settings()).ask("example.com", "MX")).records) == 2
    assert [query.edns for query in server.asked_over_tcp] == [-1]
