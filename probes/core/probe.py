"""The interface of all probes: made from settings and a context, they return a verdict for each run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from probes.core.context import Context
from probes.core.finding import Check
from probes.core.reasons import Area
from probes.core.settings import ProbeSettings
from probes.core.verdict import Run, Verdict


class Probe(ABC):
    """One named, scheduled check.

    A subclass names its settings model, the areas of its possible reasons, and the checks that it may have
    findings for. For an expected failure it raises `probes.core.faults.ProbeFault`; the runner makes the
    verdict, with the phases measured so far. Any other exception counts as a defect.
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
        """The server or domain that the probe checks; the ``target`` label of its metrics."""

    @property
    def place(self) -> tuple[str, int] | None:
        """The host and port that the probe connects to, if no entry of `servers` has them."""
        return None

    @property
    def labels(self) -> Mapping[str, str]:
        """What its target is part of, as labels of `mailsonde_probe_info`: alerts group targets by them."""
        return {}

    @property
    def siblings(self) -> Sequence[Probe]:
        """The other probes of its entry, each with its own target. They run at the same time."""
        return ()

    @property
    def sub_probes(self) -> Sequence[Probe]:
        """The probes that the latest run found, each with its own target. They run after it."""
        return ()

    @property
    def targets(self) -> frozenset[str]:
        """The targets of this probe, its siblings and its sub-probes, one per route."""
        return frozenset(probe.target for probe in (self, *self.siblings, *self.sub_probes))

    def take_over(self, earlier: Probe) -> None:  # noqa: B027 # most kinds find nothing that lasts
        """Begin with what an ``earlier`` probe of the same name and kind has found, if it still applies."""

    def move(self, context: Context) -> None:
        """Use another context, in which everything that the settings refer to is the same as before."""
        for probe in (self, *self.siblings, *self.sub_probes):
            probe.context = context

    @abstractmethod
    async def run(self, run: Run) -> Verdict:
        """Do the check once. The caller enforces the deadline."""
