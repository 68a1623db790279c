"""No input breaks the parsers of untrusted octets or the configuration. See `tests.fuzz.target`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
FOUND = [
    pytest.param(target, path, id=f"{name}/{path.name}")
    for name, target in TARGETS.items()
    for path in target.found()
]

PUMPED = 16
"""Inputs of each target that are made longer here; `make fuzz` does it with all."""


@EVERY
def test_what_is_sound_passes(target: Target) -> None:
    """Inputs from real servers and people meet all requirements."""
    for seed in target.seeds:
        target.run(seed)


@pytest.mark.parametrize(("target", "path"), FOUND)
def test_what_was_found_stays_mended(target: Target, path: Path) -> None:
    """An input that once broke a target does not break it again."""
    target.replay(path.read_bytes())


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return valid inputs with some octets replaced, and inputs made of a target's pieces."""
    piece = st.sampled_from([*target.pieces, b""]) | st.binary(max_size=5)
    place = st.floats(0, 1, exclude_max=True)
    edits = st.lists(st.tuples(place, st.integers(0, 12), piece), min_size=1, max_size=4)
    mutated = st.builds(_edited, st.sampled_from(target.seeds), edits)
    return mutated | st.lists(piece, max_size=20).map(b"".join)


def _edited(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for place, removed, added in edits:
        at = int(place * (len(seed) + 1))
        seed = seed[:at] + added + seed[at + removed :]
    return seed


@EVERY
def test_no_input_breaks_it(target: Target) -> None:
    """For any octets, the result is one of those that the code documents."""

    @given(inputs(target))
    @settings(max_examples=60)
    def run(octets: bytes) -> None:
        target.run(octets)

    run()


@EVERY
def test_the_time_grows_with_the_length(target: Target) -> None:
    """Input of twice the length takes about twice as long, with any repetition: nothing is quadratic."""
    pumped = list(target.pumped())
    for beginning, piece, end in islice(pumped, 0, None, max(1, len(pumped) // PUMPED)):
        assert not target.grows_too_fast(beginning, piece, end), f"{piece!r} after {beginning[-40:]!r}"
