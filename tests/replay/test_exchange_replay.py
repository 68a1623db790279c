"""Hours with incidents of Exchange: each that matters is told once, under the name of its cause."""

from __future__ import annotations

import pytest

from tests.replay.exchange_incidents import KINDS
from tests.replay.incidents import MINUTE, Expected
from tests.replay.replay import EXCHANGE_SITE, replay
from tests.replay.scoring import Score

AFTERMATH = 25 * MINUTE
SHORT = [kind for kind in KINDS if kind.minutes <= 30]
"""`python -m tests.benchmarks alerts` replays the others too, with other seeds."""


@pytest.fixture(scope="module")
def hours() -> Score:
    length = sum(MINUTE * kind.minutes + AFTERMATH for kind in SHORT) + 2 * AFTERMATH
    return replay(seed=7, length=length, aftermath=AFTERMATH, kinds=SHORT, site=EXCHANGE_SITE)


def test_no_incident_is_missed(hours: Score) -> None:
    """Each incident is told under the name of its cause, to whom it concerns."""
    assert hours.missed == []
    assert {one.incident.kind for one in hours.told} == set(SHORT)


def test_nobody_is_called_for_nothing(hours: Score) -> None:
    """Neither a lost run, nor a certificate that lasts for weeks, nor normal operation pages anybody."""
    assert [one.incident.kind.name for one in hours.told if one.false_pages] == []
    assert hours.strays == []


def test_one_incident_is_one_page(hours: Score) -> None:
    """However many directories and nodes see a fault, on-call is paged once."""
    paged = [one for one in hours.told if one.incident.kind.expected is Expected.PAGE]
    assert {one.incident.kind.name: len(one.pages) for one in paged if len(one.pages) != 1} == {}


def test_a_page_names_the_cause(hours: Score) -> None:
    """No page lists the directories of a node, or the nodes of a directory, one by one."""
    listed = {
        one.incident.kind.name
        for one in hours.told
        for page in one.pages
        for alert in page.firing
        if dict(alert)["alertname"] == "MailsondeProbeDown"
    }
    assert listed == {"Exchange down"}
