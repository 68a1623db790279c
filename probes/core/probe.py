"""What every probe is: settings and tools in, one verdict a run out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from probes.core.reasons import Area
from probes.core.settings import ProbeSettings
from probes.core.verdict import Run, Verdict
from probes.delivery.message_life import Message
from probes.delivery.tools import Tools


class Probe(ABC):
    """One named, scheduled check.

    A subclass names its settings model and the areas that its reasons come from, and
    raises `probes.core.faults.ProbeFault` for an expected failure: the runner makes the
    verdict, with the phases measured so far. Any other exception counts as a defect.
    """

    settings: ProbeSettings
    settings_model: ClassVar[type[ProbeSettings]]
    areas: ClassVar[frozenset[Area]]

    def __init__(self, settings: ProbeSettings, tools: Tools) -> None:
        self.settings = settings
        self.tools = tools

    @classmethod
    def made_for(cls, settings: ProbeSettings, tools: Tools) -> Probe:
        """Return the probe that does what ``settings`` ask for."""
        return cls(settings, tools)

    @property
    @abstractmethod
    def target(self) -> str:
        """The configured server or domain that the run is about: the metrics' ``target`` label."""

    @property
    def sends_messages(self) -> bool:
        """Whether its own runs, not only its sub-probes', send messages that the ledger knows."""
        return False

    @property
    def mailbox(self) -> str | None:
        """The mailbox that its messages arrive in, for a probe that sends some."""
        return None

    @property
    def sub_probes(self) -> Sequence[Probe]:
        """What the latest run found that is to be run now, each with a target of its own."""
        return ()

    @property
    def targets(self) -> frozenset[str]:
        """Its own target and those of its sub-probes: each is a route."""
        return frozenset({self.target, *(sub_probe.target for sub_probe in self.sub_probes)})

    def follow(self, message: Message) -> object:  # noqa: B027 # most kinds send nothing
        """Watch for a message that an earlier process sent for this probe."""

    @abstractmethod
    async def run(self, run: Run) -> Verdict:
        """Do the check once, within the deadline that the caller holds."""
