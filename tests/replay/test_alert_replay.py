"""A day with one incident of nearly every kind: on-call is paged once for each that matters."""

from __future__ import annotations

import pytest

from tests.replay.incidents import KINDS, MINUTE, OVERRUN_AFTER, Expected
from tests.replay.replay import replay
from tests.replay.scoring import Score

AFTERMATH = 30 * MINUTE
SHORT = [kind for kind in KINDS if kind.minutes <= 60]


@pytest.fixture(scope="module")
def day() -> Score:
    length = sum(MINUTE * kind.minutes + AFTERMATH for kind in SHORT) + 2 * AFTERMATH
    return replay(seed=7, length=length, aftermath=AFTERMATH, kinds=SHORT)


def test_no_incident_is_missed(day: Score) -> None:
    """For every incident that requires it, the right receivers get one of its alerts."""
    assert day.missed == []
    assert {one.incident.kind for one in day.told} == set(SHORT)


def test_nobody_is_called_for_nothing(day: Score) -> None:
    """A failed run, a restart, a removed probe and the like page nobody; neither does normal operation."""
    called = [one.incident.kind.name for one in day.told if one.false_pages]
    assert called == []
    assert day.strays == []


def test_one_incident_is_at_most_one_page(day: Score) -> None:
    """However many probes see a fault, on-call is paged once, or notified within an open group."""
    paged = [one for one in day.told if one.incident.kind.expected is Expected.PAGE]
    assert {one.incident.kind.name: len(one.pages) for one in paged if len(one.pages) > 1} == {}
    assert [one.incident.kind.name for one in paged if not one.pages and not one.updates] == []


def test_faults_are_told_in_time(day: Score) -> None:
    """An outage pages within five minutes, held or lost mail within three."""
    delays = {one.incident.kind.name: one.delay for one in day.told if one.pages}
    down = ("submission server down", "POP3 server down", "IMAP server down", "agent killed", "maintenance")
    late = [name for name in down if name in delays and delays[name] > 5 * MINUTE]
    mail = ("queue held", "one message lost", "a burst lost", "a bounce")
    late += [name for name in mail if name in delays and delays[name] > 3 * MINUTE]
    assert late == []
    assert len(delays) >= 10
    after_pause = delays["maintenance, overrun"] - OVERRUN_AFTER
    assert 0 < after_pause <= 5 * MINUTE
