"""What the configuration says about a probe, as labels of one metric that rules join to their alerts."""

from __future__ import annotations

from monitor.config.selection import labels_of, servers_of
from probes.core.probe import Probe


def probe_info(probe: Probe) -> dict[str, str]:
    """Return the labels of a probe, its servers and its target, its highest severity, and up to three more.

    A probe's own label replaces that of the server it connects to, which replaces that of its mailbox's
    server. ``description`` is what the site says the probe is for, ``address`` the HOST:PORT that it connects
    to, and ``mailbox_server`` the server of the mailbox that its messages arrive in, or that it checks.
    """
    settings, site = probe.settings, probe.context.site
    name, mailbox_server = servers_of(settings, site)
    server = site.servers.get(name or "")  # MX hosts are not in it; their target is already a host name
    if mailbox_server is None and server is not None and server.protocol != "smtp":
        mailbox_server = name
    place = probe.place if server is None else (server.host, server.port)
    found = {
        "severity": settings.severity,
        "description": settings.description,
        "mailbox_server": mailbox_server,
        "address": place and _address(*place),
    }
    told = {label: value for label, value in found.items() if value}
    return {**labels_of(settings, site), **probe.labels, **told}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
