"""Every fault of a DNS server, and the result of a run with that domain or host name.

A name server's fault says nothing about mail, so the result is ``unknown`` or the fault is overcome. If the
name is resolved in the end, the run is like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.core.verdict import MessageState
from probes.mx import Mx, MxSettings
from probes.protocols import name_resolution
from probes.roundtrip import MxRoundtrip, RoundtripSettings
from tests.fakes.dns_server import DnsServer, Script, dns_server, response, zone
from tests.fakes.pop3_server import Pop3Server
from tests.fakes.resolver_files import resolution
from tests.fakes.scripted_server import scripted_server
from tests.fakes.smtp_server import SmtpServer
from tests.faults.dialogues import DIALOGUES
from tests.faults.round_trip import round_trip
from tests.faults.running import beside_a_healthy_one, hold_to_promises, probe_of, run, server_settings

PATIENCE = 12.0
"""Seconds that a name server has to answer: far more than it takes."""

HALF_SILENT = 1.6
"""Seconds that one has which drops what has EDNS: half of them pass before it is asked without."""

SILENT = 0.3
"""Seconds that one has which never answers."""

DOMAIN = zone(
    "example.test. 300 IN MX 10 mx.example.test.",
    "mx.example.test. 300 IN A 9.9.9.9",
    "host.example.test. 300 IN A 127.0.0.1",
)
Replies = Sequence[bytes | dns.message.Message]


@dataclass(frozen=True)
class DnsFault:
    """What a name server does over UDP and TCP instead of a correct answer, and a run's expected result."""

    name: str
    reason: Reason
    over_udp: Script
    over_tcp: Script | None = None
    timeout: float = PATIENCE


def _asked(query: dns.message.Message) -> str:
    return query.question[0].name.to_text()


def code(rcode: dns.rcode.Rcode) -> Script:
    """Return a script that answers with an error."""
    return lambda query: [response(query, rcode=rcode)]


def cut(query: dns.message.Message) -> Replies:
    """Return a truncated answer."""
    return [response(query, cut=True)]


def silent(_: dns.message.Message) -> None:
    """Never answer."""


def edns_refused(rcode: dns.rcode.Rcode | None) -> Script:
    """Return a script without EDNS: it says so, or does not answer (RFC 6891 section 7)."""

    def script(query: dns.message.Message) -> Replies | None:
        if query.edns < 0:
            return DOMAIN(query)
        return [] if rcode is None else [query.id.to_bytes(2, "big") + bytes((0x80, rcode)) + bytes(8)]

    return script


def wrong_id(query: dns.message.Message) -> Replies:
    forged = [reply for reply in DOMAIN(query) or () if isinstance(reply, dns.message.Message)]
    for reply in forged:
        reply.id ^= 1
    return forged


def wrong_question(query: dns.message.Message) -> Replies:
    other = dns.message.make_query("other.test", query.question[0].rdtype, id=query.id)
    return [response(other, f"other.test. 300 IN {_record(query)}")]


def another_name(query: dns.message.Message) -> Replies:
    """Answer the query with records of another name."""
    return [response(query, f"other.test. 300 IN {_record(query)}")]


def _record(query: dns.message.Message) -> str:
    return {"MX": "MX 10 mx.other.test.", "A": "A 192.0.2.1", "AAAA": "AAAA 2001:db8::1"}.get(
        query.question[0].rdtype.name, "CNAME evil.test."
    )


def loop(query: dns.message.Message) -> Replies:
    name = _asked(query)
    return [response(query, f"{name} 9 IN CNAME loop.test.", f"loop.test. 9 IN CNAME {name}")]


def long_chain(query: dns.message.Message) -> Replies:
    names = [_asked(query), *(f"a{n}.test." for n in range(30))]
    aliases = [f"{name} 9 IN CNAME {alias}" for name, alias in pairwise(names)]
    return [response(query, *aliases, f"{names[-1]} 9 IN {_record(query)}")]


