"""Service level objectives: how much error budget is left, how fast it burns, and what burned it."""

from __future__ import annotations

from boards import board
from grafana_foundation_sdk.builders import dashboard
from panels import OF_ROW, AnyPanel, Column, gauge, graph, listing, to
from queries import BY_ROUTE, DELIVERIES, MOST, PROBE, WORST, Query, mean

BUDGET_COLOURS = [("red", None), ("orange", 0.1), ("green", 0.5)]
"""Thresholds for the share of an error budget that is left."""

BURN_LIMITS = {"1h": 14.4, "6h": 6.0, "3d": 1.0}
"""Factors above which the alerts fire, as in alerts/thresholds.yaml."""


def slo() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "SLO",
        "Objectives of routes: the error budget left over 30 days, how fast it burns, and the runs that "
        "burned it.",
        [*_budgets(), *_burning(), *_causes()],
        rank=burn_rate("1h", PROBE),
        since="now-7d",
        refresh="5m",  # windows of 30 days are expensive and change slowly
    )


def burn_rate(window: str, matchers: str = WORST) -> str:
    """Return PromQL for the burn rate: 1 uses up the error budget in exactly 30 days. Empty without runs."""
    bad = f'sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{result="bad",{matchers}}}[{window}]))'
    runs = f"sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{{matchers}}}[{window}]))"
    allowed = f"(1 - max {BY_ROUTE} (mailsonde_slo_objective_ratio{{{matchers}}}))"
    return f"{bad} / ({runs} > 0) / {allowed}"


def budget_left() -> str:
    """Return PromQL for the share of the 30-day error budget that is left; below 0 if overdrawn."""
    return f"1 - {burn_rate('30d')}"


def _budgets() -> list[AnyPanel]:
    return [
        gauge(
            1,
            (0, 0, 12, 8),
            "Error budget left",
            Query(budget_left()),
            f"Share of the 30-day error budget that is left, for the {MOST} routes whose budget burned "
            "fastest in the last hour. Below 0, the objective is missed. Red: stop other changes and fix "
            "this route first. Click to open its deliveries.",
            BUDGET_COLOURS,
            links=[to("Delivery")],
        ),
        listing(
            2,
            (12, 0, 12, 8),
            "Objectives",
            [
                Column(
                    f"max {BY_ROUTE} (mailsonde_slo_objective_ratio{{{WORST}}})", "Objective", "percentunit"
                ),
                Column(f"max {BY_ROUTE} (mailsonde_slo_within_seconds{{{WORST}}})", "Within", "s"),
                Column(
                    f'sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{result="good",{WORST}}}[30d])) / '
                    f"(sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{{WORST}}}[30d])) > 0)",
                    "Good in 30 days",
                    "percentunit",
                ),
                Column(
                    f'sum {BY_ROUTE} (increase(mailsonde_slo_runs_total{{result="bad",{WORST}}}[30d]))',
                    "Bad in 30 days",
                    "short",
                ),
            ],
            "The objective of each route, and its results. If no run is ever bad, raise the objective. If "
            "it is missed every month, fix the route or lower the objective.",
            sort=("Good in 30 days", False),
            links=[to("Delivery", OF_ROW)],
        ),
        graph(
            3,
            (0, 8, 24, 8),
            "Error budget left, over time",
            [Query(budget_left())],
            "Each point covers the previous 30 days. A step down is an incident: hover over it to see its "
            "alerts. A steady slope means that the route does not meet its objective.",
            unit="percentunit",
            least=None,
            limits=[("red", None), ("transparent", 0)],
            links=[to("Delivery")],
            interval="6h",  # each point reads 30 days
        ),
    ]


def _burning() -> list[AnyPanel]:
    advice = {
        "1h": (
            "Above the dashed line, 2 % of the budget is used up in an hour. If this continues, the "
            "critical alert fires. Act now: check deliveries and servers."
        ),
        "6h": (
            "Above the dashed line, 5 % of the budget is used up in 6 hours. If this continues, the "
            "critical alert fires. Act now, even if the last hour looks better."
        ),
        "3d": (
            "Above the dashed line, the budget will not last 30 days. If this continues, the warning "
            "fires. Find the cause during office hours: check which runs were bad."
        ),
    }
    return [
        graph(
            number,
            (column, 16, 8, 8),
            f"Burn rate over {window}",
            [Query(burn_rate(window))],
            "How many times faster than allowed the error budget burns. At 1, it lasts exactly 30 days. "
            f"{advice[window]}",
            unit="short",
            limits=[("transparent", None), ("red", limit)],
            links=[to("Delivery")],
        )
        for number, column, (window, limit) in zip((4, 5, 6), (0, 8, 16), BURN_LIMITS.items(), strict=True)
    ]


def _causes() -> list[AnyPanel]:
    return [
        graph(
            7,
            (0, 24, 12, 8),
            "Bad runs",
            [
                Query(
                    f"sum {BY_ROUTE} "
                    f'(increase(mailsonde_slo_runs_total{{result="bad",{WORST}}}[$__rate_interval]))'
                )
            ],
            "Messages that arrived too late or not at all. Click a peak to see its deliveries.",
            unit="short",
            links=[to("Delivery")],
        ),
        graph(
            8,
            (12, 24, 12, 8),
            "Mean delivery time, relative to the objective",
            [Query(f"{mean(DELIVERIES, WORST)} / max {BY_ROUTE} (mailsonde_slo_within_seconds{{{WORST}}})")],
            "Above the dashed line, the mean message arrives too late. Near the line, find out "
            "where messages wait before the budget burns.",
            unit="percentunit",
            limits=[("transparent", None), ("red", 1)],
            links=[to("Delivery")],
        ),
    ]
