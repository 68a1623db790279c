"""A place to submit or read mail: the result of every way to find servers."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from probes.core.faults import legible
from probes.core.presets import preset_values
from probes.core.setting_types import HostName, is_host_name
from probes.protocols.dns import a_labels

MailProtocol = Literal["smtp", "imap", "pop3", "graph"]
TlsMode = Literal["implicit", "starttls", "none"]

IMPLICIT_PORTS = MappingProxyType({"smtp": 465, "imap": 993, "pop3": 995, "graph": 443})
STARTTLS_PORTS = MappingProxyType({"smtp": 587, "imap": 143, "pop3": 110})
"""The ports of RFC 8314 section 3, and those for STARTTLS."""

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
    """A server's port and its encryption.

    ``source`` says where it was found. ``vouched`` says whether the mail domain vouches for it: the host is
    within the domain, or was named over verified https (RFC 6186 section 6 describes the risk).
    ``username`` is the login name that came with it. ``preset`` is the widely used service that it belongs to
    (`probes.core.presets`).
    """

    protocol: MailProtocol
    host: str
    port: int
    tls: TlsMode
    source: str
    vouched: bool
    username: str | None = None
    preset: str | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """The identity of the endpoint, for comparison."""
        return self.protocol, self.host, self.port, self.tls

    def __str__(self) -> str:
        how = {"implicit": "TLS", "starttls": "STARTTLS", "none": "NOT ENCRYPTED"}[self.tls]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol.upper()} {host} port {self.port}, {how}"


def host_name(text: str) -> str:
    """Return a host name in A-labels; raises ValueError if ``text`` is not one, such as an IP literal."""
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


def preset_endpoint(preset: str, protocol: MailProtocol) -> Endpoint:
    """Return the server that a preset has for a protocol; raises KeyError if it has none."""
    values = preset_values(preset, protocol)
    tls = cast("TlsMode", values["tls"])
    port = (IMPLICIT_PORTS if tls == "implicit" else STARTTLS_PORTS)[protocol]
    return Endpoint(protocol, str(values["host"]), port, tls, f"preset {preset}", vouched=True, preset=preset)


def given_endpoints(text: str, default: str, allow_insecure: bool) -> list[Endpoint]:
    """Return the endpoints that a user's ``[SCHEME://]HOST[:PORT]`` may mean, the most secure first.

    ``default`` is the default scheme. Unencrypted connections are included only with
    ``allow_insecure``. Raises ValueError, which says what to write.
    """
    url = urlsplit(text if "://" in text else f"{default}://{text}")
    known = _SCHEMES.get(url.scheme)
    problem = f"names no server; write HOST:PORT or {default}://HOST:PORT"  # the text may contain a password
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
