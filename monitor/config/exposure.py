"""Whether people on other machines can read the agent's pages without a password."""

from __future__ import annotations

from ipaddress import ip_address

from monitor.config.models import AgentSettings
from monitor.config.web_config import WebConfig


def exposure(settings: AgentSettings, web_config: WebConfig | None) -> str:
    """Return a warning if the agent listens to other machines without asking for credentials, or without TLS.

    ``web_config`` is None if it is not known. Then nothing is said about it.
    """
    host, port = settings.listen
    if _is_loopback(host) or (settings.web_config is not None and web_config is None):
        return ""
    where = f"The agent listens on {host}:{port}, beyond this machine"
    if web_config is None:
        return (
            f"{where}, and all who can connect read its pages; set agent.web_config, or listen on 127.0.0.1"
        )
    if not web_config.asks_for_credentials:
        return f"{where}, and its web configuration asks for no password or client certificate"
    if web_config.tls_server_config is None:
        return f"{where}, and passwords travel unencrypted; add tls_server_config to its web configuration"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
