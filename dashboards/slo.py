"""Service level objectives: what is left of the error budget, how fast it burns, and what burnt it."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import BY_ROUTE, PROBE, AnyPanel, Column, Query, board, gauge, graph, listing, to

BUDGET_COLOURS = [("red", None), ("orange", 0.1), ("green", 0.5)]
"""Of what is left of an error budget."""

BURN_LIMITS = {"1h": 14.4, "6h": 6.0, "3d": 1.0}
"""Factors above which the alerts fire, as in alerts/thresholds.yaml."""


def slo() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "SLO",
        "Objectives of routes: the error budget left over 30 days, how fast it burns, and the runs that "
        "burnt it.",
        [*_budgets(), *_burning(), *_causes()],
        since="now-7d",
        refresh="5m",  # windows of 30 days are dear, and change slowly
    )


def burn_rate(window: str) -> str:
    """Return PromQL for how many times faster than allowed the error budget burns; none without runs."""
    bad = f'sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{result="bad",{PROBE}}}[{window}]))'
    runs = f"sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{{PROBE}}}[{window}]))"
    allowed = f"(1 - max {BY_ROUTE} (mailsonde_slo_objective_ratio{{{PROBE}}}))"
    return f"{bad} / ({runs} > 0) / {allowed}"


def budget_left() -> str:
    """Return PromQL for the share of the error budget of 30 days that is left; below 0 when overdrawn."""
    return f"1 - {burn_rate('30d')}"


def _budgets() -> list[AnyPanel]:
    return [
        gauge(
            1,
            (0, 0, 12, 8),
            "Error budget left",
            Query(budget_left()),
            "Share of the bad runs that 30 days allow and that have not happened; below 0 the objective "
            "is missed. "
            "Red: leave what works alone, and mend this route first. Click for its deliveries.",
            BUDGET_COLOURS,
            links=[to("Delivery")],
        ),
        listing(
            2,
            (12, 0, 12, 8),
            "Objectives",
            [
                Column(
                    f"max {BY_ROUTE} (mailsonde_slo_objective_ratio{{{PROBE}}})", "Objective", "percentunit"
                ),
                Column(f"max {BY_ROUTE} (mailsonde_slo_within_seconds{{{PROBE}}})", "Within", "s"),
                Column(
                    f'sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{result="good",{PROBE}}}[30d])) / '
                    f"(sum {BY_ROUTE} (rate(mailsonde_slo_runs_total{{{PROBE}}}[30d])) > 0)",
                    "Good in 30 days",
                    "percentunit",
                ),
                Column(
                    f'sum {BY_ROUTE} (increase(mailsonde_slo_runs_total{{result="bad",{PROBE}}}[30d]))',
                    "Bad in 30 days",
                    "short",
                ),
            ],
            "What was promised, and what came of it. Where nothing is ever bad, promise more; "
            "where the objective is missed month by month, mend the route or promise less.",
            sort=("Good in 30 days", False),
            links=[to("Delivery", "var-probe=${__data.fields.probe}")],
        ),
        graph(
            3,
            (0, 8, 24, 8),
            "Error budget left, over time",
            [Query(budget_left())],
            "Each point looks back 30 days. A step down is an incident: put the cursor on it to see the "
            "alerts then. "
            "A steady slope is a route that is not good enough for its objective.",
            unit="percentunit",
            least=None,
            limits=[("red", None), ("transparent", 0)],
            links=[to("Delivery")],
        ),
    ]


def _burning() -> list[AnyPanel]:
    advice = {
        "1h": "Above the dashed line 2 % of the budget is gone in an hour; when it goes on, the "
        "critical alert fires. Act now: look at deliveries and servers.",
        "6h": "Above the dashed line 5 % of the budget is gone in 6 hours; when it goes on, the "
        "critical alert fires. Act now, also where the last hour looks better.",
        "3d": "Above the dashed line the budget will not last its 30 days; if it goes on, the warning comes. "
        "Find the cause within office hours: look at what runs were bad.",
    }
    return [
        graph(
            number,
            (column, 16, 8, 8),
            f"Burn rate over {window}",
            [Query(burn_rate(window))],
            f"How many times faster than allowed the error budget burns; 1 uses it up in just 30 days. "
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
                    f'(increase(mailsonde_slo_runs_total{{result="bad",{PROBE}}}[$__rate_interval]))'
                )
            ],
            "Messages that came too late, or not at all. Click a peak to see what its deliveries were like.",
            unit="short",
            links=[to("Delivery")],
        ),
        graph(
            8,
            (12, 24, 12, 8),
            "95th percentile of delivery as a share of what is promised",
            [
                Query(
                    "histogram_quantile(0.95, sum by (instance, probe, target, le) "
                    f"(rate(mailsonde_delivery_seconds_bucket{{{PROBE}}}[$__rate_interval]))) "
                    f"/ max {BY_ROUTE} (mailsonde_slo_within_seconds{{{PROBE}}})"
                )
            ],
            "Above the dashed line more than 5 % of messages come too late. "
            "Near it, find out where they wait before the budget burns.",
            unit="percentunit",
            limits=[("transparent", None), ("red", 1)],
            links=[to("Delivery")],
        ),
    ]
