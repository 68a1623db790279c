"""What is known about widely used mail services: their hosts, ports, TLS and limits.

Each value is a default of a server with that ``preset``, and can be set to another. Sources, as of November
2026: Microsoft's "Exchange Online limits", "POP, IMAP, and SMTP settings" and "Message rate limits and
throttling" (Exchange Server); Google's "Gmail sending limits in Google Workspace" and "Set up Gmail with a
third-party email client"; the default configurations of Postfix 3.7 and Dovecot 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Values = Mapping[str, object]

PRESETS: Mapping[str, Mapping[str, Values]] = MappingProxyType(
    {
        "exchange-online": {
            # 30 messages a minute and 3 connections for each mailbox that sends.
            "smtp": {
                "host": "smtp.office365.com",
                "tls": "starttls",
                "messages_per_minute": 30.0,
                "max_connections": 3,
                "saves_sent_copies": True,
            },
            "pop3": {"host": "outlook.office365.com", "tls": "implicit"},
            "imap": {"host": "outlook.office365.com", "tls": "implicit"},
            # In the other clouds, the host follows from the server's `oauth2`.
            "graph": {
                "host": "graph.microsoft.com",
                "tls": "implicit",
                "messages_per_minute": 30.0,
                "saves_sent_copies": True,
            },
        },
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


def preset_values(preset: object, protocol: object) -> Values:
    """Return the defaults of a preset's servers with a protocol; none for an unknown one."""
    return PRESETS.get(str(preset), {}).get(str(protocol), {})
