"""Received fields in the dialects of mail servers, and wrong clocks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.messages.hops import HOPS_LIMIT, Hop, hops, waits

NOON = 1_750_334_400.0
"""Thu, 19 Jun 2025 12:00:00 +0000."""

DIALECTS = {
    "postfix": (
        "from client.example.com (client.example.com [192.0.2.1])\r\n"
        "\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))\r\n"
        "\tby mail.example.com (Postfix) with ESMTPSA id 4bN1\r\n"
        "\tfor <canary@example.com>; Thu, 19 Jun 2025 12:00:00 +0000 (UTC)",
        ("mail.example.com", "client.example.com", "ESMTPSA", NOON),
    ),
    "exim": (
        "from [192.0.2.7] (helo=relay.example.net)\r\n\tby mx.example.org with esmtps"
        "  (TLS1.3) tls TLS_AES\r\n"
        "\t(Exim 4.96)\r\n\t(envelope-from <a@example.net>)\r\n\tid 1uS-0001\r\n\tfor b@example.org;\r\n"
        "\tThu, 19 Jun 2025 14:00:00 +0200",
        ("mx.example.org", "[192.0.2.7]", "esmtps tls TLS_AES", NOON),
    ),
    "exchange": (
        "from AM1.example.prod (2001:db8::1) by\r\n AM2.example.prod (2001:db8::2) with Microsoft SMTP"
        " Server\r\n"
        " (version=TLS1_2, cipher=TLS_ECDHE_RSA) id 15.20.8857.21 via Frontend Transport; Thu, 19 Jun\r\n"
        " 2025 12:00:00 +0000",
        ("AM2.example.prod", "AM1.example.prod", "Microsoft SMTP Server", NOON),
    ),
    "exchange, milliseconds": (
        "from a.example.prod by b.example.prod with mapi id 15.2.1; Thu, 19 Jun 2025 12:00:00.250 +0000",
        ("b.example.prod", "a.example.prod", "mapi", NOON + 0.25),
    ),
    "sendmail": (
        "from relay.example.net (relay.example.net [192.0.2.9])\r\n\tby mail.example.edu (8.15.2/8.15.2)"
        " with ESMTP"
        " id 55JC00\r\n\tfor <b@example.edu>; Thu, 19 Jun 2025 14:00:00 +0200 (CEST)",
        ("mail.example.edu", "relay.example.net", "ESMTP", NOON),
    ),
    "gmail": (
        "by 2002:a05:6512:3d8a:b0:553 with SMTP id k10csp12345;\r\n"
        "        Thu, 19 Jun 2025 05:00:00 -0700 (PDT)",
        ("2002:a05:6512:3d8a:b0:553", "", "SMTP", NOON),
    ),
    "amavis": (
        "from mx.example.com ([127.0.0.1])\r\n by localhost (mx.example.com [127.0.0.1]) (amavisd-new,"
        " port 10024)\r\n"
        " with ESMTP id aB-c1 for <b@example.com>; Thu, 19 Jun 2025 12:00:00 +0000 (UTC)",
        ("localhost", "mx.example.com", "ESMTP", NOON),
    ),
    "dovecot": (
        "from mx.example.com\r\n\tby mail.example.com with LMTP\r\n\tid 6P0t\r\n"
        "\t(envelope-from <a@example.com>)\r\n"
        "\tfor <b@example.com>; Thu, 19 Jun 2025 12:00:00 +0000",
        ("mail.example.com", "mx.example.com", "LMTP", NOON),
    ),
    "qmail": ("(qmail 12345 invoked by uid 89); 19 Jun 2025 12:00:00 -0000", ("", "", "", NOON)),
}


def section(*values: str) -> bytes:
    """Return a header section with these Received fields, newest first."""
    return "".join(f"Received: {value}\r\n" for value in values).encode() + b"Subject: x\r\n\r\nbody\r\n"


def at(seconds: float) -> str:
    return f"from a by b with SMTP; Thu, 19 Jun 2025 12:{int(seconds) // 60:02}:{int(seconds) % 60:02} +0000"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(dialect: str) -> None:
    """Each mail server's field gives its host, the sender, the protocol, and the time."""
    value, expected = DIALECTS[dialect]
    (hop,) = hops(section(value), sent_at=NOON, arrived_by=NOON + 1)
    assert (hop.by, hop.sender, hop.protocol, hop.stamped_at) == expected
    assert not hop.skewed
    json.dumps(hop.as_object())


def test_delays_are_from_stamp_to_stamp_oldest_first() -> None:
    """Every hop has the time since the previous one, and the positions add up to the total."""
    found = hops(section(at(100), at(40), at(10), at(2)), sent_at=NOON, arrived_by=NOON + 101)
    assert [hop.delay_seconds for hop in found] == [None, 8.0, 30.0, 60.0]
    assert waits(found) == {"submission": 8.0, "relay": 30.0, "final": 60.0}


def test_positions_of_short_ways() -> None:
    """With two hosts, the delay is the submission host's; with one, nothing is known."""
    two = hops(section(at(40), at(10)), sent_at=NOON, arrived_by=NOON + 60)
    assert waits(two) == {"submission": 30.0}
    assert waits(two[:1]) == {}


