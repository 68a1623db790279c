"""The ``autodiscover`` kind finds the step that leads clients astray, and what endpoints offer."""

from __future__ import annotations

from typing import Any

import dns.message
import dns.rcode
import pytest
import trustme

from monitor.runner import Result, Runner
from probes.autodiscover import Autodiscover, AutodiscoverSettings
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.protocols.autodiscover_client import require_https
from tests.fakes.autodiscover import (
    ADDRESSES,
    DOMAIN,
    EMAIL,
    EXCHANGE,
    HOST,
    SETTINGS,
    SIGN_IN,
    WEB,
    AutodiscoverSite,
    autodiscover_site,
    names,
)
from tests.fakes.dns_server import response
from tests.fakes.exchange import HANG, HANG_UP, HTML, HUGE_PAGE
from tests.fakes.graph.http import Answer
from tests.faults.running import bounded_memory
from tests.real_servers.dovecot import TlsFiles

BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><Autodiscover>&b;</Autodiscover>'
)


async def run(site: AutodiscoverSite, tls: TlsFiles, **settings: Any) -> Result:
    """Run a probe once, as the agent does."""
    written = {
        "name": "autodiscover",
        "kind": "autodiscover",
        "email": EMAIL,
        "port": site.port,
        "http_port": site.http_port,
        "resolver": {"address": "127.0.0.1", "port": site.dns.port},
        "tls_ca": str(tls.authority),
        "certificate_warning": "1d",
    }
    made = AutodiscoverSettings.model_validate(written | settings)
    probe = Autodiscover(made, Context(SystemClock(), Site("here", {}, {})))
    result = await Runner(SystemClock(), "here").run(probe)
    assert result.verdict.reason.area in Autodiscover.areas
    assert result.target == DOMAIN
    return result


def found(result: Result) -> list[tuple[str, str, str]]:
    """Return check, severity and subject of each finding, the subject without the ports of this run."""
    return [
        (str(each.check), str(each.severity), each.subject.rpartition(":")[0] or each.subject)
        for each in result.verdict.findings or ()
    ]


async def test_a_sound_domain(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """All steps are followed without credentials, and nothing is wrong if they lead to one service."""
    srv = f"_autodiscover._tcp.{DOMAIN}. 60 IN SRV 0 5 PORT mail.{DOMAIN}."
    mail = f"mail.{DOMAIN}. 60 IN A {EXCHANGE}"
    async with autodiscover_site(certificate_authority, *ADDRESSES, srv, mail) as site:
        site.exchange.pages["redirect"] = Answer(
            302, headers={"Location": f"https://{HOST}:{site.port}/autodiscover/autodiscover.xml"}
        )
        result = await run(site, server_tls, expect_auth=["negotiate", "ntlm", "basic"])
    assert (result.verdict.reason, result.verdict.findings) == (Reason.NONE, ())
    assert result.verdict.broken_phase == ""
    assert result.verdict.certificate_not_after is not None
    assert set(result.verdict.phases) == {"records", "resolve", "connect", "tls", "first_byte", "body"}
    ways = {(way["step"], way["version"]): way for way in result.verdict.values["ways"]}  # type: ignore[attr-defined]
    assert list(ways) == [
        ("domain", 1),
        ("domain", 2),
        ("autodiscover", 1),
        ("autodiscover", 2),
        ("srv", 1),
        ("srv", 2),
    ]
    assert ways["domain", 1]["fault"] == "http_status: 404 Not Found"
    assert ways["srv", 1]["leads_to"] == f"https://mail.{DOMAIN}:{site.port}/autodiscover/autodiscover.xml"
    requests = [*site.exchange.requests, *site.web.requests]
    assert {each.headers.get("authorization", "Bearer") for each in requests} == {"Bearer"}
    assert b"<EMailAddress>canary@fabrikam.test<" in site.web.requests[0].body


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(503), Reason.HTTP_UNAVAILABLE),
        (HTML, Reason.HTTP_BODY),
        (Answer(200, b"<Other/>"), Reason.HTTP_BODY),
        (Answer(200, b"<Autodiscover>"), Reason.PROTOCOL_ERROR),
        (Answer(200, BOMB), Reason.PROTOCOL_ERROR),
        (HUGE_PAGE, Reason.RESPONSE_TOO_LARGE),
        (Answer(404), Reason.AUTODISCOVER_MISSING),
        (Answer(302, headers={"Location": "/autodiscover/autodiscover.xml"}), Reason.REDIRECT_LOOP),
        (Answer(302, headers={"Location": "http://fabrikam.test/"}), Reason.REDIRECT_REFUSED),
        (
            Answer(
                200,
                b"<Autodiscover><Response><Account><RedirectUrl>file:///etc/passwd</RedirectUrl></Account>"
                b"</Response></Autodiscover>",
            ),
            Reason.REDIRECT_REFUSED,
        ),
        (HANG_UP, Reason.CONNECTION_LOST),
        (HANG, Reason.COMMAND_TIMEOUT),
    ],
)
async def test_no_answer_of_autodiscover(
    certificate_authority: trustme.CA, server_tls: TlsFiles, answer: object, reason: Reason
) -> None:
    """Without any answer of autodiscover, the run fails within its deadline for what its host did."""
    async with autodiscover_site(certificate_authority) as site:
        site.exchange.pages = {"xml": answer, "json": Answer(404)}
        with bounded_memory():
            result = await run(site, server_tls, deadline="4s")
    assert result.verdict.reason is reason
    assert result.duration_seconds < 4
    check, severity, _ = found(result)[0]
    assert (check, severity) == ("autodiscover_missing", "critical")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://\uff41.example/", "https://\uff41.example/, which is not a valid URL without credentials"),
        ("HTTPS://a.example:0/", "HTTPS://a.example:0/, which is not a valid URL without credentials"),
        ("https://u:p@a.example/", "https://a.example/, which is not a valid URL without credentials"),
        ("http://\uff41.example/", "http://\uff41.example/, which is not https"),
        ("file:///etc/passwd", "file:///etc/passwd, which is not https"),
    ],
)
def test_why_a_url_is_refused(url: str, why: str) -> None:
    """The text names what is wrong with a URL of a server."""
    with pytest.raises(ProbeFault) as caught:
        require_https(url)
    assert caught.value.detail == f"leads to {why}"


