"""Objects that replace each other when the configuration is reloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Succession(Generic[T]):
    """What all objects that have replaced each other share, so that the first keeps alive only the latest.

    A run may hold the first for hours, and the garbage collector never scans those made at the agent's start.
    """

    latest: T
