"""What a server of each protocol has: its usual port, its ways to log in, and connections that stay open."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

DEFAULT_PORTS = MappingProxyType(
    {
        ("smtp", "starttls"): 587,
        ("smtp", "implicit"): 465,
        ("smtp", "opportunistic"): 25,
        ("smtp", "none"): 25,
        ("pop3", "starttls"): 110,
        ("pop3", "implicit"): 995,
        ("pop3", "none"): 110,
        ("imap", "starttls"): 143,
        ("imap", "implicit"): 993,
        ("imap", "none"): 143,
        ("graph", "implicit"): 443,
        ("graph", "none"): 80,
    }
)
"""The standard TCP port of a protocol with each kind of encryption."""


SaslMechanism = Literal["plain", "login", "cram-md5", "ntlm", "gssapi", "xoauth2", "oauthbearer"]
"""The SASL mechanisms of `probes.protocols.sasl`, in lower case."""

AUTH_METHODS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "smtp": frozenset(get_args(SaslMechanism)),
        "pop3": frozenset({*get_args(SaslMechanism), "user", "apop"}),
        "imap": frozenset(get_args(SaslMechanism)),
        "graph": frozenset(),
    }
)
"""The login methods of each protocol."""


KEEP_CONNECTIONS = frozenset({"imap", "graph"})
"""The protocols by which a watched mailbox keeps a connection open."""
