"""What every probe is: settings and tools in, one verdict a run out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from probes.reasons import Area
from probes.settings import ProbeSettings
from probes.tools import Tools
from probes.verdict import Run, Verdict


class Probe(ABC):
    """One named, scheduled check.

    A subclass names its settings model and the areas that its reasons come from, and
    raises `probes.faults.ProbeFault` for an expected failure: the runner makes the
    verdict, with the phases measured so far. Any other exception counts as a defect.
    """

    settings: ProbeSettings
    settings_model: ClassVar[type[ProbeSettings]]
    areas: ClassVar[frozenset[Area]]
    sends_messages: ClassVar[bool] = False

    def __init__(self, settings: ProbeSettings, tools: Tools) -> None:
        self.settings = settings
        self.tools = tools

    @property
    @abstractmethod
    def target(self) -> str:
        """The configured server or domain that the run is about: the metrics' ``target`` label."""

    @abstractmethod
    async def run(self, run: Run) -> Verdict:
        """Do the check once, within the deadline that the caller holds."""
