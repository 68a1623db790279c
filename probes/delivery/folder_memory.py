"""What earlier polls found in one folder, and so when its copies arrived."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from probes.delivery.arrivals import Sighting
from probes.delivery.mailboxes.mailbox import Folder

VANISHED_KEPT = 1000
"""How many copies are remembered that were no longer listed before they could be read."""


@dataclass(slots=True)
class FolderMemory:
    """What earlier polls found in one folder."""

    complete_at: float = float("-inf")  # when the latest poll that read everything began
    listed_at: float = float("-inf")  # when the latest poll that listed the copies began
    counted: set[str] = field(default_factory=set)  # uids that are accounted for but perhaps not deleted
    sightings: dict[str, Sighting] = field(default_factory=dict)  # of copies that are not accounted for yet
    vanished: dict[str, Sighting] = field(default_factory=dict)  # of such copies that are not listed now

    def see(self, folder: Folder) -> None:
        """Note when new copies arrived: since the latest poll that did not list them.

        They may be read only by a later poll, because there are many, or the server refuses some for now. A
        copy may be away meanwhile, or be back under another uid: it arrived before it was first listed.
        """
        present = set(folder.uids)
        self.counted &= present
        gone = {uid: self.sightings.pop(uid) for uid in self.sightings.keys() - present}
        since = Sighting(min([self.listed_at, *(one.earliest for one in gone.values())]), folder.listed_at)
        self.vanished |= gone
        for uid in list(islice(self.vanished, max(0, len(self.vanished) - VANISHED_KEPT))):
            del self.vanished[uid]
        for uid in folder.uids:
            if uid in self.sightings:
                continue
            if (seen_before := self.vanished.pop(uid, None)) is not None:
                self.sightings[uid] = seen_before
                continue
            sighting = since
            if uid in folder.overlooked:
                sighting = Sighting(float("-inf"), folder.listed_at)
            if (told := folder.told(uid)) is not None:
                sighting = Sighting(max(sighting.earliest, told[0]), min(sighting.latest, told[1]))
            self.sightings[uid] = sighting
        self.listed_at = folder.absent_at
