"""What Exchange writes into messages: read tolerantly, bounded, and believed only as far as possible."""

from __future__ import annotations

import pytest

from probes.messages.exchange_report import LATENCY_LIMIT, SERVERS_EXAMINED, STAGES, exchange_report

LATENCY = b"X-MS-Exchange-Organization-MessageLatency: "
IN_PROGRESS = b"X-MS-Exchange-Organization-OrderedPrecisionLatencyInProgress: "
FRONT_END = LATENCY + b"SRV=cas-1:TOTAL-FE=0.025|SMR=0.024(SMRPI=0.022(SMRPI-FrontendProxyAgent=0.022))\r\n"
HUB = (
    IN_PROGRESS
    + b"LSRV=mbx-1:TOTAL-HUB=0.406|SMR=0.337(SMRRC=0.1)|CAT=0.067(CATOS=0.011(CATSM-Malware Agent=0.011));"
    + b"2024-03-29T22:01:54.729Z\r\n"
)
FILTER = b"X-Forefront-Antispam-Report: CIP:192.0.2.1;SCL:1;SRV:;IPV:CAL;SFV:NSPM;H:x;CAT:NONE;DIR:OUT;\r\n"


def stages(header_section: bytes, longest: float = 60.0) -> dict[str, float]:
    report = exchange_report(header_section, longest=longest)
    return dict(report.stages) if report is not None else {}


def test_each_second_is_in_one_stage() -> None:
    """A stage is without the time of those within it, so all stages together are the servers' totals."""
    found = stages(FRONT_END + HUB)
    assert found == {"front_end": 0.003, "hub": 0.339, "categorizer": 0.056, "agents": 0.033}
    assert sum(found.values()) == pytest.approx(0.025 + 0.406)


@pytest.mark.parametrize("where", range(1, len(HUB) - len(IN_PROGRESS) - 2))
def test_folded_anywhere(where: int) -> None:
    """Exchange folds its fields within names and numbers; the result is the same."""
    at = len(IN_PROGRESS) + where
    assert stages(HUB[:at] + b"\r\n\t" + HUB[at:]) == stages(HUB)


def test_all_that_exchange_writes() -> None:
    """Totals, time and the filter's words are read, also from fields of the cloud."""
    report = exchange_report(
        FILTER
        + b"X-MS-Exchange-Transport-EndToEndLatency: 00:00:03.6827753\r\n"
        + b"X-MS-Exchange-CrossTenant-OriginalArrivalTime: 23 Apr 2025 09:10:25.4494 (UTC)\r\n"
        + b"X-MS-Exchange-Organization-SCL: -1\r\n",
        longest=60.0,
    )
    assert report is not None
    assert report.as_object() == {
        "stages": {},
        "end_to_end_seconds": 3.6827753,
        "original_arrival_at": pytest.approx(1745399425.4494),
        "scl": "-1",
        "sfv": "NSPM",
        "cat": "NONE",
        "disbelieved": 0,
        "builds": {},
    }


@pytest.mark.parametrize(
    "field",
    [b"", b"Received: from a by b; Thu, 19 Jun 2025 12:00:30 +0000\r\n", LATENCY + b"\r\n", LATENCY + b"x"],
)
def test_nothing_of_exchange(field: bytes) -> None:
    """A message without these fields, or with empty ones, has no report."""
    assert exchange_report(field, longest=60.0) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"TOTAL-FE=0.5", {"front_end": 0.5}),
        (
            b"SRV=a:TOTAL-FE=0.5;SRV=b:TOTAL-HUB=2.0|CAT=0.5",
            {"front_end": 0.5, "hub": 1.5, "categorizer": 0.5},
        ),
        (b"SRV=a:TOTAL-DEL=0.5", {"delivery": 0.5}),
        (b"SRV=a:TOTAL-HUB=3|SDD=1", {"hub": 2.0, "delivery": 1.0}),
        (b"SRV=a:TOTAL-NEW=0.5|XYZ=0.1", {"other": 0.5}),
        (b"XYZ=0.1", {"other": 0.1}),
        (b"SRV=1.5:TOTAL-HUB=0.5", {"hub": 0.5}),
        (b"TOTAL-HUB=0.5|CAT=", {"hub": 0.5}),
        (b"TOTAL-HUB=0.5|CAT=0.1(CATOS=0.1", {"hub": 0.4, "categorizer": 0.1}),
        (b"TOTAL-HUB=0.5))))|CAT=0.1", {"hub": 0.4, "categorizer": 0.1}),
        (b"TOTAL-HUB=1.2.3|CAT=-1|SMR=nan|X=1e9|Y=inf", {}),
        (b"TOTAL-HUB=0.1|CAT=5", {"categorizer": 5.0}),  # the parts exceed the total
        (b"\xff\x00TOTAL-HUB=0.5", {"hub": 0.5}),
    ],
)
def test_odd_grammar(value: bytes, expected: dict[str, float]) -> None:
    """What cannot be read is left out, and servers that are not known are `other`."""
    assert stages(LATENCY + value) == expected


