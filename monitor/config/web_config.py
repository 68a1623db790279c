"""The web configuration file: TLS, users, header fields and a rate limit of the agent's own HTTP server.

The format is that of Prometheus' exporter-toolkit, docs/web-configuration.md there. What the agent does not
offer is refused, so that nobody relies on it.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretBytes,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from monitor.config.document import Mistake, read_document
from monitor.config.mistakes import mistakes_of
from probes.core.secret import read_at_most
from probes.core.setting_types import relative_to_config
from probes.core.settings import Settings

WEB_CONFIG_LIMIT = 256 * 1024
"""Maximum size of a web configuration, and of each file that it names, in bytes."""

COSTS = range(4, 17)
"""Costs of a bcrypt hash: bcrypt begins at 4, and a check at 16 takes about 5 seconds."""

_HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
"""A salt has 128 bits, so its 22nd digit is one of four."""

_GO_DURATION = re.compile(r"0|(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|[smh]))+")
_GO_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY_MODES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}

Parse = Callable[[bytes], object]


def _chain(content: bytes) -> None:
    load_pem_x509_certificates(content)


def _private_key(content: bytes) -> None:
    try:
        load_pem_private_key(content, None)
    except TypeError:
        raise ValueError("is encrypted; the agent cannot ask for its passphrase, so decrypt it") from None


def _sound(content: bytes, named: str, wanted: str, parse: Parse) -> bytes:
    """Return ``content`` if ``parse`` accepts it; raises ValueError."""
    try:
        parse(content)
    except ValueError as error:
        if "passphrase" in str(error):
            raise ValueError(f"{named} {error}") from None
        raise ValueError(f"{named} has no {wanted} in PEM") from None
    return content


def _of_file(wanted: str, parse: Parse, value: object, info: ValidationInfo) -> bytes:
    if not isinstance(value, str) or not value:
        raise ValueError(f"needs the path of a PEM file with a {wanted}")
    path = relative_to_config(value, info)
    return _sound(read_at_most(path, WEB_CONFIG_LIMIT, "file"), f"file {path}", wanted, parse)


def _key_of_file(value: object, info: ValidationInfo) -> bytes:
    """Return the content of a private key's file, or nothing if secrets are not read."""
    if isinstance(value, str) and value and not (info.context or {}).get("secrets", True):
        return b""
    return _of_file("private key", _private_key, value, info)


def _inline(wanted: str, parse: Parse, value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"needs a {wanted} in PEM")  # noqa: TRY004 # pydantic's way
    return _sound(value.encode(), "the text", wanted, parse)


def _bcrypt_hash(value: SecretStr) -> SecretStr:
    if not (match := _HASH.fullmatch(value.get_secret_value())):
        raise ValueError("is no bcrypt hash such as $2y$10$…; make one with `mailsonde hash-password`")
    if int(match[1]) not in COSTS:
        raise ValueError(
            f"the hash has cost {int(match[1])}; use {COSTS.start} to {COSTS.stop - 1}, such as 10: each "
            "step doubles the time of a check"
        )
    return value


def _user(value: str) -> str:
    if not value or ":" in value or not value.isprintable():
        raise ValueError("a user name has printable characters without a colon (RFC 7617 section 2)")
    return value


def _go_duration(value: object) -> float:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not _GO_DURATION.fullmatch(value):
        raise ValueError("is not a duration; write a number with its unit, such as 500ms or 1s")
    parts = re.findall(r"([0-9.]+)(ms|[smh])", value)
    return sum(float(number) * _GO_UNITS[unit] for number, unit in parts)


def _cipher(value: str) -> str:
    if value in SUITES_OF_TLS_13:
        raise ValueError(f"{value} belongs to TLS 1.3, whose suites are always offered; remove it")
    if value not in CIPHER_SUITES:
        raise ValueError(f"there is no cipher suite {value!r}. The suites are {', '.join(CIPHER_SUITES)}")
    return value


def _version(value: object) -> object:
    if value in {"TLS10", "TLS11"}:
        raise ValueError(f"{value} is not secure (RFC 8996) and not offered; use TLS12 or TLS13")
    return value


def _client_auth(value: object) -> object:
    if value in {"RequestClientCert", "RequireAnyClientCert", "RequireClientCert"}:
        raise ValueError(
            f"{value} accepts certificates that nobody verified, which Python's TLS cannot do; use "
            "VerifyClientCertIfGiven or RequireAndVerifyClientCert"
        )
    return value


def _header_value(value: str) -> str:
    if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", value):
        raise ValueError("must be one line of printable ASCII")
    return value


