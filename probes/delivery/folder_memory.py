"""What earlier polls found in one folder, and so when its copies arrived."""

from __future__ import annotations

from dataclasses import dataclass, field

from probes.delivery.arrivals import Sighting
from probes.delivery.mailboxes.mailbox import Folder


@dataclass(slots=True)
class FolderMemory:
    """What earlier polls found in one folder."""

    complete_at: float = float("-inf")  # when the latest poll that read everything began
    listed_at: float = float("-inf")  # when the latest poll that listed the copies began
    counted: set[str] = field(default_factory=set)  # uids that are accounted for but perhaps not deleted
    sightings: dict[str, Sighting] = field(default_factory=dict)  # of copies that are not accounted for yet

    def see(self, folder: Folder) -> None:
        """Note when new copies arrived: since the latest poll that did not list them.

        They may be read only by a later poll, because there are many, or the server refuses some for now.
        """
        present = set(folder.uids)
        self.counted &= present
        for uid in self.sightings.keys() - present:
            del self.sightings[uid]
        since = Sighting(self.listed_at, folder.listed_at)
        for uid in folder.uids:
            if uid in self.sightings:
                continue
            sighting = since
            if uid in folder.overlooked:
                sighting = Sighting(float("-inf"), folder.listed_at)
            if (told := folder.told(uid)) is not None:
                sighting = Sighting(max(sighting.earliest, told[0]), min(sighting.latest, told[1]))
            self.sightings[uid] = sighting
        self.listed_at = folder.absent_at
