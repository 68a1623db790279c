"""Every fuzz target, by its name."""

from __future__ import annotations

from tests.fuzz import cloud, configuration, dialogues, exchange, live_page, messages, protocols
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (protocols, dialogues, exchange, cloud, messages, configuration, live_page)
    for target in module.TARGETS
}