def test_clock_that_runs_ahead_is_flagged_and_bounded() -> None:
    """A timestamp after the arrival proves that the host's clock is fast, and by how much at least."""
    found = hops(section(at(90), at(1)), sent_at=NOON, arrived_by=NOON + 30)
    assert [(hop.skewed, hop.clock_error_seconds) for hop in found] == [(False, 0.0), (True, 59.0)]
    assert waits(found) == {}


def test_clock_that_is_behind_is_flagged_and_bounded() -> None:
    """A timestamp before the sending proves that the host's clock is slow, and by how much at least."""
    (hop,) = hops(section(at(0)), sent_at=NOON + 120, arrived_by=NOON + 130)
    assert (hop.skewed, hop.clock_error_seconds) == (True, -119.0)


def test_going_back_in_time_is_flagged() -> None:
    """A timestamp before the previous one is impossible, except for a second of rounding."""
    back, rounding = (
        hops(section(at(when), at(10)), sent_at=NOON, arrived_by=NOON + 20)[1] for when in (5, 9)
    )
    assert (back.skewed, rounding.skewed) == (True, False)


def test_hop_without_a_date_leaves_a_gap() -> None:
    """Without a timestamp, neither this hop nor the next has a delay."""
    found = hops(section(at(40), "from a by b with SMTP", at(10)), sent_at=NOON, arrived_by=NOON + 60)
    assert [hop.delay_seconds for hop in found] == [None, None, None]


def test_x_received_is_no_hop() -> None:
    """Gmail's X-Received is not a hop."""
    raw = b"X-Received: by a with SMTP id 1; Thu, 19 Jun 2025 12:00:00 +0000\r\n" + section(at(1))
    assert len(hops(raw, sent_at=NOON, arrived_by=NOON + 2)) == 1


def test_newest_hops_are_kept() -> None:
    """In an endless loop, the newest hops are kept."""
    found = hops(section(*(at(n) for n in range(99, -1, -1))), sent_at=NOON, arrived_by=NOON + 100)
    assert len(found) == HOPS_LIMIT
    assert found[-1].stamped_at == NOON + 99


@pytest.mark.parametrize(
    "date",
    [
        "Thu, 19 Jun 2025 12:00:00",
        "Thu, 19 Jun 1025 12:00:00 +0000",
        "Thu, 99 Jun 2025 12:00:00 +0000",
        "Thu, 19 Jun 2025 12:00:00 +99999999999999",
        *(
            f"Thu, 19 Jun 2025 14:00:00 {zone}"
            for zone in ("CEST", "CET", "BST", "IST", "JST", "AST", "Z", "N")
        ),
        "12:00",
        "",
        "9" * 300,
    ],
)
def test_unreadable_dates_are_none(date: str) -> None:
    """An unreadable date, or one with a missing or ambiguous zone, gives no timestamp."""
    (hop,) = hops(section(f"from a by b; {date}"), sent_at=NOON, arrived_by=NOON)
    assert (hop.stamped_at, hop.skewed, hop.clock_error_seconds) == (None, False, 0.0)


@pytest.mark.parametrize(
    ("hour", "zone"),
    [
        (12, "UT"),
        (12, "GMT"),
        (12, "utc"),
        (7, "EST"),
        (8, "EDT"),
        (6, "CST"),
        (7, "CDT"),
        (5, "MST"),
        (6, "MDT"),
        (4, "PST"),
        (5, "PDT"),
        (12, "-0000"),
        (14, "+0200 CEST"),
        (17, "+0530 (IST)"),
    ],
)
def test_zones_with_a_fixed_meaning(hour: int, zone: str) -> None:
    """Numeric zones and the names in RFC 5322 section 4.3 give the right time."""
    minute = 30 if "30" in zone else 0
    (hop,) = hops(
        section(f"by b; Thu, 19 Jun 2025 {hour}:{minute:02}:00 {zone}"), sent_at=NOON, arrived_by=NOON
    )
    assert hop.stamped_at == NOON


@given(st.binary(max_size=500), st.text(max_size=200))
def test_nothing_that_arrives_raises(octets: bytes, text: str) -> None:
    """For any header section, the hops are safe to show and to count."""
    raw = b"Received: " + octets + b"\r\n" + section(text.replace("\n", " "), at(1))
    found = hops(raw, sent_at=NOON, arrived_by=NOON + 5)
    for hop in found:
        assert isinstance(hop, Hop)
        assert (hop.by + hop.sender + hop.protocol).isprintable()
    assert all(seconds >= 0.0 for seconds in waits(found).values())


@pytest.mark.parametrize("filler", ["(", ";", "from ", '"', "\\", "Received: x\r\n", "1 "])
def test_long_header_sections_cost_little(filler: str) -> None:
    """The longest header section, with the worst content, is read."""
    raw = section(filler * (64 * 1024 // len(filler)))
    assert len(hops(raw, sent_at=NOON, arrived_by=NOON)) <= HOPS_LIMIT
