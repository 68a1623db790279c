"""What is known about widely used mail services: their hosts, ports, TLS and limits.

Each value is a default of a server with that ``preset``, and can be set to another. Sources, as of November
2026: Microsoft's "Exchange Online limits", "POP, IMAP, and SMTP settings", "Office 365 U.S. Government GCC
High endpoints", the same for DoD, and "Message rate limits and throttling" (Exchange Server); Google's "Gmail
sending limits in Google Workspace" and "Set up Gmail with a third-party email client"; the default
configurations of Postfix 3.7 and Dovecot 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Values = Mapping[str, object]


def _exchange_online(mail: str, graph: str, *, submission: str | None = None) -> Mapping[str, Values]:
    """Return the defaults in one of Microsoft's clouds, with its hosts.

    Without ``submission``, mail is submitted where it is read.

    30 messages a minute and 3 connections for each mailbox that sends.
    """
    return {
        "smtp": {
            "host": submission or mail,
            "tls": "starttls",
            "messages_per_minute": 30.0,
            "max_connections": 3,
            "saves_sent_copies": True,
        },
        "pop3": {"host": mail, "tls": "implicit"},
        "imap": {"host": mail, "tls": "implicit"},
        "graph": {
            "host": graph,
            "tls": "implicit",
            "messages_per_minute": 30.0,
            "saves_sent_copies": True,
        },
    }


PRESETS: Mapping[str, Mapping[str, Values]] = MappingProxyType(
    {
        "exchange-online": _exchange_online(
            "outlook.office365.com", "graph.microsoft.com", submission="smtp.office365.com"
        ),
        "exchange-online-gcc-high": _exchange_online("outlook.office365.us", "graph.microsoft.us"),
        "exchange-online-dod": _exchange_online("outlook-dod.office365.us", "dod-graph.microsoft.us"),
        "exchange-online-21vianet": _exchange_online(
            "partner.outlook.cn", "microsoftgraph.chinacloudapi.cn", submission="smtp.partner.outlook.cn"
        ),
        "gmail": {
            # 2,000 messages a day for each user of Google Workspace.
            "smtp": {
                "host": "smtp.gmail.com",
                "tls": "starttls",
                "messages_per_minute": 1.3,
                "saves_sent_copies": True,
            },
            "pop3": {"host": "pop.gmail.com", "tls": "implicit"},
            "imap": {"host": "imap.gmail.com", "tls": "implicit"},
        },
        "exchange-2019": {
            # Receive connector "Client Frontend": 5 messages a minute and 20 connections for each source.
            "smtp": {"tls": "starttls", "messages_per_minute": 5.0, "max_connections": 20},
            "pop3": {"tls": "implicit"},
            "imap": {"tls": "implicit"},
        },
        "postfix-dovecot": {
            # smtpd_client_connection_count_limit is 50; other clients need some of them.
            "smtp": {"tls": "starttls", "max_connections": 20},
            "pop3": {"tls": "implicit"},
            "imap": {"tls": "implicit"},
        },
    }
)
"""Defaults of servers by preset and protocol, under the names of their settings."""


CLOUD_OF_PRESET: Mapping[str, str] = MappingProxyType(
    {
        "exchange-online": "global",
        "exchange-online-gcc-high": "usgov",
        "exchange-online-dod": "dod",
        "exchange-online-21vianet": "china",
    }
)
"""Which of Microsoft's clouds has the hosts of a preset, as the setting ``cloud`` of ``oauth2`` names it."""

_PRESET_OF_HOST = {
    str(values["host"]): preset
    for preset, protocols in PRESETS.items()
    for values in protocols.values()
    if "host" in values
}


def preset_values(preset: object, protocol: object) -> Values:
    """Return the defaults of a preset's servers with a protocol; none for an unknown one."""
    return PRESETS.get(str(preset), {}).get(str(protocol), {})


def preset_of_server(host: str, preset: str) -> str:
    """Return the preset of a service that is known to have this host, or else ``preset``."""
    return _PRESET_OF_HOST.get(host.lower(), preset)
