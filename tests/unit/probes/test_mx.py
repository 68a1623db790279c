"""The ``mx`` probe: its results for all kinds of MX records; no answer never means absence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.finding import Check, Severity
from probes.core.reasons import Area, Outcome, Reason
from probes.core.setting_types import is_host_name
from probes.core.settings import Site
from probes.core.verdict import PhaseTimer, Run, Verdict
from probes.mx import ADDRESSES_SHOWN, RECORDS_EXAMINED, Mx, MxSettings
from probes.posture.mx import REASONS, Gathered, Host, MxRecord, conclude, is_public, judge
from tests.fakes.dns_server import DnsServer, Script, dns_server, response, zone

# Public addresses, only as data, because addresses for documentation count as special.
GOOD = Host(("9.9.9.9", "2620:fe::fe"), ttl=300)
ALIAS = Host(("9.9.9.9",), alias_of="real.example.net")
EMPTY = Host()
PRIVATE = Host(("9.9.9.9", "10.0.0.1"))
SILENT = Host(fault=ProbeFault(Reason.DNS_TIMEOUT, "no answer within 5 s"))
BROKEN = Host(fault=ProbeFault(Reason.DNS_SERVFAIL, "SERVFAIL"))


def facts(**hosts: Host | None) -> Gathered:
    """Return MX records for mx1, mx2, ... in the domain; ``None`` for a host that was not looked up."""
    named = {name.replace("_", ".") + ".example.com": host for name, host in hosts.items()}
    records = tuple(MxRecord(10 * n, name, 300) for n, name in enumerate(named, 1))
    return Gathered(records, len(records), {name: host for name, host in named.items() if host is not None})


def records_for(*names: str) -> Gathered:
    return Gathered(
        tuple(MxRecord(10, name, 300) for name in names),
        len(names),
        {name: GOOD for name in names if name != "."},
    )


def reasons(
    gathered: Gathered, expect: Sequence[str] | None = None, *, allow_private: bool = False
) -> list[Reason]:
    """Return the reasons of the run and of each finding; the first finding's is the run's if it decides."""
    findings = judge("example.com", gathered, expect, allow_private)
    conclusion, _ = conclude(gathered, findings)
    of_findings = [REASONS[finding.check, finding.severity] for finding in findings]
    decides = of_findings[:1] == [conclusion] or conclusion is Reason.NONE
    return of_findings if decides else [conclusion, *of_findings]


def implicit(host: Host) -> Gathered:
    records = (MxRecord(0, "example.com", 300),) if host.addresses else ()
    return Gathered(records, 0, {"example.com": host})


@pytest.mark.parametrize(
    ("gathered", "expected"),
    [
        (facts(mx1=GOOD, mx2=GOOD), []),
        (facts(mx1=ALIAS, mx2=GOOD), [Reason.MX_TARGET_CNAME]),
        (facts(mx1=EMPTY, mx2=GOOD), [Reason.MX_TARGET_PARTLY_UNRESOLVED]),
        (facts(mx1=EMPTY), [Reason.MX_TARGET_UNRESOLVED]),
        (facts(mx1=EMPTY, mx2=EMPTY), [Reason.MX_TARGET_UNRESOLVED] * 2),
        (facts(mx1=PRIVATE, mx2=GOOD), [Reason.MX_PRIVATE_ADDRESS]),
        (facts(mx1=SILENT, mx2=GOOD), [Reason.DNS_TIMEOUT]),
        (facts(mx1=SILENT, mx2=EMPTY), [Reason.DNS_TIMEOUT, Reason.MX_TARGET_PARTLY_UNRESOLVED]),
        (facts(mx1=SILENT, mx2=PRIVATE), [Reason.MX_PRIVATE_ADDRESS]),
        (facts(mx1=ALIAS, mx2=BROKEN), [Reason.DNS_SERVFAIL, Reason.MX_TARGET_CNAME]),
        (implicit(GOOD), [Reason.MX_IMPLICIT]),
        (implicit(ALIAS), [Reason.MX_IMPLICIT]),
        (implicit(EMPTY), [Reason.MX_MISSING]),
        (implicit(SILENT), [Reason.DNS_TIMEOUT]),
        (implicit(PRIVATE), [Reason.MX_PRIVATE_ADDRESS, Reason.MX_IMPLICIT]),
        (records_for("."), [Reason.MX_NULL]),
        (records_for(".", "mx1.example.com"), [Reason.MX_NULL_MIXED]),
    ],
)
def test_findings(gathered: Gathered, expected: list[Reason]) -> None:
    """Each state of the records has its findings, worst first; an unknown host outweighs only a warning."""
    assert reasons(gathered) == expected


def test_a_host_with_an_address_is_resolved_whatever_else_went_unanswered() -> None:
    """An A record is enough to accept mail, so an unanswered AAAA query is not unknown."""
    half = Host(("9.9.9.9",), fault=ProbeFault(Reason.DNS_SERVFAIL))
    assert reasons(facts(mx1=half)) == []


@pytest.mark.parametrize(
    "name", ["192.0.2.1", "[192.0.2.1]", "2001:db8::1", "mx_1.example.com", "a\\.b.example"]
)
def test_targets_that_are_no_host_names(name: str) -> None:
    """A target that is an IP address or not a host name fails the run, and the finding has it."""
    gathered = Gathered((MxRecord(10, name, 300),), 1, {})
    (finding,) = judge("example.com", gathered, None, False)
    assert (finding.check, finding.severity) == (Check.MX_TARGET_INVALID, Severity.CRITICAL)
    assert finding.subject == name
    assert name in finding.seen


@pytest.mark.parametrize(
    ("names", "expect", "expected"),
    [
        (["mx1.example.com"], ["mx1.example.com"], []),
        (["mx1.example.com"], ["*.example.com"], []),
        (["a.b.example.com"], ["*.example.com"], []),
        (["example.com"], ["*.example.com"], [Reason.MX_UNEXPECTED, Reason.MX_EXPECTED_ABSENT]),
        (["notexample.com"], ["*.example.com"], [Reason.MX_UNEXPECTED, Reason.MX_EXPECTED_ABSENT]),
        (
            ["mx1.example.com.evil.net"],
            ["mx1.example.com"],
            [Reason.MX_UNEXPECTED, Reason.MX_EXPECTED_ABSENT],
        ),
        (["mx1.example.com"], ["mx1.example.com", "mx2.example.com"], [Reason.MX_EXPECTED_ABSENT]),
        (["mx1.example.com", "evil.net"], ["mx1.example.com"], [Reason.MX_UNEXPECTED]),
        (["."], ["."], []),
        (["."], ["mx1.example.com"], [Reason.MX_NULL, Reason.MX_EXPECTED_ABSENT]),
        (["mx1.example.com"], ["."], [Reason.MX_UNEXPECTED, Reason.MX_EXPECTED_ABSENT]),
        ([".", "mx1.example.com"], ["mx1.example.com"], [Reason.MX_NULL_MIXED]),
    ],
)
def test_expectation(names: list[str], expect: list[str], expected: list[Reason]) -> None:
    """Hosts match exactly or by whole final labels, never by parts of labels."""
    assert reasons(records_for(*names), expect) == expected


def test_mail_to_the_domains_own_address_is_unexpected_where_hosts_are_expected() -> None:
    """If MX records vanish, mail goes to the domain's web server: failed if `expect` names hosts."""
    assert reasons(implicit(GOOD), ["mx1.example.com"])[0] is Reason.MX_UNEXPECTED
    assert reasons(implicit(GOOD), ["example.com"]) == [Reason.MX_IMPLICIT]


