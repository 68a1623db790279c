"""SPF, DKIM and DMARC results of receiving hosts, and results that do not count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.messages.authentication_results import results

HOP = "Received: from a by mx.example.com with ESMTP; Thu, 19 Jun 2025 12:00:00 +0000\r\n"


def section(*values: str, below: str = "") -> bytes:
    """Return a header section with these fields above the hop, and ``below`` what came with the message."""
    above = "".join(f"Authentication-Results: {value}\r\n" for value in values)
    return f"{above}{HOP}{below}Subject: x\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("value", "authserv_id", "methods"),
    [
        (
            "mx.example.com;\r\n\tdkim=pass header.d=example.com header.s=s1;\r\n\t"
            "spf=pass (mx.example.com: ok)\r\n"
            "\tsmtp.mailfrom=a@example.com;\r\n\tdmarc=pass (p=REJECT sp=REJECT dis=NONE)"
            " header.from=example.com",
            "mx.example.com",
            {"dkim": "pass", "spf": "pass", "dmarc": "pass"},
        ),
        (
            "spf=pass (sender IP is 192.0.2.1)\r\n smtp.mailfrom=example.com; dkim=none"
            " (message not signed)\r\n"
            " header.d=none;dmarc=bestguesspass action=none\r\n"
            " header.from=example.com;compauth=pass reason=109",
            "",
            {"spf": "pass", "dkim": "none", "dmarc": "other"},
        ),
        ('mx.example.com 1; SPF = SoftFail reason="no; such"', "mx.example.com", {"spf": "softfail"}),
        ("mx.example.com; dkim=fail; dkim=pass; dkim=neutral", "mx.example.com", {"dkim": "pass"}),
        ("mx.example.com; spf=hardfail; iprev=pass", "mx.example.com", {"spf": "fail"}),
        (
            "mx.example.com (a (nested) comment; spf=pass); dmarc/1=temperror",
            "mx.example.com",
            {"dmarc": "temperror"},
        ),
    ],
    ids=["rfc 8601", "exchange", "version", "several signatures", "old name", "comments"],
)
def test_forms(value: str, authserv_id: str, methods: dict[str, str]) -> None:
    """Each form of the field is read, with words of the closed list and the best of several signatures."""
    found = results(section(value))
    assert found is not None
    assert (found.authserv_id, found.methods) == (authserv_id, methods)


@pytest.mark.parametrize("value", ["mx.example.com; none", "", ";;;", "mx.example.com; x-custom=pass"])
def test_nothing_was_found(value: str) -> None:
    """A field without any of the three methods has no results."""
    assert results(section(value)) is None


def test_field_that_came_with_the_message_counts_for_nothing() -> None:
    """Fields below the oldest Received came with the message and may be forged."""
    below = "Authentication-Results: mx.example.com; spf=pass; dmarc=pass\r\n"
    assert results(section(below=below)) is None
    assert results(section(below=below).replace(b"Received:", b"Received :")) is None
    found = results(section("mx.example.com; spf=fail", below=below))
    assert found is not None
    assert found.methods == {"spf": "fail"}


def test_only_the_receiving_hosts_field_counts() -> None:
    """Other hosts' fields are not mixed with those of the topmost or the named host."""
    fields = ("mx.example.com; spf=fail", "other.example.net; dkim=pass", "MX.example.com; dmarc=fail")
    found = results(section(*fields))
    assert found is not None
    assert found.methods == {"spf": "fail", "dmarc": "fail"}
    named = results(section(*fields), "Other.example.net")
    assert named is not None
    assert named.methods == {"dkim": "pass"}
    assert results(section(*fields), "nobody.example.org") is None


def test_what_json_shows() -> None:
    """Every method is in JSON, with null if it was not checked."""
    found = results(section("mx.example.com; spf=pass"))
    assert found is not None
    assert found.as_object() == {"authserv_id": "mx.example.com", "spf": "pass", "dkim": None, "dmarc": None}


@given(st.binary(max_size=500))
def test_nothing_that_arrives_raises(octets: bytes) -> None:
    """For any header section, the results are safe to show."""
    for raw in (octets, b"Authentication-Results: " + octets, section("mx; spf=pass") + octets):
        found = results(raw)
        assert found is None or found.authserv_id.isprintable()


@pytest.mark.parametrize("filler", ["(", ";", "spf=", "Received:\r\n", '"', " ", "="])
def test_long_header_sections_cost_little(filler: str) -> None:
    """The longest header section, with the worst content, is read."""
    results(section(filler * (64 * 1024 // len(filler))))
