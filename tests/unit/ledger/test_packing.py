"""The compression of runs in the history."""

from __future__ import annotations

import hashlib
import zlib

import pytest

from monitor.ledger import packing
from monitor.ledger.packing import packed, unpacked


@pytest.mark.parametrize("text", ["", "{}", "Grüße ✉", "S: 250-PIPELINING " * 10_000])
def test_a_text_is_read_as_it_was_packed(text: str) -> None:
    """Every text comes back unchanged, and one from before texts were packed is read as it is."""
    assert unpacked(packed(text)) == text
    assert unpacked(text) == text


def test_the_dictionary_stays_the_same() -> None:
    """With another dictionary, the runs in existing ledgers could not be read any more."""
    assert (
        hashlib.sha256(packing._DICTIONARY).hexdigest()
        == "32d7bd613125b096bed17963e90f8c6ced0c4df570456f1a45e3f4a58c223353"
    )


def test_broken_octets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Octets that are cut, damaged, without our dictionary, or expand to too much, are a ValueError."""
    for octets in (b"", b"\xff" * 20, packed("x" * 1000)[:-5], zlib.compress(b"x")[:-1]):
        with pytest.raises(ValueError, match=r"is cut, or longer|cannot be decompressed"):
            unpacked(octets)
    monkeypatch.setattr(packing, "LIMIT", 1000)
    with pytest.raises(ValueError, match="longer than 1000 octets"):
        unpacked(packed("x" * 10_000_000))
