"""What every probe gets in addition to its settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Tokens
from probes.core.settings import Site


@dataclass(frozen=True, slots=True)
class Context:
    """The clock to measure with, the configured servers and mailboxes, and the sources of their tokens."""

    clock: Clock
    site: Site
    tokens: Tokens = field(default_factory=lambda: NO_TOKENS, kw_only=True)
