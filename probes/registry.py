"""The kinds of probe, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probes.autodiscover import Autodiscover
from probes.core.probe import Probe
from probes.delivery.message_probe import MessageProbe
from probes.exchange import Exchange
from probes.http import Http
from probes.imap import Imap
from probes.mx import Mx
from probes.pop3 import Pop3
from probes.roundtrip import Roundtrip
from probes.smtp import Smtp

KINDS: Mapping[str, type[Probe]] = MappingProxyType(
    {
        "roundtrip": Roundtrip,
        "smtp": Smtp,
        "pop3": Pop3,
        "imap": Imap,
        "mx": Mx,
        "http": Http,
        "exchange": Exchange,
        "autodiscover": Autodiscover,
    }
)

MESSAGE_KINDS = frozenset(name for name, kind in KINDS.items() if issubclass(kind, MessageProbe))
"""The kinds that send messages."""
