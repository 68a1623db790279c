"""Which copies in the sent folder are still looked for, and what that costs."""

from __future__ import annotations

from probes.delivery.sent_copies import LOOKED_FOR, SentCopies
from tests.fakes.clock import InstantClock
from tests.fakes.visits import Visited


def test_a_poll_visits_few_copies() -> None:
    """Whether copies are expected costs the same for one and for a thousand; those past their time go."""
    clock = InstantClock()
    copies = SentCopies(clock, are_kept=True)
    copies._settled = visited = Visited()
    for number in range(1000):
        clock.now += 0.01
        copies.expect(str(number))
    for _ in range(10):
        assert copies.are_expected
        assert copies.begin_poll()
    assert visited.visits <= 20
    clock.now += LOOKED_FOR - 5.0
    assert copies.are_expected
    assert 450 <= len(visited) <= 550
    clock.now += 5.1
    assert not copies.are_expected
    assert not visited
