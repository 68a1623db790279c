"""Findings: what is wrong with a domain or host, as data for metrics, alerts and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from probes.core.faults import legible
from probes.core.redaction import Redaction

SUBJECT_LIMIT = 255
"""Maximum characters of a subject: the longest name in DNS (RFC 1035 section 2.3.4)."""

FINDINGS_PER_CHECK = 10
"""Maximum findings of one check and severity in a run, so that many of one do not displace others."""


class Severity(StrEnum):
    """How bad a finding is, the worst first."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """Its rank among the severities; 0 is the worst."""
        return tuple(Severity).index(self)


_C, _W, _I = Severity


class Check(StrEnum):
    """The closed list of checks that can have findings.

    Each has the possible severities of its findings, a sentence that says what is wrong, the source of the
    rule, and the remedy.
    """

    severities: tuple[Severity, ...]
    meaning: str
    source: str
    remedy: str

    def __new__(  # noqa: D102 # enum plumbing
        cls, value: str, severities: tuple[Severity, ...], meaning: str, source: str, remedy: str
    ) -> Check:
        check = str.__new__(cls, value)
        check._value_ = value
        check.severities, check.meaning, check.source, check.remedy = severities, meaning, source, remedy
        return check

    DOMAIN_MISSING = (
        "domain_missing",
        (_C,),
        "The domain does not exist (NXDOMAIN).",
        "RFC 8020",
        "Check that the domain is spelled correctly, that its registration has not expired, and that the "
        "parent zone delegates it.",
    )
    MX_MISSING = (
        "mx_missing",
        (_C,),
        "The domain has neither MX nor address records.",
        "RFC 5321 section 5.1",
        "Publish an MX record that names the host that takes the domain's mail.",
    )
    MX_NULL_MIXED = (
        "mx_null_mixed",
        (_C,),
        "A null MX stands beside other MX records.",
        "RFC 7505 section 3",
        "Remove the null MX if the domain takes mail; if it does not, remove the other MX records.",
    )
    MX_NULL = (
        "mx_null",
        (_C,),
        "A null MX says that the domain takes no mail.",
        "RFC 7505",
        "Replace the null MX with the domain's MX hosts. If the domain takes no mail on purpose, set "
        '`expect: ["."]`.',
    )
    MX_TARGET_UNRESOLVED = (
        "mx_target_unresolved",
        (_C, _W),
        "An MX target has neither A nor AAAA records; critical when no target has any.",
        "RFC 5321 section 5.1",
        "Publish an A or AAAA record for the target, or remove the MX record that names it.",
    )
    MX_UNEXPECTED = (
        "mx_unexpected",
        (_C,),
        "There is an MX host that `expect` does not name.",
        "configuration",
        "If nobody knows the host, treat it as an intrusion: somebody may be reading your mail. If it is "
        "yours, add it to `expect`.",
    )
    MX_TARGET_INVALID = (
        "mx_target_invalid",
        (_C,),
        "An MX target is an IP address or not a valid host name.",
        "RFC 5321 sections 2.3.5 and 5.1",
        "Name a host in the MX record, and give that host the address.",
    )
    MX_PRIVATE_ADDRESS = (
        "mx_private_address",
        (_C,),
        "An MX target has a private or special address.",
        "RFC 6890",
        "Publish the host's public address. Behind a split-horizon resolver, set `allow_private: true`.",
    )
    MX_EXPECTED_ABSENT = (
        "mx_expected_absent",
        (_W,),
        "An MX host that `expect` names is missing.",
        "configuration",
        "Restore the MX record, or remove the host from `expect` if it is gone for good.",
    )
    MX_IMPLICIT = (
        "mx_implicit",
        (_W,),
        "There are no MX records, so mail goes to the domain's own address.",
        "RFC 5321 section 5.1",
        "Publish an MX record, or a null MX (RFC 7505) if the domain takes no mail.",
    )
    MX_TARGET_CNAME = (
        "mx_target_cname",
        (_W,),
        "An MX target is an alias.",
        "RFC 2181 section 10.3",
        "Name the host itself in the MX record, not its alias.",
    )
    EXCHANGE_BUILD_BELOW_MINIMUM = (
        "exchange_build_below_minimum",
        (_W,),
        "A server's build is older than `minimum_build`.",
        "configuration",
        "Install the current update on the server.",
    )
    EXCHANGE_BUILD_UNKNOWN = (
        "exchange_build_unknown",
        (_I,),
        "A server does not tell its build, so it is not compared with `minimum_build`.",
        "configuration",
        "Let `owa` send the header field X-OWA-Version, or remove `minimum_build`.",
    )
    EXCHANGE_BUILD_OUTDATED = (
        "exchange_build_outdated",
        (_I,),
        "A newer build of the server's release is known, or its support has ended.",
        "Microsoft's list of builds, as of the date in the finding",
        "Install the current update, or move to a release with support.",
    )
    AUTODISCOVER_MISSING = (
        "autodiscover_missing",
        (_C,),
        "No step of autodiscover leads to an answer of it.",
        "[MS-OXDISCO] section 3.1.5",
        "Publish an address, alias or SRV record for autodiscover, and check its virtual directory.",
    )
    AUTODISCOVER_UNEXPECTED = (
        "autodiscover_unexpected",
        (_C,),
        "A step leads to a host that `expect_hosts` does not name.",
        "configuration",
        "If nobody knows the host, treat it as an intrusion: clients send it their passwords. If it is "
        "yours, add it to `expect_hosts`.",
    )
    AUTODISCOVER_DISAGREES = (
        "autodiscover_disagrees",
        (_W,),
        "Two steps lead to services that have neither a host name nor an address in common.",
        "[MS-OXDISCO] section 3.1.5",
        "Correct the record or redirect of the step that is wrong. If both are one service, set "
        "`expect_hosts`.",
    )
    AUTODISCOVER_AUTH_CHANGED = (
        "autodiscover_auth_changed",
        (_W,),
        "An endpoint offers other authentication than `expect_auth` or `expect_authorization_uri` says.",
        "configuration",
        "Restore the authentication of the virtual directory. If the change was intended, correct the "
        "setting.",
    )
    AUTODISCOVER_CERTIFICATE = (
        "autodiscover_certificate",
        (_W,),
        "The certificate at a step is not valid for its name.",
        "RFC 9110 section 4.3.4",
        "Add the name to the server's certificate, or close the port: clients show a warning.",
    )
    AUTODISCOVER_OTHER_PAGE = (
        "autodiscover_other_page",
        (_W, _I),
        "A web server answers with another page where XML or JSON is due; info at the domain itself.",
        "[MS-OXDISCO] section 3.1.5",
        "Let the web server answer 404 below /autodiscover, or correct the record that leads clients to it.",
    )
    AUTODISCOVER_STEP_FAILED = (
        "autodiscover_step_failed",
        (_W, _I),
        "A step is published but does not answer as it should; info at the domain itself.",
        "[MS-OXDISCO] section 3.1.5",
        "Repair the server that the finding names, or no longer publish the step.",
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one subject, such as a host.

    ``subject`` and ``seen`` contain untrusted text. They are made legible and cut here, shown only where text
    is escaped, and never used as a metric's label. Raises ValueError for a severity that ``check`` does not
    declare.
    """

    check: Check
    severity: Severity
    subject: str
    seen: str
    expected: str

    def __post_init__(self) -> None:
        if self.severity not in self.check.severities:
            raise ValueError(f"{self.check} has no findings that are {self.severity}")
        object.__setattr__(self, "subject", legible(self.subject, SUBJECT_LIMIT))
        object.__setattr__(self, "seen", legible(self.seen))
        object.__setattr__(self, "expected", legible(self.expected))

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.check.remedy

    def redacted(self, redaction: Redaction) -> Finding:
        """Return a copy without any piece of a secret."""
        return replace(
            self,
            subject=redaction.text(self.subject),
            seen=redaction.text(self.seen),
            expected=redaction.text(self.expected),
        )

    def as_object(self) -> dict[str, str]:
        """Return the object for JSON, the ledger's history and the pages."""
        return {
            "check": str(self.check),
            "severity": str(self.severity),
            "subject": self.subject,
            "seen": self.seen,
            "expected": self.expected,
            "remedy": self.remedy,
        }


def reported(findings: Iterable[Finding], redaction: Redaction) -> tuple[Finding, ...]:
    """Return a run's findings for display: the worst first, a limited number of each check, no secrets."""
    counts: Counter[tuple[Check, Severity]] = Counter()
    shown = []
    for finding in sorted(findings, key=lambda finding: finding.severity.rank):
        kind = finding.check, finding.severity
        counts[kind] += 1
        if counts[kind] <= FINDINGS_PER_CHECK:
            shown.append(finding.redacted(redaction))
    return tuple(shown)
