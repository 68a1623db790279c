"""Servers that a domain publishes for mail clients: Thunderbird's config-v1.1.xml, and autodiscover.

The first format: https://wiki.mozilla.org/Thunderbird:Autoconfiguration:ConfigFileFormat.
mailsonde never logs in here: an answer that asks for credentials only shows that there is a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import Element

from monitor.init.endpoint import Endpoint, MailProtocol, TlsMode, host_name, usual_ports
from monitor.init.web import PageError, Web
from probes.core.faults import ProbeFault
from probes.protocols import xml_document
from probes.protocols.autodiscover_client import v1_request, v1_url, v2_url
from probes.protocols.https import Response

PAGE_ENDPOINTS_LIMIT = 12
"""Maximum number of servers from one page."""

_PROTOCOLS: MappingProxyType[str, MailProtocol] = MappingProxyType(
    {"smtp": "smtp", "imap": "imap", "pop3": "pop3"}
)
_SOCKET_TYPES: MappingProxyType[str, TlsMode] = MappingProxyType(
    {"ssl": "implicit", "tls": "implicit", "starttls": "starttls"}
)


async def ask_autoconfig(url: str, address: str, web: Web) -> list[Endpoint]:
    """Return the encrypted servers that the config-v1.1.xml at ``url`` names; raises `PageError`."""
    page = await web.fetch(f"{url}?emailaddress={quote(address)}")
    if page.status != 200:
        raise PageError(f"HTTP status {page.status}")
    found = list(_servers(_xml(page.body), address, f"autoconfig at {urlsplit(url).netloc}"))
    if not found:
        raise PageError("names no encrypted server")
    return found[:PAGE_ENDPOINTS_LIMIT]


def _servers(root: Element, address: str, source: str) -> Iterator[Endpoint]:
    for element in root.iter():
        protocol = _PROTOCOLS.get(element.get("type", "").lower())
        if element.tag not in {"incomingServer", "outgoingServer"} or protocol is None:
            continue
        tls = _SOCKET_TYPES.get(_text(element, "socketType").lower())
        host, port = _filled(_text(element, "hostname"), address), _text(element, "port")
        found = _endpoint(protocol, host, port, tls, source)
        if found is not None:
            yield _named(found, _filled(_text(element, "username"), address))


async def ask_autodiscover(host: str, address: str, web: Web) -> list[Endpoint]:
    """Return the servers that autodiscover at ``host`` names; raises `PageError`.

    Version 2 (JSON) names an Exchange host, which is assumed to serve every protocol at its
    standard port. Otherwise, version 1 (XML) names servers, or asks for credentials, which shows
    that Exchange is there.
    """
    source = f"autodiscover at {host}"
    try:
        page = await web.fetch(v2_url(host, address))
        return _exchange(_host_of_json(page), source)
    except PageError:
        page = await web.fetch(v1_url(host), v1_request(address))
    if page.status == 401:
        return _exchange(page.host, source)
    if page.status != 200:
        raise PageError(f"HTTP status {page.status}")
    found = [
        endpoint for protocol in _xml(page.body).iter("Protocol") for endpoint in _listed(protocol, source)
    ]
    if not found:
        raise PageError("names no encrypted server")
    return found[:PAGE_ENDPOINTS_LIMIT]


def _host_of_json(page: Response) -> str:
    try:
        url = json.loads(page.body)["Url"] if page.status == 200 else None
        return host_name(urlsplit(str(url)).hostname or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PageError(f"HTTP status {page.status}, without the JSON of autodiscover") from error


def _exchange(host: str, source: str) -> list[Endpoint]:
    found = [usual_ports(protocol, host, source, vouched=True) for protocol in _PROTOCOLS.values()]
    return [endpoint for endpoints in found for endpoint in endpoints]


def _listed(element: Element, source: str) -> Iterator[Endpoint]:
    """Yield the server of a ``Protocol`` element; ``SSL`` is on unless it says otherwise."""
    protocol = _PROTOCOLS.get(_text(element, "Type").lower())
    if protocol is None:
        return
    words = {_text(element, "Encryption").lower(), _text(element, "SSL").lower()}
    tls: TlsMode | None = "starttls" if "tls" in words else None if "off" in words else "implicit"
    found = _endpoint(protocol, _text(element, "Server"), _text(element, "Port"), tls, source)
    if found is not None:
        yield _named(found, _text(element, "LoginName"))


def _xml(body: bytes) -> Element:
    try:
        return xml_document.parse_xml(body)
    except ProbeFault as fault:
        raise PageError(fault.detail) from fault


def _text(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _filled(text: str, address: str) -> str:
    local, _, domain = address.partition("@")
    for place, value in (("ADDRESS", address), ("LOCALPART", local), ("DOMAIN", domain)):
        text = text.replace(f"%EMAIL{place}%", value)
    return text


def _endpoint(
    protocol: MailProtocol, host: str, port: str, tls: TlsMode | None, source: str
) -> Endpoint | None:
    """Return the server that a page names, or ``None`` if it is unencrypted or not a server."""
    if tls is None or not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535):
        return None
    try:
        return Endpoint(protocol, host_name(host), int(port), tls, source, vouched=True)
    except ValueError:
        return None


def _named(endpoint: Endpoint, username: str) -> Endpoint:
    """Return the endpoint with its login name, if the page gives a valid one."""
    if not (0 < len(username) <= 255 and username.isprintable()) or "%" in username:
        return endpoint
    return replace(endpoint, username=username)
