"""When copies arrived, as far as the polls of a folder show."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from probes.delivery.arrivals import Sighting
from probes.delivery.folder_memory import VANISHED_KEPT, FolderMemory


def listing(at: float, uids: Sequence[str]) -> Any:
    """Return a folder as a poll lists it that takes a tenth of a second."""
    return SimpleNamespace(
        uids=uids, absent_at=at, listed_at=at + 0.1, overlooked=frozenset(), told=lambda _: None
    )


def test_copy_arrived_between_two_listings() -> None:
    """A copy arrived after the latest listing without it, whenever it is read."""
    memory = FolderMemory()
    for at, uids in ((10.0, []), (20.0, ["1"]), (30.0, ["1", "2"])):
        memory.see(listing(at, uids))
    assert memory.sightings == {"1": Sighting(10.0, 20.1), "2": Sighting(20.0, 30.1)}


def test_copy_that_returns_under_another_uid_keeps_its_earliest_time() -> None:
    """If the server renumbers the folder before a copy was read, it does not look like a later arrival."""
    memory = FolderMemory()
    for at, uids in ((10.0, []), (100.0, ["1"]), (160.0, ["9001"])):
        memory.see(listing(at, uids))
    assert memory.sightings == {"9001": Sighting(10.0, 160.1)}


def test_copy_that_was_set_aside_for_a_while_keeps_its_time() -> None:
    """A copy that the server refused to show arrived when it was first listed, not at its second chance."""
    memory = FolderMemory()
    for at, uids in ((0.0, []), (10.0, ["1"]), (20.0, []), (320.0, ["1"])):
        memory.see(listing(at, uids))
    assert memory.sightings == {"1": Sighting(0.0, 10.1)}


def test_vanished_copies_are_forgotten_in_the_end() -> None:
    """However many copies come and go unread, the memory of them is bounded."""
    memory = FolderMemory()
    for number in range(3 * VANISHED_KEPT):
        memory.see(listing(float(number), [str(number)]))
    assert len(memory.vanished) == VANISHED_KEPT