def test_private_addresses_can_be_allowed() -> None:
    """Private addresses can be allowed, for a split-horizon resolver."""
    assert reasons(facts(mx1=PRIVATE), allow_private=True) == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("9.9.9.9", True),
        ("2620:fe::fe", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.1.1", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 # an address in an answer, nothing is bound
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_special_addresses(address: str, public: bool) -> None:
    """Addresses that are not routed on the internet are special (RFC 6890), in both families."""
    assert is_public(address) is public


def test_every_mx_check_decides_a_run() -> None:
    """Each check of this kind has a reason for each severity, and every reason is used."""
    declared = {(check, severity) for check in Mx.checks for severity in check.severities}
    assert set(REASONS) == declared
    ours = {reason for reason in Reason if reason.area is Area.MX}
    assert set(REASONS.values()) == {*ours, Reason.DNS_NXDOMAIN}
    assert [severity.rank for _, severity in REASONS] == sorted(severity.rank for _, severity in REASONS)


def test_the_outcome_is_that_of_the_worst_severity() -> None:
    """A critical finding fails the run; a warning leaves it ok with a warning."""
    words = {Severity.CRITICAL: "failed", Severity.WARNING: "warning"}
    assert {reason: words[severity] for (_, severity), reason in REASONS.items()} == {
        reason: reason.word for reason in REASONS.values()
    }


HOSTS = st.sampled_from([GOOD, ALIAS, EMPTY, PRIVATE, SILENT, BROKEN])
NAMES = st.sampled_from([".", "mx1.example.com", "mx2.example.net", "192.0.2.1", "example.com", "a\x07b"])


@given(
    hosts=st.dictionaries(NAMES, HOSTS, min_size=1),
    expect=st.none() | st.lists(st.sampled_from(["mx1.example.com", "*.example.net"]), min_size=1),
    allow_private=st.booleans(),
)
def test_order_and_silence(hosts: dict[str, Host], expect: list[str] | None, allow_private: bool) -> None:
    """For any records, the worst finding is first, no answer is not absence, and texts are safe to show."""
    looked_up = {name: host for name, host in hosts.items() if is_host_name(name)}
    gathered = Gathered(tuple(MxRecord(1, name, 1) for name in hosts), len(hosts), looked_up)
    findings = judge("example.com", gathered, expect, allow_private)
    ranks = [finding.severity.rank for finding in findings]
    assert ranks == sorted(ranks)
    reason, detail = conclude(gathered, findings)
    critical = any(finding.severity is Severity.CRITICAL for finding in findings)
    assert (reason.outcome is Outcome.FAILED) is critical
    assert (reason is Reason.NONE) is (not findings and not gathered.unanswered)
    silent = {name for name, host in looked_up.items() if host.fault is not None}
    absent = Check.MX_TARGET_UNRESOLVED
    assert not [finding for finding in findings if finding.subject in silent and finding.check is absent]
    assert (detail + "".join(f.subject + f.seen + f.expected for f in findings)).isprintable()


def settings(server: DnsServer | None = None, **changes: object) -> MxSettings:
    written: dict[str, Any] = {"name": "hq-mx", "kind": "mx", "domain": "example.com", **changes}
    if server is not None:
        written["resolver"] = {"address": "127.0.0.1", "port": server.port, "timeout": "2s"}
    return MxSettings.model_validate(written)


async def run_against(script: Script, **changes: object) -> tuple[Verdict, Run]:
    async with dns_server(script) as server:
        run = Run("0" * 32, 0.0, PhaseTimer(SystemClock()))
        probe = Mx(settings(server, **changes), Context(SystemClock(), Site("here", {}, {})))
        return await probe.run(run), run


SOUND = (
    "example.com. 600 IN MX 20 MX2.example.com.",
    "example.com. 600 IN MX 10 mx1.example.com.",
    "mx1.example.com. 300 IN A 9.9.9.9",
    "mx1.example.com. 120 IN AAAA 2620:fe::fe",
    "mx2.example.com. 300 IN A 149.112.112.112",
)


async def test_a_sound_domain() -> None:
    """A correct domain is ok, with its records by preference, their addresses and smallest TTL."""
    verdict, run = await run_against(zone(*SOUND))
    assert verdict.reason is Reason.NONE
    assert verdict.values["records"] == [
        {
            "host": "mx1.example.com",
            "preference": 10,
            "ttl": 600,
            "addresses": ["9.9.9.9", "2620:fe::fe"],
            "cname": None,
            "fault": None,
        },
        {
            "host": "mx2.example.com",
            "preference": 20,
            "ttl": 600,
            "addresses": ["149.112.112.112"],
            "cname": None,
            "fault": None,
        },
    ]
    assert (verdict.values["mx_count"], verdict.values["ttl_min"]) == (2, 120)
    assert verdict.findings == ()
    assert list(run.phases.seconds) == ["mx", "targets"]


async def test_the_worst_finding_decides_and_hides_no_other() -> None:
    """The worst finding gives the reason and the sentence, and every finding is reported."""
    verdict, _ = await run_against(
        zone(
            "example.com. 600 IN MX 10 mx1.example.com.",
            "example.com. 600 IN MX 20 mx2.example.com.",
            "example.com. 600 IN MX 30 gone.example.com.",
            "mx1.example.com. 300 IN CNAME real.example.com.",
            "real.example.com. 300 IN A 9.9.9.9",
            "mx2.example.com. 300 IN A 192.168.1.1",
        )
    )
    assert verdict.reason is Reason.MX_PRIVATE_ADDRESS
    assert verdict.detail == (
        "mx2.example.com has the address 192.168.1.1, which the internet cannot reach (and 2 more)"
    )
    assert verdict.findings is not None
    assert [(f.check, f.severity, f.subject, f.seen, f.expected) for f in verdict.findings] == [
        (
            Check.MX_PRIVATE_ADDRESS,
            Severity.CRITICAL,
            "mx2.example.com",
            "mx2.example.com has the address 192.168.1.1, which the internet cannot reach",
            "public addresses only",
        ),
        (
            Check.MX_TARGET_UNRESOLVED,
            Severity.WARNING,
            "gone.example.com",
            "gone.example.com has neither an A nor an AAAA record",
            "at least one address",
        ),
        (
            Check.MX_TARGET_CNAME,
            Severity.WARNING,
            "mx1.example.com",
            "mx1.example.com is an alias of real.example.com",
            "a host with addresses of its own",
        ),
    ]


async def test_an_alias_that_the_resolver_hides() -> None:
    """A resolver may return an alias's addresses directly; the CNAME query still reveals the alias."""

    def flattening(query: dns.message.Message) -> list[dns.message.Message]:
        kind = query.question[0].rdtype.name
        data = {
            "MX": "example.com. 60 IN MX 10 mx1.example.com.",
            "CNAME": "mx1.example.com. 60 IN CNAME real.example.com.",
            "A": "mx1.example.com. 60 IN A 9.9.9.9",
        }
        return [response(query, data[kind]) if kind in data else response(query)]

    verdict, _ = await run_against(flattening)
    assert verdict.reason is Reason.MX_TARGET_CNAME
    assert verdict.is_warning


async def test_an_alias_whose_own_question_goes_unanswered() -> None:
    """If the CNAME query fails, the answers for addresses still show the alias."""
    aliased = zone(
        "example.com. 60 IN MX 10 mx1.example.com.",
        "mx1.example.com. 60 IN CNAME real.example.com.",
        "real.example.com. 60 IN A 9.9.9.9",
    )

    def script(query: dns.message.Message) -> Sequence[bytes | dns.message.Message]:
        refused = query.question[0].rdtype.name == "CNAME"
        return [response(query, rcode=dns.rcode.REFUSED)] if refused else aliased(query)

    verdict, _ = await run_against(script)
    assert verdict.reason is Reason.MX_TARGET_CNAME


async def test_a_domain_that_is_an_alias() -> None:
    """A domain that is itself a CNAME is followed to its records."""
    verdict, _ = await run_against(
        zone(
            "example.com. 60 IN CNAME real.example.net.",
            "real.example.net. 60 IN MX 10 mx1.example.net.",
            "mx1.example.net. 60 IN A 9.9.9.9",
        )
    )
    assert (verdict.reason, verdict.values["mx_count"]) == (Reason.NONE, 1)


async def test_a_domain_without_mx_records() -> None:
    """Without MX records, mail goes to the domain's own address; without one, nothing accepts it."""
    verdict, _ = await run_against(zone("example.com. 60 IN A 9.9.9.9"))
    assert (verdict.reason, verdict.values["mx_count"]) == (Reason.MX_IMPLICIT, 0)
    verdict, _ = await run_against(zone("example.com. 60 IN TXT hello"))
    assert verdict.reason is Reason.MX_MISSING


async def test_a_domain_that_does_not_exist() -> None:
    """NXDOMAIN fails the run and is a finding like any other."""
    verdict, _ = await run_against(zone("example.net. 60 IN A 9.9.9.9"))
    assert (verdict.reason, verdict.detail) == (Reason.DNS_NXDOMAIN, "example.com does not exist")
    assert verdict.findings is not None
    assert [(f.check, f.subject) for f in verdict.findings] == [(Check.DOMAIN_MISSING, "example.com")]


async def test_a_resolver_that_tells_nothing_judges_nothing() -> None:
    """If the MX query is not answered, findings are unknown, not empty."""
    with pytest.raises(ProbeFault) as caught:
        await run_against(lambda query: [response(query, rcode=dns.rcode.SERVFAIL)])
    assert caught.value.reason is Reason.DNS_SERVFAIL


async def test_a_resolver_that_falls_silent_after_the_mx_answer() -> None:
    """No answer about the hosts is unknown, never a timeout of the mail system."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        if query.question[0].rdtype.name != "MX":
            return []
        return [response(query, *(f"example.com. 60 IN MX 1 mx{n}.example.com." for n in range(30)))]

    verdict, _ = await run_against(script, deadline="500ms")
    assert verdict.reason is Reason.DNS_TIMEOUT


async def test_one_host_that_cannot_be_looked_up() -> None:
    """SERVFAIL for one host is unknown, and the sentence has the host."""
    sound = zone(*SOUND)

    def script(query: dns.message.Message) -> Sequence[bytes | dns.message.Message]:
        broken = query.question[0].name.to_text().lower().startswith("mx2")
        return [response(query, rcode=dns.rcode.SERVFAIL)] if broken else sound(query)

    verdict, _ = await run_against(script)
    assert (verdict.reason, verdict.outcome) == (Reason.DNS_SERVFAIL, Outcome.UNKNOWN)
    assert verdict.detail.startswith("mx2.example.com could not be looked up: resolver 127.0.0.1 port")


async def test_a_hostile_zone_is_bounded() -> None:
    """Of very many records and addresses, a limited number is looked up and shown, with the total count."""
    asked: set[str] = set()

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        question = query.question[0]
        if question.rdtype.name == "MX":
            return [response(query, *(f"example.com. 9 IN MX {n} h{n}.example.com." for n in range(1000)))]
        asked.add(question.name.to_text())
        if question.rdtype.name == "A":
            name = question.name.to_text()
            return [response(query, *(f"{name} 9 IN A 9.9.9.{n}" for n in range(100)))]
        return [response(query)]

    verdict, _ = await run_against(script)
    records = cast(list[dict[str, Any]], verdict.values["records"])
    assert len(asked) == len(records) == RECORDS_EXAMINED
    assert verdict.values["mx_count"] == 1000
    assert {len(record["addresses"]) for record in records} == {ADDRESSES_SHOWN}


async def test_control_characters_from_dns_are_escaped() -> None:
    """A host name of terminal escapes is escaped."""
    verdict, _ = await run_against(zone(r"example.com. 60 IN MX 10 \027[31m.example.com."))
    assert verdict.reason is Reason.MX_TARGET_INVALID
    assert verdict.detail.isprintable()
    assert str(verdict.values).isprintable()
    assert verdict.findings is not None
    assert str([finding.as_object() for finding in verdict.findings]).isprintable()


def test_settings() -> None:
    """The target is the domain in A-labels; patterns are converted to the form in DNS."""
    made = settings(domain="Bücher.example", expect=["MX1.Bücher.example.", "*.Outlook.com"])
    assert Mx(made, Context(SystemClock(), Site("here", {}, {}))).target == "xn--bcher-kva.example"
    assert made.expect == ("mx1.xn--bcher-kva.example", "*.outlook.com")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain": "192.0.2.1"}, r"'192\.0\.2\.1' is not a domain name such as example\.com"),
        ({"expect": []}, "at least 1 item"),
        ({"expect": [".", "mx1.example.com"]}, r"'\.' means that the domain accepts no mail; remove it or"),
        ({"expect": ["*"]}, "is not a domain name"),
        ({"expect": ["mx*.example.com"]}, "is not a domain name"),
        ({"expect": ["*.*.example.com"]}, "is not a domain name"),
        ({"resolver": {"timeout": "0s"}}, "greater than 0"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    """Invalid settings are refused with a sentence that says what to write."""
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
