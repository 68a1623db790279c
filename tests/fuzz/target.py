"""What a fuzz target is: one parser of foreign octets, and what holds of it whatever it is given.

Hypothesis, atheris and the replay of what was found all run the same targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import thread_time
from typing import TypeVar

from probes.core.faults import DETAIL_LIMIT, ProbeFault

REPEAT = b"%repeat%"
"""Stands on both sides of what is to be repeated, in a kept input that once took too long."""

FOUND = Path(__file__).parent / "found"
"""The inputs that once broke a target, one folder a target."""

DOUBLED = 2.8
"""How many times longer input of twice the length may take: linear work takes 2 times, quadratic 4 times."""

NEGLIGIBLE = 0.05
"""Seconds that no input is too long for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A function that raises for whatever must not be, and what to try on it.

    ``seeds`` are sound inputs and ``words`` what such inputs are made of. ``limit`` is the length, in octets,
    up to which the code under test reads: times are compared up to it.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    limit: int = 8192

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """What inputs are changed by: its words, and octets that mean something in most formats."""
        return (*self.words, *_PIECES)

    def found(self) -> list[Path]:
        """Return the kept inputs that broke it in the past."""
        return sorted((FOUND / self.name).glob("*"))

    def pumped(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield prefixes, pieces to repeat, and suffixes."""
        for seed in self.seeds:
            for at in sorted({0, len(seed) // 3, 2 * len(seed) // 3, len(seed)}):
                for piece in self.pieces:
                    yield seed[:at], piece, seed[at:]

    def replay(self, octets: bytes) -> None:
        """Run a kept input again."""
        if octets.count(REPEAT) == 2:
            assert not self.grows_too_fast(*octets.split(REPEAT)), "the time grows too fast with the length"
        else:
            self.run(octets)

    def grows_too_fast(self, beginning: bytes, piece: bytes, end: bytes) -> bool:
        """Return whether the time grows faster than the length when ``piece`` is repeated, up to ``limit``.

        It has to grow too much with each of two doublings, in each of three attempts: what is found in the
        shorter input may be beyond a limit in the longer one, and then everything is searched.
        """
        most = max(4, self.limit // len(piece))
        sizes = [beginning + piece * count + end for count in (most // 4, most // 2, most)]
        if self.seconds(sizes[-1]) < NEGLIGIBLE:
            return False
        return all(
            later > DOUBLED * earlier
            for _ in range(3)
            for earlier, later in pairwise([self.seconds(octets) for octets in sizes])
        )

    def seconds(self, octets: bytes) -> float:
        """Return the processor time of one run."""
        begun = thread_time()
        self.run(octets)
        return thread_time() - begun


_PIECES = (
    *(b" ", b"\t", b"\r\n ", b"(", b'"', b"\\", b"[", b"<", b"a", b"0", b".", b",", b";", b"="),
    *(b"\0", b"\x1b", b"\x7f", b"\xff", "ä\x85\u2028\u202e".encode()),  # what must never be shown as it is
)


def or_fault(call: Callable[..., T], *arguments: object) -> T | None:
    """Return the result of ``call``, or ``None`` for its only allowed exception, if that is valid."""
    try:
        return call(*arguments)
    except ProbeFault as fault:
        require_shown(fault.detail)
        return None


def require_shown(text: str, limit: int = DETAIL_LIMIT) -> None:
    """Require that ``text`` is safe to show: printable, and of at most ``limit`` characters."""
    assert text.isprintable(), f"not printable: {text!r}"
    assert len(text) <= limit, f"{len(text)} characters"
