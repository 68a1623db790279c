"""What Prometheus needs to scrape an agent with a web configuration: settings, and files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.x509 import (
    DNSName,
    ExtensionNotFound,
    IPAddress,
    SubjectAlternativeName,
    load_pem_x509_certificates,
)

from monitor.config.web_config import TlsServerConfig, WebConfig

PASSWORD_FILE = "mailsonde-password"  # noqa: S105 # the name of a file
CA_FILE = "mailsonde-ca.crt"
CERTIFICATE_FILE = "mailsonde-client.crt"
KEY_FILE = "mailsonde-client.key"

PREFERRED_USER = "prometheus"
"""The user whom Prometheus logs in as; if there is none of this name, the first."""


@dataclass(frozen=True, slots=True)
class ScrapeAccess:
    """Settings of a scrape configuration, and by name what the files must contain that they refer to."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def scrape_access(web_config: WebConfig | None, host: str) -> ScrapeAccess:
    """Return what a client needs that scrapes the agent at ``host`` under ``web_config``."""
    settings: dict[str, Any] = {}
    files: dict[str, str] = {}
    if web_config is not None and (tls := web_config.tls_server_config) is not None:
        settings |= {"scheme": "https", "tls_config": {"ca_file": CA_FILE, **_server_name(tls, host)}}
        files[CA_FILE] = "the certificate of the CA that issued the agent's"
        if tls.client_auth_type == "RequireAndVerifyClientCert":
            settings["tls_config"] |= {"cert_file": CERTIFICATE_FILE, "key_file": KEY_FILE}
            files[CERTIFICATE_FILE] = "a certificate by the CA of client_ca_file"
            files[KEY_FILE] = "its private key"
    if web_config is not None and (users := web_config.basic_auth_users):
        user = PREFERRED_USER if PREFERRED_USER in users else next(iter(users))
        settings["basic_auth"] = {"username": user, "password_file": PASSWORD_FILE}
        files[PASSWORD_FILE] = f"the password of {user}"
    return ScrapeAccess(settings, files)


def _server_name(tls: TlsServerConfig, host: str) -> dict[str, str]:
    """Return the name to look for in the agent's certificate, if it has another one than ``host``."""
    certificate, *_ = load_pem_x509_certificates(tls.chain)
    try:
        extension = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
    except ExtensionNotFound:
        return {}
    names = extension.value.get_values_for_type(DNSName)
    addresses = [str(address) for address in extension.value.get_values_for_type(IPAddress)]
    if host in names or host in addresses:
        return {}
    # Any label in the place of a wildcard is covered (RFC 6125 section 6.4.3).
    return (
        {"server_name": name.replace("*", "mailsonde")}
        if (name := next(iter([*names, *addresses]), ""))
        else {}
    )
