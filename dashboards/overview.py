"""The overview: who is affected now, how much of each error budget is left, and where to look next."""

from __future__ import annotations

from delivery import age
from grafana_foundation_sdk.builders import dashboard
from panels import (
    PROBE,
    AnyPanel,
    Column,
    Query,
    board,
    gauge,
    graph,
    listing,
    number,
    timeline,
    to,
    to_all,
)
from slo import BUDGET_COLOURS, budget_left

_BY = "by (instance, probe, kind, target)"


def overview() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Overview",
        "Who is affected now, and how much error budget is left. Click a probe to open its deliveries or "
        "its server.",
        [*_trouble_now(), *_risks(), _worst(), _budgets(), _states(), *_deliveries(), _failures()],
    )


def _trouble_now() -> list[AnyPanel]:
    return [
        number(
            1,
            (0, 0, 4, 4),
            "Failing probes",
            Query(f"count(mailsonde_probe_success{{{PROBE}}} == 0) or vector(0)", "failing"),
            "Probes whose last known result is a failure. The list below shows them at the top.",
            [("green", None), ("red", 1)],
        ),
        number(
            2,
            (4, 0, 4, 4),
            "Firing alerts",
            Query(
                'count(ALERTS{alertname=~"Mailsonde.*",alertname!="MailsondeHeartbeat",alertstate="firing",'
                'instance=~"$location|",probe=~"$probe|"}) or vector(0)',
                "firing",
            ),
            "Firing alerts from the rendered rules, without the heartbeat. Follow the alert's runbook in "
            "alerts/runbooks.",
            [("green", None), ("red", 1)],
        ),
        number(
            3,
            (8, 0, 4, 4),
            "Oldest message in flight",
            Query(
                f"max(time() - (mailsonde_oldest_in_flight_timestamp_seconds{{{PROBE}}} > 0)) or vector(0)",
                "age",
            ),
            "Age of the oldest message that has not arrived. If it grows with the clock, mail is stuck: "
            "check the queue of the server that accepted it, or the server that has not accepted it. The "
            "limit depends on the route: see the alert MailsondeMessageOverdue.",
            [("blue", None)],
            unit="s",
            links=[to_all("Delivery")],
        ),
    ]


def _risks() -> list[AnyPanel]:
    return [
        number(
            4,
            (12, 0, 4, 4),
            "Lost in this time range",
            Query(
                f'sum(increase(mailsonde_messages_total{{state="lost",{PROBE}}}[$__range])) or vector(0)',
                "lost",
            ),
            "Messages that a server accepted but that did not arrive by their deadline. Search the "
            "servers' logs for their Message-ID.",
            [("green", None), ("red", 1)],
            links=[to_all("Delivery")],
        ),
        number(
            5,
            (16, 0, 4, 4),
            "Lowest error budget left",
            Query(f"min({budget_left()})", "least"),
            "The error budget left for the worst objective, over 30 days. Below 0, the objective is "
            "missed: stop changes and fix that route first. Empty without objectives.",
            BUDGET_COLOURS,
            unit="percentunit",
            links=[to_all("SLO")],
        ),
        number(
            6,
            (20, 0, 4, 4),
            "Next certificate expiry",
            Query(f"min(mailsonde_tls_certificate_not_after_timestamp_seconds{{{PROBE}}}) - time()", "left"),
            "Time until the next certificate expires. Renew it before this turns red: clients reject "
            "expired certificates.",
            [("red", None), ("orange", 3 * 86400), ("green", 14 * 86400)],
            unit="s",
            links=[to_all("Server")],
        ),
    ]


def _worst() -> AnyPanel:
    probe = "var-probe=${__data.fields.probe}"
    return listing(
        7,
        (0, 4, 14, 9),
        "Probes, failing first",
        [
            Column(f"min {_BY} (mailsonde_probe_success{{{PROBE}}})", "State", "bool"),
            Column(
                f'sum {_BY} (increase(mailsonde_probe_runs_total{{outcome="failed",{PROBE}}}[$__range]))',
                "Failed runs",
                "short",
            ),
            Column(
                f"time() - max {_BY} (mailsonde_probe_last_run_timestamp_seconds{{{PROBE}}})", "Last run", "s"
            ),
            Column(
                "max by (instance, probe, kind, target, severity, description) "
                f"(mailsonde_probe_info{{{PROBE}}})",
                "",
                "short",
            ),
        ],
        "Who is affected now: failing probes come first. Click a row to open its deliveries or its server. "
        "If the last run is long ago, the state is out of date: check the agent.",
        sort=("State", False),
        links=[to("Delivery", probe), to("Server", probe)],
    )


def _budgets() -> AnyPanel:
    return gauge(
        8,
        (14, 4, 10, 9),
        "Error budget left, by objective",
        Query(budget_left()),
        "Share of the 30-day error budget that is left. Red: nearly used up. Click to see how fast it burns.",
        BUDGET_COLOURS,
        links=[to("SLO")],
    )


def _states() -> AnyPanel:
    return timeline(
        9,
        (0, 13, 24, 9),
        "Probe states over time",
        Query(f"mailsonde_probe_success{{{PROBE}}}", "{{probe}} → {{target}} ({{kind}}) @ {{instance}}"),
        "Green: the last known result is ok. Red: it is a failure. Gap: no data. Probes that turn red "
        "together probably share a cause: check what they have in common.",
        links=[to("Delivery"), to("Server")],
    )


def _deliveries() -> list[AnyPanel]:
    return [
        graph(
            10,
            (0, 22, 12, 8),
            "95th percentile of delivery time, by route",
            [
                Query(
                    "histogram_quantile(0.95, sum by (instance, probe, target, le) "
                    f"(rate(mailsonde_delivery_seconds_bucket{{{PROBE}}}[$__rate_interval])))"
                )
            ],
            "95 % of delivered messages arrived within this time. If it rises, click to see where messages "
            "wait. The next panel shows lost messages.",
            links=[to("Delivery")],
        ),
        graph(
            11,
            (12, 22, 12, 8),
            "Undelivered messages",
            [
                Query(
                    f"sum by (instance, probe, target, state) (increase(mailsonde_messages_total{{"
                    f'state=~"lost|bounced|rejected|deferred|ambiguous",{PROBE}}}[$__rate_interval]))',
                    "{{state}}: {{probe}} → {{target}} @ {{instance}}",
                )
            ],
            "Lost: accepted but not arrived. Bounced: a delivery report came back. Rejected, deferred: "
            "refused at submission. Click to open the route. docs/messages.md explains each state.",
            unit="short",
            links=[to("Delivery")],
        ),
        graph(
            12,
            (0, 30, 12, 8),
            "Age of the oldest message in flight, by route",
            [Query(age("mailsonde_oldest_in_flight_timestamp_seconds"))],
            "Rises with the clock while mail is stuck and stays near 0 while it flows. A straight slope: "
            "check the queues now, before the message counts as lost at its deadline.",
            links=[to("Delivery")],
        ),
    ]


def _failures() -> AnyPanel:
    return graph(
        13,
        (12, 30, 12, 8),
        "Failed and unknown runs, by reason",
        [
            Query(
                "sum by (instance, probe, outcome, reason) "
                f'(increase(mailsonde_probe_reasons_total{{outcome!="ok",{PROBE}}}[$__rate_interval])) > 0',
                "{{probe}}: {{reason}} {{outcome}} @ {{instance}}",
            )
        ],
        "Why runs failed or ended unknown. docs/reference.md explains each reason, and `mailsonde "
        "check` shows the details of a probe.",
        unit="short",
        links=[to("Server")],
    )
