"""What a probe is handed besides its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from probes.core.clock import Clock
from probes.core.settings import Site
from probes.delivery.message_life import Ledger
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner


@dataclass(frozen=True, slots=True)
class Tools:
    """The clock, the configured servers and mailboxes, and what round trips share.

    ``instance`` names this process in the ledger: it answers for the messages that carry it.
    """

    clock: Clock
    site: Site
    ledger: Ledger
    signer: TokenSigner
    watchers: Mapping[str, MailboxWatcher]
    instance: str
