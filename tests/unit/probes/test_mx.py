"""The ``mx`` probe with a scripted resolver; no answer never means absence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import dns.message
import dns.rcode
import pytest
from pydantic import ValidationError

from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.finding import Check, Severity
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.core.verdict import PhaseTimer, Run, Verdict
from probes.mx import ADDRESSES_SHOWN, RECORDS_EXAMINED, Mx, MxSettings
from tests.fakes.dns_server import DnsServer, Script, dns_server, response, zone


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
