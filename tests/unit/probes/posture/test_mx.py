"""Judging MX records: the findings and the result for each state of a domain."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.core.faults import ProbeFault
from probes.core.finding import Check, Severity
from probes.core.reasons import Area, Outcome, Reason
from probes.core.setting_types import is_host_name
from probes.mx import Mx
from probes.posture.mx import REASONS, Gathered, Host, MxRecord, conclude, is_public, judge

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