async def test_urls_are_shown_without_tokens(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """Queries in the URLs that servers answer with may hold tokens; no value and no finding shows them."""
    async with autodiscover_site(certificate_authority) as site:
        secret = "autodiscover/autodiscover.xml?code=0123456789"
        site.exchange.pages["json"] = names(f"https://{DOMAIN}:{site.port}/{secret}")
        site.exchange.pages["ews url"] = names(f"https://{HOST}:{site.port}/EWS/?code=0123456789")
        site.web.pages["xml"] = Answer(302, headers={"Location": f"http://{DOMAIN}/{secret}"})
        site.web.pages["json"] = names(f"file:///{secret}")
        site.exchange.pages["redirect"] = Answer(302, headers={"Location": f"ftp://{DOMAIN}/{secret}"})
        result = await run(site, server_tls, expect_auth={"ews": ["basic"]})
    assert result.verdict.findings
    assert "0123456789" not in str(result.as_object())


@pytest.mark.parametrize(
    ("page", "answer", "expected"),
    [
        ("xml", HTML, ("autodiscover_other_page", "info")),
        ("xml", HUGE_PAGE, ("autodiscover_step_failed", "info")),
        ("xml", Answer(200, BOMB), ("autodiscover_step_failed", "info")),
        ("xml", Answer(500), ("autodiscover_step_failed", "info")),
        ("xml", HANG, ("autodiscover_step_failed", "info")),
        ("json", Answer(200, b"[" * 100_000), ("autodiscover_step_failed", "info")),
        ("json", HTML, ("autodiscover_other_page", "info")),
    ],
)
async def test_the_domain_s_own_web_server(
    certificate_authority: trustme.CA,
    server_tls: TlsFiles,
    page: str,
    answer: object,
    expected: tuple[str, str],
) -> None:
    """Clients pass over a broken page of the web site, so it is told and changes no other result."""
    async with autodiscover_site(certificate_authority) as site:
        site.web.pages[page] = answer
        result = await run(site, server_tls, deadline="4s", expect_auth=["basic", "negotiate", "ntlm"])
    assert result.verdict.reason is Reason.NONE
    assert [each[:2] for each in found(result)] == [expected]
    assert result.verdict.values["authentication"][0]["schemes"] == ["basic", "negotiate", "ntlm"]  # type: ignore[index]


async def test_a_hosting_server_that_answers_too(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """Two services are a finding with both; the one meant for autodiscover counts as the right one."""
    async with autodiscover_site(certificate_authority) as site:
        site.web.pages["xml"] = SETTINGS
        result = await run(site, server_tls)
    assert result.verdict.reason is Reason.AUTODISCOVER_DISAGREES
    (finding,) = result.verdict.findings or ()
    assert finding.subject == f"domain (https://{DOMAIN}:{site.port})"
    assert finding.seen == f"leads to https://{DOMAIN}:{site.port}/autodiscover/autodiscover.xml"
    assert finding.expected.startswith(
        f"https://{HOST}:{site.port}/autodiscover/autodiscover.xml, as autodiscover"
    )


async def test_an_alias_of_the_same_host(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A host name in common makes one service, also if DNS gives each client another of its addresses."""
    mail = f"mail.{DOMAIN}"
    records = (
        f"{HOST}. 60 IN CNAME {mail}.",
        f"{mail}. 60 IN A {EXCHANGE}",
        f"_autodiscover._tcp.{DOMAIN}. 60 IN SRV 0 0 PORT {mail}.",
    )
    async with autodiscover_site(certificate_authority, *records) as site:
        site.web.pages["xml"] = SETTINGS
        result = await run(site, server_tls, addresses={mail: WEB})
    assert site.web.requests
    assert (result.verdict.reason, result.verdict.findings) == (Reason.NONE, ())


async def test_version_2_leads_elsewhere(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """What version 2 names must be the same service as well."""
    async with autodiscover_site(certificate_authority) as site:
        site.exchange.pages["json"] = names(f"https://{DOMAIN}:{site.port}/autodiscover/autodiscover.xml")
        result = await run(site, server_tls)
    assert result.verdict.reason is Reason.AUTODISCOVER_DISAGREES
    assert [each[0] for each in found(result)] == ["autodiscover_disagrees"]
    assert "version 2" in (result.verdict.findings or ())[0].subject


async def test_expected_hosts(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """With `expect_hosts`, any other host fails the run, and several of them may differ."""
    async with autodiscover_site(certificate_authority) as site:
        site.web.pages["xml"] = SETTINGS
        wrong = await run(site, server_tls, expect_hosts=["autodiscover.*"])
        right = await run(site, server_tls, expect_hosts=["autodiscover.*", DOMAIN])
    assert wrong.verdict.reason is Reason.AUTODISCOVER_UNEXPECTED
    assert wrong.verdict.outcome is Outcome.FAILED
    assert [each[:2] for each in found(wrong)] == [("autodiscover_unexpected", "critical")]
    assert (right.verdict.reason, right.verdict.findings) == (Reason.NONE, ())


async def test_authentication_that_changed(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A scheme that came or went is a finding with the old and the new ones, for each endpoint."""
    expected = {"autodiscover": ["negotiate", "ntlm"], "ews": ["negotiate", "ntlm"], "activesync": ["basic"]}
    mail = f"mail.{DOMAIN}. 60 IN A {EXCHANGE}"
    async with autodiscover_site(certificate_authority, *ADDRESSES, mail) as site:
        result = await run(site, server_tls, expect_auth=expected)
    assert result.verdict.reason is Reason.AUTODISCOVER_AUTH_CHANGED
    assert [
        (each.subject.partition(",")[0], each.seen, each.expected) for each in result.verdict.findings or ()
    ] == [
        ("autodiscover", "basic, negotiate, ntlm", "negotiate, ntlm"),
        ("activesync", "not known: http_status: 404 Not Found", "basic"),
    ]


async def test_version_2_alone(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """Where only version 2 answers, nothing is wrong unless authentication of version 1 is expected."""
    async with autodiscover_site(certificate_authority) as site:
        del site.exchange.pages["xml"]
        alone = await run(site, server_tls)
        expected = await run(site, server_tls, expect_auth=["negotiate"])
    assert (alone.verdict.reason, alone.verdict.findings) == (Reason.NONE, ())
    (finding,) = expected.verdict.findings or ()
    assert finding.seen == "not known: http_status: no step answers in version 1"


@pytest.mark.parametrize(
    ("challenge", "seen"),
    [
        ("Negotiate", "negotiate"),
        (", ".join(f"Scheme{n}" for n in range(3000)), "not known: protocol_error: more than 20 challenges"),
        ('"' * 20_000, "no login asked for"),
    ],
)
async def test_odd_challenges(
    certificate_authority: trustme.CA, server_tls: TlsFiles, challenge: str, seen: str
) -> None:
    """Whatever a server writes into WWW-Authenticate is a finding about that endpoint only."""
    async with autodiscover_site(certificate_authority) as site:
        site.exchange.pages["xml"] = challenge
        result = await run(site, server_tls, expect_auth=["negotiate", "ntlm"])
    (finding,) = result.verdict.findings or ()
    assert finding.seen.startswith(seen)


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        (SIGN_IN, None),
        ("https://login.example.test/*", None),
        ("https://login.microsoftonline.com/*", SIGN_IN),
    ],
)
async def test_modern_authentication(
    certificate_authority: trustme.CA, server_tls: TlsFiles, uri: str, seen: str | None
) -> None:
    """An empty Bearer shows where clients are sent to sign in, which must be the expected place."""
    async with autodiscover_site(certificate_authority) as site:
        result = await run(site, server_tls, expect_authorization_uri=uri)
    assert [each.seen for each in result.verdict.findings or ()] == ([seen] if seen else [])
    assert result.verdict.values["authentication"][0]["authorization_uri"] == SIGN_IN  # type: ignore[index]


async def test_no_modern_authentication(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """An endpoint without the challenge is a finding, also for a pattern that everything matches."""
    async with autodiscover_site(certificate_authority) as site:
        site.exchange.pages["xml"] = Answer(401, headers={"WWW-Authenticate": 'Bearer client_id="2"'})
        result = await run(site, server_tls, expect_authorization_uri="*")
    assert [each.seen for each in result.verdict.findings or ()] == [
        "a Bearer challenge without authorization_uri"
    ]


async def test_a_host_that_only_redirects(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """As in Exchange Online, a host without https of its own is fine if its redirect leads to a service."""
    cloud = f"cloud.{DOMAIN}"
    records = (f"{HOST}. 60 IN CNAME {cloud}.", f"{cloud}. 60 IN A {EXCHANGE}")
    async with autodiscover_site(certificate_authority, *records, certificate=(cloud,)) as site:
        broken = await run(site, server_tls)
        site.exchange.pages |= {
            "redirect": Answer(302, headers={"Location": f"https://{cloud}:{site.port}/autodiscover/x.xml"}),
            "json": Answer(404),
        }
        result = await run(site, server_tls)
    assert broken.verdict.reason is Reason.CERTIFICATE_NAME
    assert [each[0] for each in found(broken)] == ["autodiscover_missing", "autodiscover_certificate"]
    assert (result.verdict.reason, result.verdict.findings) == (Reason.NONE, ())
    assert result.verdict.values["cname"] == cloud


async def test_a_redirect_to_no_valid_url(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A redirect to a host that has no A-label is told with its URL."""
    async with autodiscover_site(certificate_authority) as site:
        site.exchange.pages["redirect"] = Answer(302, headers={"Location": "https://\uff41.example/?a"})
        result = await run(site, server_tls)
    assert "leads to https://\uff41.example/, which is not a valid URL" in str(result.verdict.values["ways"])


async def test_a_certificate_of_another_name(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A certificate that is not valid for a step's name is a warning while another step works."""
    async with autodiscover_site(certificate_authority, certificate=(HOST,)) as site:
        result = await run(site, server_tls)
    assert result.verdict.reason is Reason.AUTODISCOVER_STEP_FAILED
    assert found(result) == [("autodiscover_certificate", "warning", f"domain (https://{DOMAIN}")]
    assert (result.verdict.findings or ())[0].seen.startswith("certificate_name: ")


@pytest.mark.parametrize(
    ("record", "subject"),
    [
        (f"{HOST}. 60 IN CNAME gone.{DOMAIN}.", "autodiscover"),
        (f"_autodiscover._tcp.{DOMAIN}. 60 IN SRV 0 0 443 gone.{DOMAIN}.", "srv"),
    ],
)
async def test_a_record_that_leads_nowhere(
    certificate_authority: trustme.CA, server_tls: TlsFiles, record: str, subject: str
) -> None:
    """An alias or SRV record of a host that is gone is a warning while another step works."""
    records = (f"{DOMAIN}. 60 IN A {EXCHANGE}", record)
    async with autodiscover_site(certificate_authority, *records) as site:
        site.exchange.pages["json"] = Answer(404)
        result = await run(site, server_tls)
    assert result.verdict.reason is Reason.AUTODISCOVER_STEP_FAILED
    ((check, _, where),) = found(result)
    assert (check, where.split()[0]) == ("autodiscover_step_failed", subject)


@pytest.mark.parametrize("lost", ["SRV", "A"])
async def test_a_resolver_that_fails(
    certificate_authority: trustme.CA, server_tls: TlsFiles, lost: str
) -> None:
    """A lookup without an answer is no outage, and earlier findings remain."""

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        name, kind = query.question[0].name.to_text(), query.question[0].rdtype.name
        if kind == lost and name != f"{DOMAIN}.":
            return [response(query, rcode=dns.rcode.SERVFAIL)]
        addresses = [record for record in ADDRESSES if record.startswith(f"{name} ") and kind == "A"]
        return [response(query, *addresses)]

    async with autodiscover_site(certificate_authority, script=script) as site:
        result = await run(site, server_tls)
    assert result.verdict.reason is Reason.DNS_SERVFAIL
    assert result.verdict.findings is None


async def test_an_internal_server_under_public_names(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """`addresses` replaces DNS for its names: the internal server is asked under them."""
    async with autodiscover_site(certificate_authority, f"{DOMAIN}. 60 IN A {WEB}") as site:
        result = await run(site, server_tls, addresses={HOST: EXCHANGE})
    assert (result.verdict.reason, result.verdict.findings) == (Reason.NONE, ())
    assert {request.headers["host"] for request in site.exchange.requests} == {
        f"{HOST}:{site.port}",
        f"{HOST}:{site.http_port}",
    }