def _http1(value: object) -> object:
    if value is True:
        raise ValueError("the agent speaks HTTP/1.1 only; remove http2, or set it to false")
    return value


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of a file with ``content`` that never touches a disk: OpenSSL takes only paths."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _admitting(names: frozenset[str]) -> type[ssl.SSLObject]:
    """Return a TLS connection that ends unless the client's certificate has one of ``names``."""

    class Admitting(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            certificate = self.getpeercert() or {}
            own = {_canonical(str(name)) for name in _alternative_names(certificate)}
            if names.isdisjoint(own):
                raise ssl.SSLCertVerificationError("the client's certificate has none of client_allowed_sans")

    return Admitting


def _alternative_names(certificate: Mapping[str, Any]) -> Iterator[object]:
    for _, name in certificate.get("subjectAltName", ()):
        yield name


def _canonical(name: str) -> str:
    """Return an IP address in its usual form, and any other name as it is."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name


CIPHER_SUITES: Mapping[str, str] = {
    f"TLS_{exchange}_WITH_{name}": f"{exchange.replace('_', '-')}-{openssl}"
    for exchange in ("ECDHE_ECDSA", "ECDHE_RSA")
    for name, openssl in {
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
    }.items()
}
"""OpenSSL's names of the suites up to TLS 1.2, by those of RFC 8422, which Go's crypto/tls also uses."""

SUITES_OF_TLS_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

CURVES: Mapping[str, str] = {
    "X25519": "X25519",
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
}
"""OpenSSL's names of the curves, by Go's."""

_ChainFile = Annotated[bytes, BeforeValidator(partial(_of_file, "certificate", _chain))]
_KeyFile = Annotated[SecretBytes, BeforeValidator(_key_of_file)]
_Chain = Annotated[bytes, BeforeValidator(partial(_inline, "certificate", _chain))]
_Key = Annotated[SecretBytes, BeforeValidator(partial(_inline, "private key", _private_key))]
_Version = Annotated[Literal["TLS12", "TLS13"], BeforeValidator(_version)]
_HeaderValue = Annotated[str, AfterValidator(_header_value)]

FILE_KEYS = ("cert_file", "key_file", "client_ca_file")
"""Keys of ``tls_server_config`` that name a file."""


class TlsServerConfig(Settings):
    """Certificates of the server and of its clients. Values that name files hold their content."""

    cert: _Chain | None = None
    cert_file: _ChainFile | None = None
    key: _Key | None = None
    key_file: _KeyFile | None = None
    client_ca: _Chain | None = None
    client_ca_file: _ChainFile | None = None
    client_auth_type: Annotated[
        Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"],
        BeforeValidator(_client_auth),
    ] = Field(default="NoClientCert", validate_default=True)
    client_allowed_sans: tuple[Annotated[str, AfterValidator(_canonical)], ...] = ()
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"
    cipher_suites: tuple[Annotated[str, AfterValidator(_cipher)], ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[Literal["X25519", "CurveP256", "CurveP384", "CurveP521"], ...] = ()

    @field_validator("cert_file", "key_file", "client_ca_file")
    @classmethod
    def _not_both(cls, value: object, info: ValidationInfo) -> object:
        inline = str(info.field_name).removesuffix("_file")
        if value is not None and info.data.get(inline) is not None:
            raise ValueError(f"{inline} says the same; write one of the two")
        return value

    @field_validator("client_auth_type")
    @classmethod
    def _with_client_ca(cls, value: str, info: ValidationInfo) -> str:
        has_ca = info.data.get("client_ca") or info.data.get("client_ca_file")
        is_refused = not {"client_ca", "client_ca_file"} <= info.data.keys()  # which is a mistake of its own
        if value == "NoClientCert" and has_ca:
            raise ValueError(
                "there is a CA for client certificates, and no client asks for one; set client_auth_type: "
                "RequireAndVerifyClientCert, or remove the CA"
            )
        if value != "NoClientCert" and not has_ca and not is_refused:
            raise ValueError(f"{value} needs client_ca_file, the CA that issues the clients' certificates")
        return value

    @field_validator("client_allowed_sans")
    @classmethod
    def _of_verified_clients(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("client_auth_type") in {"NoClientCert", "VerifyClientCertIfGiven"}:
            raise ValueError("needs client_auth_type: RequireAndVerifyClientCert")
        return value

    @field_validator("max_version")
    @classmethod
    def _not_below_the_minimum(cls, value: str, info: ValidationInfo) -> str:
        if value < info.data.get("min_version", value):
            raise ValueError(f"{value} is below min_version")
        return value

    @field_validator("curve_preferences")
    @classmethod
    def _one_curve(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 1:
            raise ValueError("Python's TLS takes one curve; write one, or remove the key")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for inline in ("cert", "key"):
            if getattr(self, inline) is None and getattr(self, f"{inline}_file") is None:
                raise ValueError(f"{inline}_file is required")
        if not self.private_key:  # not read
            return self
        certificate, *_ = load_pem_x509_certificates(self.chain)
        if load_pem_private_key(self.private_key, None).public_key() != certificate.public_key():
            raise ValueError("the key does not belong to the certificate; the server's own comes first")
        try:
            _ = self.context
        except ssl.SSLError as error:
            raise ValueError(
                f"OpenSSL refuses the certificate or a setting: {error.reason or error}"
            ) from None
        return self

    @cached_property
    def context(self) -> ssl.SSLContext:
        """The context for the connections of clients; raises ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self.min_version]
        context.maximum_version = _VERSIONS[self.max_version]
        context.verify_mode = _VERIFY_MODES[self.client_auth_type]
        context.set_alpn_protocols(["http/1.1"])
        if self.client_authority:
            context.load_verify_locations(cadata=self.client_authority.decode("ascii", "ignore"))
        if self.cipher_suites:
            context.set_ciphers(":".join(CIPHER_SUITES[name] for name in self.cipher_suites))
        if not self.prefer_server_cipher_suites:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        for name in self.curve_preferences:
            context.set_ecdh_curve(CURVES[name])
        if self.client_allowed_sans:
            context.sslobject_class = _admitting(frozenset(self.client_allowed_sans))
        with _in_memory(self.chain) as chain, _in_memory(self.private_key) as key:
            context.load_cert_chain(chain, key)
        return context

    @property
    def chain(self) -> bytes:
        """The server's certificate and those of intermediate CAs, in PEM."""
        return self.cert_file or self.cert or b""

    @property
    def private_key(self) -> bytes:
        """The private key, in PEM; empty if secrets are not read."""
        key = self.key_file or self.key
        return key.get_secret_value() if key is not None else b""

    @property
    def client_authority(self) -> bytes:
        """The CA that issues the clients' certificates, in PEM; empty if none are asked for."""
        return self.client_ca_file or self.client_ca or b""


