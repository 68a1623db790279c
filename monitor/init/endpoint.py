"""Where mail may be submitted or read: what every way of finding servers yields."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from probes.core.faults import legible
from probes.core.settings import HostName, is_host_name
from probes.protocols.dns import a_labels

MailProtocol = Literal["smtp", "imap", "pop3"]
TlsMode = Literal["implicit", "starttls", "none"]

IMPLICIT_PORTS = MappingProxyType({"smtp": 465, "imap": 993, "pop3": 995})
STARTTLS_PORTS = MappingProxyType({"smtp": 587, "imap": 143, "pop3": 110})
"""The ports of RFC 8314 section 3, and those of STARTTLS beside them."""

_SCHEMES: MappingProxyType[str, tuple[MailProtocol, TlsMode | None]] = MappingProxyType(
    {
        "smtp": ("smtp", None),
        "imap": ("imap", None),
        "pop3": ("pop3", None),
        "smtps": ("smtp", "implicit"),
        "imaps": ("imap", "implicit"),
        "pop3s": ("pop3", "implicit"),
    }
)
_HOST = TypeAdapter(HostName)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's port and how it encrypts.

    ``source`` says who named it. ``vouched`` is whether the mail domain stands behind it: the host
    lies in the domain, or was told over verified https (RFC 6186 section 6 has what to fear else).
    ``username`` is the login name that was told with it.
    """

    protocol: MailProtocol
    host: str
    port: int
    tls: TlsMode
    source: str
    vouched: bool
    username: str | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes two endpoints the same."""
        return self.protocol, self.host, self.port, self.tls

    def __str__(self) -> str:
        how = {"implicit": "TLS", "starttls": "STARTTLS", "none": "NOT ENCRYPTED"}[self.tls]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol.upper()} {host} port {self.port}, {how}"


def host_name(text: str) -> str:
    """Return a host name in A-labels; ValueError if ``text`` is none, such as an IP literal."""
    name = a_labels(text.strip())
    if not is_host_name(name):
        raise ValueError(f"{legible(text, 80)!r} is not a host name")
    return name


def usual_ports(protocol: MailProtocol, host: str, source: str, vouched: bool) -> list[Endpoint]:
    """Return the endpoints at a host's standard ports, implicit TLS first (RFC 8314 section 3)."""
    return [
        Endpoint(protocol, host, IMPLICIT_PORTS[protocol], "implicit", source, vouched),
        Endpoint(protocol, host, STARTTLS_PORTS[protocol], "starttls", source, vouched),
    ]


def given_endpoints(text: str, default: str, allow_insecure: bool) -> list[Endpoint]:
    """Return the endpoints that a user's ``[SCHEME://]HOST[:PORT]`` may mean, the most secure first.

    ``default`` is the scheme where none is given. An unencrypted connection is among them only with
    ``allow_insecure``. Raises ValueError, with what to write.
    """
    url = urlsplit(text if "://" in text else f"{default}://{text}")
    known = _SCHEMES.get(url.scheme)
    problem = f"names no server; write HOST:PORT or {default}://HOST:PORT"  # it may hold a password
    try:
        host, port = _HOST.validate_python(url.hostname or ""), url.port
    except ValueError:
        raise ValueError(problem) from None
    if known is None or port == 0 or url.path.strip("/") or url.query or url.username:
        raise ValueError(problem)
    protocol, tls = known
    if port is None:
        found = usual_ports(protocol, host, "you", vouched=True)
        return [endpoint for endpoint in found if tls in {None, endpoint.tls}]
    modes: list[TlsMode] = ["starttls", "implicit"]
    if port == IMPLICIT_PORTS[protocol] or tls is not None:
        modes = ["implicit"] if tls else ["implicit", "starttls"]
    if allow_insecure and tls is None:
        modes.append("none")
    return [Endpoint(protocol, host, port, mode, "you", vouched=True) for mode in modes]
