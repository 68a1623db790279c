"""Findings as data: their contents, and how many a run reports."""

from __future__ import annotations

import pytest

from probes.core.faults import DETAIL_LIMIT
from probes.core.finding import (
    FINDINGS_PER_CHECK,
    SUBJECT_LIMIT,
    Check,
    Finding,
    Severity,
    reported,
)
from probes.core.redaction import WITHHELD, Redaction
from probes.registry import KINDS


def finding(check: Check = Check.MX_UNEXPECTED, subject: str = "evil.example.net", **texts: str) -> Finding:
    return Finding(
        check, check.severities[0], subject, **({"seen": "it is there", "expected": "others"} | texts)
    )


def test_foreign_text_is_legible_and_bounded() -> None:
    """Whatever a zone contains, a finding has short text without control characters."""
    hostile = "\x1b[31m" + "x" * 5000
    found = finding(subject=hostile, seen=hostile, expected=hostile)
    for text, limit in (
        (found.subject, SUBJECT_LIMIT),
        (found.seen, DETAIL_LIMIT),
        (found.expected, DETAIL_LIMIT),
    ):
        assert text.startswith("\\x1b[31m")
        assert text.isprintable()
        assert len(text) <= limit


def test_a_severity_that_the_check_does_not_declare_is_refused() -> None:
    """Metrics can show only the documented checks and severities."""
    with pytest.raises(ValueError, match="mx_unexpected has no findings that are info"):
        Finding(Check.MX_UNEXPECTED, Severity.INFO, "a", "b", "c")


def test_what_is_reported_is_bounded_and_the_worst_first() -> None:
    """A thousand findings of one check do not displace others, and critical ones come first."""
    many = [finding(Check.MX_TARGET_CNAME, f"mx{number}.example.com") for number in range(1000)]
    shown = reported([*many, finding()], Redaction())
    assert shown == (finding(), *many[:FINDINGS_PER_CHECK])


def test_a_severity_is_not_lost_among_many_of_another() -> None:
    """If a check has findings of two severities, each is reported and has its series."""
    critical, warning = (
        Finding(Check.MX_TARGET_UNRESOLVED, severity, "mx.example.com", "seen", "expected")
        for severity in (Severity.CRITICAL, Severity.WARNING)
    )
    assert reported([warning, *[critical] * 50], Redaction())[-1] == warning


def test_no_secret_is_reported() -> None:
    """Text with a password is withheld anywhere in a finding."""
    redaction = Redaction()
    redaction.add("correct horse battery")
    texts = {"seen": "it said correct horse battery", "expected": "not correct horse battery"}
    (shown,) = reported([finding(subject="correct horse battery", **texts)], redaction)
    assert (shown.subject, shown.seen, shown.expected) == (WITHHELD, WITHHELD, WITHHELD)


def test_the_object_that_people_and_programs_read() -> None:
    """A finding in JSON has six texts, including the remedy."""
    assert finding().as_object() == {
        "check": "mx_unexpected",
        "severity": "critical",
        "subject": "evil.example.net",
        "seen": "it is there",
        "expected": "others",
        "remedy": Check.MX_UNEXPECTED.remedy,
    }


def test_every_check_is_some_kinds() -> None:
    """Every check belongs to a kind, and has everything that the page shows."""
    assert frozenset(Check) == frozenset[Check]().union(*(kind.checks for kind in KINDS.values()))
    for check in Check:
        assert check.severities
        assert check.meaning.endswith(".")
        assert check.remedy.endswith(".")
        assert check.source