@pytest.mark.parametrize(
    ("field", "disbelieved"),
    [
        (LATENCY + b"SRV=a:TOTAL-HUB=61.1", 1),
        (LATENCY + b"SRV=a:TOTAL-HUB=999999999|CAT=99999999", 2),
        (b"X-MS-Exchange-Transport-EndToEndLatency: 5.00:00:00", 1),
        (b"X-MS-Exchange-Transport-EndToEndLatency: 00:01:02", 1),
    ],
)
def test_longer_than_the_delivery(field: bytes, disbelieved: int) -> None:
    """A duration longer than the message was on its way is not shown, whoever wrote it."""
    report = exchange_report(field, longest=60.0)
    assert report is not None
    assert (report.stages, report.end_to_end_seconds, report.disbelieved) == ({}, None, disbelieved)


def test_builds_of_servers() -> None:
    """The build is what Exchange gives as id, by server; other servers' ids and odd numbers are none."""
    received = (
        b"Received: from a (192.0.2.1) by mbx1.fabrikam.test (10.1.2.3) with Microsoft SMTP Server\r\n"
        b" (version=TLS1_2, cipher=TLS_ECDHE_RSA) id\r\n 15.2.1748.36 via Mailbox Transport; Thu, 19\r\n"
        b" Jun 2025 11:56:03 +0000\r\n"
        b"Received: from b by edge\x1b.fabrikam.test with Microsoft SMTP Server id 15.2.2562.46; x\r\n"
        b"Received: from c by mx.fabrikam.test with ESMTPS id 15.2.1.1; x\r\n"
        b"Received: from d by old.fabrikam.test with Microsoft SMTP Server id 15.2.1748; x\r\n"
    )
    report = exchange_report(received, longest=60.0)
    assert report is not None
    assert dict(report.builds) == {
        "mbx1.fabrikam.test": "15.2.1748.36",
        "edge\\x1b.fabrikam.test": "15.2.2562.46",
    }
    others = b"".join(
        b"Received: by s%d with Microsoft SMTP Server id 15.2.1.1; x\r\n" % number for number in range(1000)
    )
    report = exchange_report(others, longest=60.0)
    assert report is not None
    assert len(report.builds) == SERVERS_EXAMINED


def test_words_come_from_lists() -> None:
    """A forged word is `other`: the words are labels, which must stay few."""
    forged = b"X-Forefront-Antispam-Report: SCL:10;SFV:EVIL;CAT:\xc3\xa4\r\n"
    report = exchange_report(forged, longest=60.0)
    assert report is not None
    assert (report.scl, report.sfv, report.cat) == ("other", "other", "other")


@pytest.mark.parametrize(
    "text",
    [
        b"A" * 65536,
        b"(" * 65536,
        b"A=1(" * 16384,
        b"TOTAL-HUB=1|" * 5461,
        b"A=1|" * 16384,
        b")(" * 32768,
        b"A-" * 32768,
    ],
    ids=["name", "brackets", "nested", "totals", "entries", "pairs", "dashes"],
)
def test_64_kib(text: bytes) -> None:
    """Of a field of 64 KiB, only the beginning is read, and it gives the same few stages."""
    found = stages(LATENCY + text + b"\r\n" + IN_PROGRESS + text + b"\r\n", longest=1e9)
    assert found.keys() <= set(STAGES)
    assert sum(found.values()) <= LATENCY_LIMIT / len(b"A=1(")


def test_all_fields_together() -> None:
    """Of many large fields, only as much is read as of one; a name is never looked for inside a word."""
    entries = LATENCY + b"A=1|" * 4000 + b"\r\n" + IN_PROGRESS + b"A=1|" * 4000 + b"\r\n"
    assert sum(stages(entries * SERVERS_EXAMINED, longest=1e9).values()) == LATENCY_LIMIT / len(b"A=1|")
    assert stages(LATENCY + b"A" * 61 + b"CATX=1|" + b"9CATX=1|-CATX=1|CATX=2\r\n") == {"categorizer": 2.0}


def test_many_fields() -> None:
    """A thousand fields count no more than one of each of the most servers that are read."""
    assert stages((LATENCY + b"TOTAL-FE=1\r\n") * 1000, longest=1e9) == {"front_end": SERVERS_EXAMINED}
