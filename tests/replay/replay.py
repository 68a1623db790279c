"""A replay from incidents to figures: simulated agent, Prometheus' evaluation, Alertmanager's paging."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from monitor.cadence import CADENCES, cadence
from monitor.config.load import load
from monitor.rendering import render_alerts, write_files
from tests.replay.incidents import KINDS, Kind, schedule
from tests.replay.judgement import firing, metrics_of
from tests.replay.paging import Pager, Policy
from tests.replay.scoring import Score, score
from tests.replay.week import Week

SITE = Path(__file__).with_name("site.yaml")
EXCHANGE_SITE = Path(__file__).with_name("exchange.yaml")
ALERTMANAGER = Path(__file__).parents[2] / "alerts/alertmanager.yaml"

STEP = 60.0
"""Seconds between two scrapes, and between two evaluations, unless told otherwise."""


def replay(
    seed: int,
    length: float,
    aftermath: float,
    kinds: Iterable[Kind] = KINDS,
    step: float = STEP,
    site: Path = SITE,
) -> Score:
    """Play one incident of each kind within ``length`` seconds, and return the result of each.

    Notifications until ``aftermath`` seconds after an incident's end belong to it. Prometheus scrapes and
    evaluates every ``step`` seconds.
    """
    os.environ.setdefault("TEST_SECRET", "x")  # the password of accounts that are never used
    configuration = load(site)
    incidents = schedule(seed, length, aftermath, kinds)
    with tempfile.TemporaryDirectory() as directory:
        rules = Path(directory)
        intervals = {cadence(probe.interval) for probe in configuration.probes}
        used = {longest: label for longest, label in CADENCES.items() if label in intervals}
        write_files(render_alerts(configuration, cadences=used), rules)  # promtool is slower with all
        recorded = Week(configuration, incidents, seed, metrics_of(rules)).play(length, step)
        evaluated = firing(rules, recorded, step)
    pager = Pager(Policy(ALERTMANAGER))
    told = [notification for now, alerts in evaluated for notification in pager.advance(now, alerts)]
    return score(incidents, told, aftermath)
