"""Counts how many entries of a mapping some work visits, for tests that its cost does not grow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any


class Visited(OrderedDict[Any, Any]):
    """A mapping that counts the entries which are reached by walking through it, not by their key."""

    visits = 0

    def __iter__(self) -> Iterator[Any]:
        for key in super().__iter__():
            self.visits += 1
            yield key

    def items(self) -> Any:
        return ((key, self[key]) for key in self)

    def values(self) -> Any:
        return (self[key] for key in self)
