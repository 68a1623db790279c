"""What every probe is: settings and a context in, one verdict a run out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from probes.core.context import Context
from probes.core.finding import Check
from probes.core.reasons import Area
from probes.core.settings import ProbeSettings
from probes.core.verdict import Run, Verdict


class Probe(ABC):
    """One named, scheduled check.

    A subclass names its settings model, the areas that its reasons come from and the checks
    that it may have findings of. It raises `probes.core.faults.ProbeFault` for an expected
    failure: the runner makes the verdict, with the phases measured so far. Any other exception
    counts as a defect.
    """

    settings: ProbeSettings
    settings_model: ClassVar[type[ProbeSettings]]
    areas: ClassVar[frozenset[Area]]
    checks: ClassVar[frozenset[Check]] = frozenset()

    def __init__(self, settings: ProbeSettings, context: Context) -> None:
        self.settings = settings
        self.context = context

    @property
    @abstractmethod
    def target(self) -> str:
        """The configured server or domain that the run is about: the metrics' ``target`` label."""

    @property
    def sub_probes(self) -> Sequence[Probe]:
        """The probes that the latest run found and that run next, each with a target of its own."""
        return ()

    @property
    def targets(self) -> frozenset[str]:
        """Its own target and those of its sub-probes: each is a route."""
        return frozenset({self.target, *(sub_probe.target for sub_probe in self.sub_probes)})

    @abstractmethod
    async def run(self, run: Run) -> Verdict:
        """Do the check once, within the deadline that the caller holds."""
