"""What every probe gets in addition to its settings."""

from __future__ import annotations

from dataclasses import dataclass

from probes.core.clock import Clock
from probes.core.settings import Site


@dataclass(frozen=True, slots=True)
class Context:
    """The clock to measure with, and the configured servers and mailboxes."""

    clock: Clock
    site: Site
