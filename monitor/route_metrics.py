"""Names the metrics of routes that send messages, and builds them from state: what arrived, when, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

from monitor.exposition import Counter, Family, Gauge, Histogram, Info, named
from monitor.labels import Labels, constant
from monitor.ledger.counters import Counters, RouteCounts
from monitor.maintenance import Maintenance
from monitor.state import DELIVERY_BUCKETS, AgentState, DeliveryState
from probes.core.verdict import MessageState

_ALWAYS = dict.fromkeys((MessageState.DELIVERED, MessageState.LOST, MessageState.BOUNCED), 0)
"""States that are counted from 0, so that rules see the first increase."""


_IN_MAINTENANCE = "in_maintenance"
"""The state under which messages are counted that ended in maintenance."""


def _states(known: RouteCounts) -> Mapping[Any, int]:
    """Return how many messages entered each state, as the metrics count them."""
    counted = _ALWAYS | known.counted
    return {**counted, _IN_MAINTENANCE: known.excused} if known.excused else counted


class _Route(NamedTuple):
    """A route, with its labels without and with its cadence."""

    key: tuple[str, str]
    labels: Labels
    paced: Labels
    delivery: DeliveryState


def route_families(state: AgentState, counters: Counters, now: float) -> Iterator[Family]:
    """Yield the metric families of all routes; ``now`` is the time in unix seconds."""
    probes = state.probes
    routes = [
        _Route(key, probe.labels, probe.paced, delivery)
        for key, delivery in list(state.deliveries.items())
        if (probe := probes.get(key)) is not None  # else it was removed just now
    ]
    yield from _messages(routes, counters, state.maintenance, now)
    yield from _deliveries(routes)
    yield from _ways(routes)
    yield from _service_levels(routes)


def _messages(
    routes: list[_Route], counters: Counters, maintenance: Maintenance, now: float
) -> Iterator[Family]:
    counts = [(route, counters.of(route.key)) for route in routes]
    flights = []
    for route, known in counts:
        since = maintenance.counts_from(route.key[0], now)
        flights.append((route.labels, known.flight if since == -inf else known.flight_since(since)))
    yield Counter(
        "mailsonde_messages",
        "Messages that entered a state; the count continues across restarts of the agent. `delivered`, "
        "`lost` and `bounced` are always there, other states from their first message on. Messages that "
        "ended in maintenance count as `in_maintenance`, whatever their end.",
        ((route.paced, _states(known)) for route, known in counts),
        by=named("state"),
    )
    yield Gauge(
        "mailsonde_messages_in_flight",
        "Messages in flight.",
        ((labels, flight.messages) for labels, flight in flights),
    )
    yield Gauge(
        "mailsonde_oldest_in_flight_timestamp_seconds",
        "When the oldest message in flight was created, without those from before the end of a "
        "maintenance; 0 if there is none.",
        ((labels, flight.oldest_at or 0) for labels, flight in flights),
    )
    yield Gauge(
        "mailsonde_oldest_intent_timestamp_seconds",
        "When the oldest message that is not handed over yet was created, if there is one.",
        ((labels, flight.oldest_intent_at) for labels, flight in flights if flight.intents),
    )


def _deliveries(routes: list[_Route]) -> Iterator[Family]:
    yield Histogram(
        "mailsonde_delivery_seconds",
        "Time from connecting until visible in the mailbox, for delivered messages only.",
        ((route.paced, route.delivery.histogram) for route in routes),
        DELIVERY_BUCKETS,
    )
    yield Counter(
        "mailsonde_slow_deliveries",
        "Deliveries that took at least the route's threshold `slow`.",
        ((route.paced, route.delivery.slow) for route in routes),
    )
    yield Gauge(
        "mailsonde_delivery_last_seconds",
        "Delivery latency of the last message to arrive whose latency could be measured.",
        ((route.labels, route.delivery.last) for route in routes if route.delivery.last is not None),
    )
    yield Gauge(
        "mailsonde_delivery_uncertainty_seconds",
        "Maximum difference between the true and the published latency of that message, in either direction.",
        (
            (route.labels, route.delivery.uncertainty)
            for route in routes
            if route.delivery.uncertainty is not None
        ),
    )
    yield Counter(
        "mailsonde_arrival_issues",
        "Arrivals in the junk folder or marked as junk, and arrivals with altered content.",
        ((route.paced, route.delivery.arrival_issues) for route in routes),
        by=named("issue"),
    )


def _ways(routes: list[_Route]) -> Iterator[Family]:
    """Yield what the header section of the last arrival says about its route."""
    yield Gauge(
        "mailsonde_hop_delay_seconds",
        "Where the last arrival waited, by the stamps and clocks of the hosts on its route.",
        ((route.labels, route.delivery.hop_seconds) for route in routes),
        by=named("position"),
    )
    yield Gauge(
        "mailsonde_hops_skewed",
        "Hops of the last arrival with an impossible timestamp, if there were any.",
        ((route.labels, route.delivery.hops_skewed) for route in routes if route.delivery.hops_skewed),
    )
    yield from _exchange(routes)
    yield Info(
        "mailsonde_authentication",
        "What the receiving host found about the last arrival: its results (RFC 8601) by method.",
        (
            (route.labels, route.delivery.authentication)
            for route in routes
            if route.delivery.authentication is not None
        ),
    )


def _exchange(routes: list[_Route]) -> Iterator[Family]:
    """Yield what Exchange wrote into the last arrival; only routes through Exchange have these series."""
    told = [(route, report) for route in routes if (report := route.delivery.exchange) is not None]
    yield Gauge(
        "mailsonde_exchange_stage_seconds",
        "Where the last arrival spent its time inside Exchange, by Exchange's own fields.",
        ((route.labels, report.stages) for route, report in told),
        by=named("stage"),
    )
    yield Gauge(
        "mailsonde_exchange_end_to_end_seconds",
        "How long the last arrival was inside Exchange, by Exchange's own total.",
        ((route.labels, report.end_to_end) for route, report in told if report.end_to_end is not None),
    )
    yield Info(
        "mailsonde_exchange_filter",
        "What Exchange's spam filter said of the last arrival: SCL, SFV and CAT.",
        ((route.labels, report.filtered) for route, report in told if report.filtered is not None),
    )


def _service_levels(routes: list[_Route]) -> Iterator[Family]:
    with_objective = [(route, slo) for route in routes if (slo := route.delivery.slo) is not None]
    yield Counter(
        "mailsonde_slo_runs",
        "Runs of a route with an objective: good if the message arrived in time, else bad.",
        ((route.paced, route.delivery.slo_runs) for route, _ in with_objective),
        by=named("result"),
    )
    yield Gauge(
        "mailsonde_slo_objective_ratio",
        "Target share of good runs.",
        ((route.labels, constant(slo.objective)) for route, slo in with_objective),
    )
    yield Gauge(
        "mailsonde_slo_within_seconds",
        "How long the message of a good run may take.",
        ((route.labels, constant(slo.within)) for route, slo in with_objective),
    )
