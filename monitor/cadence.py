"""Classes of intervals: rules read a class's series over windows that suit its longest interval."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CADENCES: Mapping[float, str] = MappingProxyType(
    {15.0: "15s", 60.0: "1m", 300.0: "5m", 900.0: "15m", 3600.0: "1h", 21600.0: "6h", 86400.0: "1d"}
)
"""The label `cadence` of each class, by its longest interval in seconds; the last is the longest allowed."""


def cadence(interval: float) -> str:
    """Return the class of an interval in seconds: the first whose longest interval is not below it."""
    return next(label for longest, label in CADENCES.items() if interval <= longest)