class HeaderFields(Settings):
    """Header fields of every answer, in place of the agent's own."""

    content_security_policy: _HeaderValue | None = Field(default=None, alias="Content-Security-Policy")
    strict_transport_security: _HeaderValue | None = Field(default=None, alias="Strict-Transport-Security")
    x_content_type_options: Literal["nosniff"] | None = Field(default=None, alias="X-Content-Type-Options")
    x_frame_options: Literal["deny", "sameorigin"] | None = Field(default=None, alias="X-Frame-Options")
    x_xss_protection: _HeaderValue | None = Field(default=None, alias="X-XSS-Protection")


class HttpServerConfig(Settings):
    """Settings of HTTP."""

    http2: Annotated[Literal[False], BeforeValidator(_http1)] = False
    headers: HeaderFields = HeaderFields()


class RateLimit(Settings):
    """A token bucket: ``burst`` requests at once, then one every ``interval`` seconds (0: no limit)."""

    interval: Annotated[float, BeforeValidator(_go_duration)]
    burst: int = Field(ge=1, le=1_000_000)


class WebConfig(Settings):
    """A web configuration file."""

    tls_server_config: TlsServerConfig | None = None
    http_server_config: HttpServerConfig = HttpServerConfig()
    basic_auth_users: Annotated[
        dict[Annotated[str, AfterValidator(_user)], Annotated[SecretStr, AfterValidator(_bcrypt_hash)]],
        Field(max_length=1000),
    ] = Field(default_factory=dict)
    rate_limit: RateLimit | None = None

    @property
    def asks_for_credentials(self) -> bool:
        """Whether nobody reads the pages without a password or a verified certificate."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (
            tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert"
        )


def read_web_config(path: Path, *, secrets: bool = True) -> WebConfig | list[Mistake]:
    """Return the web configuration in the file ``path``, or the mistakes in it and in the files it names.

    Without ``secrets``, no file of a private key is read, and there is no TLS context.
    """
    keys = ", ".join(WebConfig.model_fields)
    document = read_document(path, f"the keys {keys}", WEB_CONFIG_LIMIT, path.parent)
    if isinstance(document, Mistake):
        return [document]
    mistakes = list(document.duplicates)
    try:
        config = WebConfig.model_validate(document.data, context={"secrets": secrets})
    except ValidationError as error:
        mistakes += mistakes_of(error, document, WebConfig)
    return mistakes or config


def files_of(path: Path) -> list[Path]:
    """Return the web configuration file ``path`` and the files that it names, whether they exist or not."""
    document = read_document(path, limit=WEB_CONFIG_LIMIT)
    tls: Any = None if isinstance(document, Mistake) else document.data.get("tls_server_config")
    named = [tls.get(key) for key in FILE_KEYS] if isinstance(tls, Mapping) else []
    return [path, *(path.parent / name for name in named if isinstance(name, str) and name)]
