"""Autodiscover over HTTP: requests, and what answers say ([MS-OXDSCLI], [MS-OXDISCO]).

Version 1 is plain old XML (POX), version 2 is JSON. Nothing here has credentials.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote
from xml.sax.saxutils import escape

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Area, Reason
from probes.core.setting_types import is_host_name, is_ip_address
from probes.core.verdict import PhaseTimer
from probes.protocols.autodiscover import Endpoint, Gathered, Host, Offer, Question, Service, Step, Way
from probes.protocols.challenges import challenges
from probes.protocols.dns import Resolver
from probes.protocols.http_shown import shown_url
from probes.protocols.https import HttpClient, Origin, Response, origin_of, status_text
from probes.protocols.tls import CertificateExpiry
from probes.protocols.xml_document import parse_xml

Protocol = Literal["AutodiscoverV1", "Ews", "ActiveSync"]
"""A protocol that version 2 can name the URL of."""

REDIRECTS_FOLLOWED = 5
"""Maximum number of redirects to follow from one URL."""

_PROTOCOLS: Mapping[Endpoint, Protocol] = MappingProxyType(
    {"autodiscover": "AutodiscoverV1", "ews": "Ews", "activesync": "ActiveSync"}
)
_V1_FIELDS = MappingProxyType({"content-type": "text/xml"})
_BEARER = MappingProxyType({"authorization": "Bearer"})  # without a token

_V1_PATH = "/autodiscover/autodiscover.xml"
_V1_REQUEST = (
    '<?xml version="1.0" encoding="utf-8"?>'
    '<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006">'
    "<Request><EMailAddress>{address}</EMailAddress><AcceptableResponseSchema>"
    "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
    "</AcceptableResponseSchema></Request></Autodiscover>"
)


def v1_url(host: str, port: int = 443) -> str:
    """Return the URL of version 1 at a host."""
    return f"https://{_authority(host, port, 443)}{_V1_PATH}"


def v1_plain_url(host: str, port: int = 80) -> str:
    """Return the URL that may redirect to version 1, without TLS ([MS-OXDISCO] section 3.1.5.4)."""
    return f"http://{_authority(host, port, 80)}{_V1_PATH}"


def v1_request(address: str) -> bytes:
    """Return the content of a request in version 1 about a mail address."""
    return _V1_REQUEST.format(address=escape(address)).encode()


def v2_url(host: str, address: str, port: int = 443, protocol: Protocol = "AutodiscoverV1") -> str:
    """Return the URL of version 2 at a host, in the form with the address in the path."""
    user = quote(address, safe="")
    path = f"/autodiscover/autodiscover.json/v1.0/{user}"
    return f"https://{_authority(host, port, 443)}{path}?Protocol={protocol}"


def _authority(host: str, port: int, usual: int) -> str:
    named = f"[{host}]" if ":" in host else host
    return named if port == usual else f"{named}:{port}"


def read_v1(response: Response) -> str:
    """Return the URL that an answer in version 1 redirects to, or an empty text.

    A 401 is a good answer: it asks for a login. Raises `ProbeFault` for anything that is not autodiscover.
    """
    if response.status == 401:
        return ""
    _require_page(response, "XML")
    try:
        root = parse_xml(response.body)
    except ProbeFault as fault:
        raise ProbeFault(fault.reason, f"the page {fault.detail}") from fault
    if root.tag != "Autodiscover":
        raise ProbeFault(Reason.HTTP_BODY, f"XML of another kind: {legible(root.tag, 40)}")
    url = root.findtext("Response/Account/RedirectUrl")
    return require_https((url or "").strip()) if url else ""


def read_v2(response: Response) -> str:
    """Return the URL that an answer in version 2 names.

    Raises `ProbeFault`: `HTTP_STATUS` if there is no version 2, or not for this protocol or address.
    """
    _require_page(response, "JSON")
    url = response.json_object().get("Url")
    if not isinstance(url, str):
        raise ProbeFault(Reason.PROTOCOL_ERROR, "a JSON object without Url")
    return require_https(url)


def _require_page(response: Response, wanted: str) -> None:
    """Raise `ProbeFault` unless an answer has the status 200 and, as far as can be seen, no HTML."""
    if response.status >= 500:
        raise ProbeFault(Reason.HTTP_UNAVAILABLE, status_text(response.status))
    if response.status != 200:
        raise ProbeFault(Reason.HTTP_STATUS, status_text(response.status))
    if response.is_encoded:
        raise ProbeFault(Reason.HTTP_BODY, "the body is compressed, although this was not asked for")
    begin = response.body[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_html = response.header("content-type").lower().startswith(("text/html", "application/xhtml"))
    if is_html or begin.startswith((b"<!doctype html", b"<html")):
        shown = legible(response.body.strip(), 60)
        raise ProbeFault(Reason.HTTP_BODY, f"a web page (HTML) in place of {wanted}: {shown}")
    if response.is_cut:
        raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"an answer of more than {len(response.body):,} octets")


def require_https(url: str) -> str:
    """Return a URL from an answer; raises `ProbeFault` if it is not one to ask."""
    leads = f"leads to {shown_url(url, 80)}"
    if not url.lower().startswith("https:"):
        raise ProbeFault(Reason.REDIRECT_REFUSED, f"{leads}, which is not https")
    try:
        origin_of(url)
    except ValueError as error:
        told = f"{leads}, which is not a valid URL without credentials"
        raise ProbeFault(Reason.REDIRECT_REFUSED, told) from error
    return url


class Search:
    """Asks everything that one run asks: one step after the other, each with its share of the time left."""

    def __init__(self, question: Question, resolver: Resolver, phases: PhaseTimer, seconds: float) -> None:
        self._question = question
        self._resolver = resolver
        self._phases = phases
        self._until = asyncio.get_running_loop().time() + seconds
        self._steps_left = len(Step) + len(question.endpoints)
        self._hosts: dict[str, Host] = {}
        self._asked: set[str] = set()
        self._ways: list[Way] = []
        self._offers: dict[str, Offer] = {}  # by URL
        self._version_2_at: Origin | None = None
        self.certificate_expiry: CertificateExpiry | None = None
        """When the first of the certificates at the services expires."""

    async def gathered(self) -> Gathered:
        """Follow all steps, then ask the other endpoints for what they offer."""
        question = self._question
        host = f"autodiscover.{question.domain}"
        with self._phases.phase("records"):
            alias_of = await self._alias_of(host)
            srv = await self._srv()
        await self._step(Step.DOMAIN, v1_url(question.domain, question.port))
        await self._step(Step.HOST, v1_url(host, question.port))
        if question.http_port:
            await self._redirect(v1_plain_url(host, question.http_port))
        if isinstance(srv, ProbeFault):
            self._ways.append(Way(Step.SRV, 1, "", fault=srv))
        else:
            await self._step(Step.SRV, v1_url(*srv))
        for endpoint in question.endpoints:
            await self._other(endpoint)
        return Gathered(tuple(self._ways), tuple(self._offers.values()), alias_of)

    async def _alias_of(self, host: str) -> str | None:
        try:
            answer = await self._resolver.ask(host, "CNAME", until=self._until)
        except ProbeFault:  # the query for addresses tells
            return None
        named = answer.records[0].to_text().removesuffix(".").lower() if answer.records else None
        if named is not None:
            self._phases.transcript.note(f"CNAME {host}: {named}")
        return named

    async def _srv(self) -> tuple[str, int] | ProbeFault:
        """Return host and port of the SRV record that comes first (RFC 2782), or the fault."""
        try:
            answer = await self._resolver.ask(
                f"_autodiscover._tcp.{self._question.domain}", "SRV", until=self._until
            )
        except ProbeFault as fault:
            return fault
        found = []
        for record in answer.records:
            priority, weight, port, target = record.to_text().split(maxsplit=3)
            self._phases.transcript.note(f"SRV {priority} {weight} {port} {target}")
            found.append((int(priority), -int(weight), int(port), target.removesuffix(".").lower()))
        for _, _, its_port, host in sorted(found):
            if its_port and is_host_name(host):  # "." says that there is none
                return host, its_port
        return ProbeFault(Reason.DNS_NXDOMAIN, "no SRV record")

    def _ends(self) -> float:
        """Return when the next step must end, in the event loop's seconds."""
        now = asyncio.get_running_loop().time()
        share = max(0.0, self._until - now) / max(1, self._steps_left)
        self._steps_left -= 1
        return now + share

    def _client(self, ends: float) -> HttpClient:
        return HttpClient(self._phases, seconds=_left(ends), ca=self._question.ca, resolve=self._places)

    async def _places(self, name: str, port: int, seconds: float) -> list[tuple[str, int]]:
        """Return addresses for a connection, as `HttpClient` expects it."""
        found = await self._host(name, asyncio.get_running_loop().time() + seconds)
        if not found.addresses:
            raise ProbeFault(Reason.DNS_NO_ADDRESS, f"{name} has no address")
        return [(address, port) for address in sorted(found.addresses)]

    async def _host(self, name: str, until: float) -> Host:
        """Return a host's names and addresses: the configured address, or what the resolver says."""
        if (known := self._hosts.get(name)) is not None:
            return known
        to = self._question.addresses.get(name, name)
        names, addresses = {name}, {to} if is_ip_address(to) else set()
        for rdtype in () if addresses else ("A", "AAAA"):
            answer = await self._resolver.ask(to, rdtype, until=until)
            names.update(alias.to_text(omit_final_dot=True).lower() for alias in answer.aliases)
            addresses.update(record.to_text() for record in answer.records)
        self._hosts[name] = found = Host(frozenset(names), frozenset(addresses))
        return found

    async def _step(self, step: Step, url: str, shown: str = "") -> None:
        """Ask both versions at one place. ``shown`` is the URL that led there, if there is one."""
        ends = self._ends()
        self._asked.add(url)
        async with self._client(ends) as client:
            way = await self._version_1(client, step, url, ends, shown)
            self._ways.append(way)
            if way.fault is None or _has_answered(way.fault):
                await self._version_2(client, step, url, ends)

    async def _version_1(self, client: HttpClient, step: Step, url: str, ends: float, shown: str) -> Way:
        try:
            response = await self._follow(client, url, ends)
        except ProbeFault as fault:
            return Way(step, 1, shown or url, fault=fault)
        service = await self._service(response, response.url, ends)
        if response.url not in self._offers:
            self._offers[response.url] = await self._offer("autodiscover", client, response, ends)
        return Way(step, 1, shown or url, service)

    async def _follow(self, client: HttpClient, url: str, ends: float) -> Response:
        """Return the answer in version 1, after all redirects over HTTP and in XML; raises `ProbeFault`."""
        content = v1_request(self._question.email)
        trail: list[str] = []
        while url:
            if url in trail or len(trail) > REDIRECTS_FOLLOWED:
                raise ProbeFault(Reason.REDIRECT_LOOP, f"leads on to {shown_url(url, 80)}, and to no answer")
            trail.append(url)
            response = await self._request(client, "POST", url, ends, _V1_FIELDS, content, REDIRECTS_FOLLOWED)
            url = read_v1(response)
        return response

    async def _version_2(self, client: HttpClient, step: Step, url: str, ends: float) -> None:
        origin = origin_of(url)
        url = v2_url(origin.host, self._question.email, origin.port)
        if url in self._asked:
            return
        self._asked.add(url)
        try:
            response = await self._request(client, "GET", url, ends, redirects=REDIRECTS_FOLLOWED)
            leads_to = read_v2(response)
        except ProbeFault as fault:
            self._ways.append(Way(step, 2, url, fault=fault))
            return
        self._version_2_at = self._version_2_at or origin
        self._ways.append(Way(step, 2, url, await self._service(response, leads_to, ends)))

    async def _redirect(self, url: str) -> None:
        """Follow the redirect without TLS, unless it leads to what was asked before."""
        ends = self._ends()
        try:
            to = await self._location(url, ends)
        except ProbeFault as fault:
            self._ways.append(Way(Step.REDIRECT, 1, url, fault=fault))
            return
        if to not in self._asked:
            self._steps_left += 1
            await self._step(Step.REDIRECT, to, url)

    async def _location(self, url: str, ends: float) -> str:
        async with self._client(ends) as client:
            response = await self._request(client, "GET", url, ends)
        if not response.is_redirect:
            raise ProbeFault(Reason.HTTP_STATUS, f"{status_text(response.status)}, no redirect")
        return require_https(response.location or response.header("location"))

    async def _other(self, endpoint: Endpoint) -> None:
        """Ask an endpoint that version 2 names for the authentication that it offers."""
        ends, at = self._ends(), self._version_2_at
        url = ""
        offer = Offer(endpoint, url, fault=ProbeFault(Reason.HTTP_STATUS, "no answer in version 2 names it"))
        if at is not None:
            asked = v2_url(at.host, self._question.email, at.port, _PROTOCOLS[endpoint])
            try:
                async with self._client(ends) as client:
                    url = read_v2(
                        await self._request(client, "GET", asked, ends, redirects=REDIRECTS_FOLLOWED)
                    )
                    response = await self._request(client, "GET", url, ends)
                    offer = await self._offer(endpoint, client, response, ends)
            except ProbeFault as fault:
                offer = Offer(endpoint, url, fault=fault)
        self._offers[f"{endpoint} {url}"] = offer

    async def _offer(self, endpoint: Endpoint, client: HttpClient, response: Response, ends: float) -> Offer:
        """Return what an answer offers, and what an empty ``Authorization: Bearer`` adds to it."""
        schemes = None
        try:
            offered = challenges(response.header_lines("www-authenticate")) if response.status == 401 else ()
            schemes = tuple(sorted({legible(each.scheme, 40) for each in offered}))
            if response.status != 401:
                return Offer(endpoint, response.url, schemes)
            answer = await self._request(client, "GET", response.url, ends, _BEARER)
            found = challenges(answer.header_lines("www-authenticate"))
        except ProbeFault as fault:
            return Offer(endpoint, response.url, schemes, fault=fault)
        bearer = next((each.parameters for each in found if each.scheme == "bearer"), None)
        return Offer(endpoint, response.url, schemes, bearer)

    async def _request(
        self,
        client: HttpClient,
        method: str,
        url: str,
        ends: float,
        headers: Mapping[str, str] = MappingProxyType({}),
        content: bytes | None = None,
        redirects: int = 0,
    ) -> Response:
        response = await client.request(
            method, url, headers=headers, content=content, redirects=redirects, seconds=_left(ends)
        )
        response.record(self._phases.transcript)
        return response

    async def _service(self, response: Response, url: str, ends: float) -> Service:
        expiry = response.certificate_expiry
        if expiry is not None:
            self.certificate_expiry = min(expiry, self.certificate_expiry or expiry)
        name = origin_of(url).host.lower()
        try:
            with self._phases.phase("records"):
                host = await self._host(name, ends)
        except ProbeFault:  # its name still tells whether it is the same
            host = Host(frozenset({name}))
        return Service(url, name, host)


def _has_answered(fault: ProbeFault) -> bool:
    """Return whether a fault came with an answer over HTTP, so that there can be another one."""
    answers = (Reason.PROTOCOL_ERROR, Reason.RESPONSE_TOO_LARGE)
    return fault.reason.area is Area.HTTP or fault.reason in answers


def _left(ends: float) -> float:
    return max(0.0, ends - asyncio.get_running_loop().time())