def huge(query: dns.message.Message) -> Replies:
    """Answer with thousands of records, including a correct one. Built by hand, because dnspython is slow."""
    question = query.question[0]
    records = {
        "MX": [
            n.to_bytes(2, "big") + b"\x02mx\xc0\x0c" for n in range(1000)
        ],  # the same host, again and again
        "A": [bytes((127, 0, n // 250, n % 250 + 1)) for n in range(1000)],
    }.get(question.rdtype.name, [])
    head = query.id.to_bytes(2, "big") + b"\x81\x80\0\x01" + len(records).to_bytes(2, "big") + bytes(4)
    kind = question.rdtype.to_bytes(2, "big") + b"\0\x01"
    begin = b"\xc0\x0c" + kind + b"\0\0\x01\x2c"
    body = b"".join(begin + len(record).to_bytes(2, "big") + record for record in records)
    return [head + question.name.to_wire() + kind + body]


def garbage(query: dns.message.Message) -> Replies:
    return [query.id.to_bytes(2, "big") + b"\x81\x80" + b"\xff" * 400]


def noise(query: dns.message.Message) -> Replies:
    return [b"", b"\0", b"\xff" * 60_000, (query.id ^ 1).to_bytes(2, "big") + b"\xff" * 400]


def after(*misdeeds: Script) -> Script:
    """Return a script that sends other answers before the correct one."""
    return lambda query: [reply for script in (*misdeeds, DOMAIN) for reply in script(query) or ()]


FAULTS = [
    DnsFault("SERVFAIL", Reason.DNS_SERVFAIL, code(dns.rcode.SERVFAIL)),
    DnsFault("REFUSED", Reason.DNS_REFUSED, code(dns.rcode.REFUSED)),
    DnsFault("FORMERR to all", Reason.DNS_REFUSED, code(dns.rcode.FORMERR)),
    DnsFault("black hole", Reason.DNS_TIMEOUT, silent, timeout=SILENT),
    DnsFault("cut, good over TCP", Reason.NONE, cut, DOMAIN),
    DnsFault("cut, TCP refused", Reason.DNS_TRUNCATED, cut),
    DnsFault("cut, TCP silent", Reason.DNS_TRUNCATED, cut, silent, SILENT),
    DnsFault("cut, TCP closed", Reason.DNS_TRUNCATED, cut, lambda _: []),
    DnsFault("cut, cut over TCP", Reason.DNS_TRUNCATED, cut, cut),
    DnsFault("cut, SERVFAIL over TCP", Reason.DNS_SERVFAIL, cut, code(dns.rcode.SERVFAIL)),
    DnsFault("cut, wrong id over TCP", Reason.DNS_MALFORMED, cut, wrong_id),
    DnsFault("cut, garbage over TCP", Reason.DNS_MALFORMED, cut, garbage),
    DnsFault("cut, huge over TCP", Reason.NONE, cut, huge),
    DnsFault("wrong id", Reason.DNS_TIMEOUT, wrong_id, timeout=SILENT),
    DnsFault("wrong id, then sound", Reason.NONE, after(wrong_id)),
    DnsFault("wrong question", Reason.DNS_TIMEOUT, wrong_question, timeout=SILENT),
    DnsFault("wrong question, then sound", Reason.NONE, after(wrong_question)),
    DnsFault("another name", Reason.DNS_MALFORMED, another_name),
    DnsFault("alias loop", Reason.DNS_MALFORMED, loop),
    DnsFault("alias chain too long", Reason.DNS_MALFORMED, long_chain),
    DnsFault("FORMERR to EDNS", Reason.NONE, edns_refused(dns.rcode.FORMERR)),
    DnsFault("NOTIMP to EDNS", Reason.NONE, edns_refused(dns.rcode.NOTIMP)),
    DnsFault("EDNS dropped", Reason.NONE, edns_refused(None), timeout=HALF_SILENT),
    DnsFault("garbage", Reason.DNS_MALFORMED, garbage),
    DnsFault("noise", Reason.DNS_TIMEOUT, noise, timeout=SILENT),
    DnsFault("noise, then sound", Reason.NONE, after(noise)),
    DnsFault(
        "a flood of wrong ids", Reason.DNS_TIMEOUT, lambda query: [*wrong_id(query)] * 200, timeout=SILENT
    ),
]
QUESTIONS = {
    "mx": ("MX", "A"),
    "smtp": ("A",),
    "pop3": ("A",),
    "imap": ("A",),
    "roundtrip": ("A",),
    "roundtrip to MX": ("MX", "A"),
}
"""What each kind asks for; "A" stands for all that is asked about a host."""


@dataclass(frozen=True)
class Case:
    """A fault in the answers to one query of one kind."""

    kind: str
    question: str
    committed: DnsFault

    @property
    def fault(self) -> str:
        return f"DNS: {self.committed.name}"

    def __str__(self) -> str:
        return f"{self.kind}-{self.question}-{self.committed.name}"

    def serve(self) -> AbstractAsyncContextManager[DnsServer]:
        """Serve a domain with a name server that has the fault, only in the answers to this query."""

        def only_here(script: Script) -> Script:
            def answer(query: dns.message.Message) -> Replies | None:
                is_mx = query.question[0].rdtype.name == "MX"
                return script(query) if is_mx is (self.question == "MX") else DOMAIN(query)

            return answer

        over_tcp = self.committed.over_tcp
        return dns_server(only_here(self.committed.over_udp), over_tcp and only_here(over_tcp))


CASES = [
    Case(kind, question, fault) for kind in QUESTIONS for question in QUESTIONS[kind] for fault in FAULTS
]


def of(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for case in CASES if case.kind in kinds], ids=str)


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case, DnsServer], None]:
    """Return what makes a case's name server the one that host names are looked up by."""

    def use(case: Case, server: DnsServer) -> None:
        resolv_conf = "nameserver 127.0.0.1\nsearch .\noptions attempts:1"
        used = resolution(tmp_path, port=server.port, resolv_conf=resolv_conf)
        monkeypatch.setattr(name_resolution, "TIMEOUT", case.committed.timeout)
        monkeypatch.setattr(name_resolution, "system", used)

    return use


