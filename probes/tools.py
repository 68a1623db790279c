"""What a probe is handed besides its settings."""

from __future__ import annotations

from dataclasses import dataclass

from probes.clock import Clock
from probes.settings import Site


@dataclass(frozen=True, slots=True)
class Tools:
    """The clock, and the configured servers and mailboxes."""

    clock: Clock
    site: Site