@of("mx")
async def test_a_fault_in_front_of_an_mx_probe(case: Case) -> None:
    """No fault of a resolver reports a correct domain as failed: it is unknown, or overcome."""
    async with case.serve() as server:
        settings = {"name": "mx", "kind": "mx", "domain": "example.test", "allow_private": True}
        resolver = {"address": "127.0.0.1", "port": server.port, "timeout": f"{case.committed.timeout}s"}
        made = MxSettings.model_validate({**settings, "resolver": resolver, "deadline": "30s"})
        ran = await run(Mx(made, Context(SystemClock(), Site("here", {}, {}))))
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is case.committed.reason, f"{verdict.reason}: {verdict.detail}"
    assert verdict.outcome in (Outcome.OK, Outcome.UNKNOWN)


@of(*DIALOGUES)
async def test_a_fault_in_front_of_a_host_name(case: Case, use: Callable[[Case, DnsServer], None]) -> None:
    """A name server's fault says nothing about the mail server: unknown, or overcome."""
    async with case.serve() as server, scripted_server(DIALOGUES[case.kind].sound) as mail:
        use(case, server)
        probe = probe_of(case.kind, server_settings(case.kind, mail.port, host="host.example.test"))
        ran = await run(probe)
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is case.committed.reason, f"{verdict.reason}: {verdict.detail}"
    assert verdict.reason is Reason.NONE or verdict.detail.startswith("in phase resolve: ")
    assert mail.connections == (verdict.reason is Reason.NONE)


@of("roundtrip")
async def test_a_fault_in_front_of_a_submission(
    case: Case, use: Callable[[Case, DnsServer], None], tmp_path: Path
) -> None:
    """A message whose server is not found is deferred and the run unknown; else it is delivered."""
    mailbox = Pop3Server()
    async with (
        case.serve() as server,
        round_trip(mailbox, SmtpServer(mailbox.add), tmp_path, submission_host="host.example.test") as trip,
    ):
        use(case, server)
        ran = await trip.run()
        hold_to_promises(ran)
        verdict, message = ran.result.verdict, await trip.message(ran.result.run)
        assert verdict.reason is case.committed.reason, f"{verdict.reason}: {verdict.detail}"
        is_sound = verdict.reason is Reason.NONE
        assert message.state is (MessageState.DELIVERED if is_sound else MessageState.DEFERRED)
        assert verdict.outcome is (Outcome.OK if is_sound else Outcome.UNKNOWN)
        assert trip.smtp.connections == is_sound


@of("roundtrip to MX")
async def test_a_fault_in_front_of_mx_hosts(case: Case, tmp_path: Path) -> None:
    """Where the hosts of a domain cannot be looked up, the run is unknown, and nothing is sent."""
    mailbox = Pop3Server()
    async with case.serve() as server, round_trip(mailbox, SmtpServer(mailbox.add), tmp_path) as trip:
        resolver = {"address": "127.0.0.1", "port": server.port, "timeout": f"{case.committed.timeout}s"}
        settings = trip.probe.settings.model_dump(by_alias=True, include={"name", "kind", "sender", "to"})
        written = {"send_via": "mx", "recipient": "b@example.test", "mx": {"resolver": resolver}}
        probe = MxRoundtrip(RoundtripSettings.model_validate(settings | written), trip.probe.context)
        ran = await beside_a_healthy_one(probe)
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is case.committed.reason, f"{verdict.reason}: {verdict.detail}"
    assert [sub.target for sub in probe.sub_probes] == ["mx.example.test"] * (verdict.reason is Reason.NONE)
