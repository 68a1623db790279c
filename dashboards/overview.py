"""The overview: who is affected now, how much of each error budget is left, and where to look next."""

from __future__ import annotations

from boards import board
from delivery import LOST, age
from grafana_foundation_sdk.builders import dashboard
from panels import OF_ROW, AnyPanel, Column, gauge, graph, listing, number, timeline, to, to_all
from queries import DELIVERIES, FIVE_MINUTES, MOST, PROBE, WORST, Query, mean, per_second, top
from server import EXPIRY, FAILING
from slo import BUDGET_COLOURS, budget_left

_BY = "by (location, probe, kind, target)"


def overview() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Overview",
        "Who is affected now, and how much error budget is left. Click a probe to open its deliveries or "
        "its server.",
        [
            *_trouble_now(),
            *_risks(),
            _worst(),
            _budgets(),
            *_states(),
            *_deliveries(),
            _failures(),
            *_maintenance(),
        ],
        rank=FAILING,
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
                'location=~"$location|",probe=~"$probe|"}) or vector(0)',
                "firing",
            ),
            "Firing alerts, without the heartbeat. Follow the alert's runbook in alerts/runbooks.",
            [("green", None), ("red", 1)],
        ),
        number(
            3,
            (8, 0, 4, 4),
            "Oldest message in flight",
            Query(
                f"max(time() - mailsonde_oldest_in_flight_timestamp_seconds{{{PROBE}}} > 0) or vector(0)",
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
                f"sum({LOST}) or vector(0)",
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
            "The least error budget left among the worst routes, over 30 days. Below 0, the objective is "
            "missed: stop changes and fix that route first. Empty without objectives.",
            BUDGET_COLOURS,
            unit="percentunit",
            links=[to_all("SLO")],
        ),
        number(
            6,
            (20, 0, 4, 4),
            "Next certificate expiry",
            Query(f"min({EXPIRY}) - time()", "left"),
            "Time until the next certificate expires. Renew it before this turns red: clients reject "
            "expired certificates.",
            [("red", None), ("orange", 3 * 86400), ("green", 14 * 86400)],
            unit="s",
            links=[to_all("Server")],
        ),
    ]


def _worst() -> AnyPanel:
    failed = f'mailsonde_probe_runs_total{{outcome="failed",{WORST}}}'
    return listing(
        7,
        (0, 4, 14, 9),
        "Worst routes, failing first",
        [
            Column(f"min {_BY} (mailsonde_probe_success{{{WORST}}})", "State", "bool"),
            Column(f"sum {_BY} (increase({failed}[$__range]))", "Failed runs", "short"),
            Column(f"max {_BY} (mailsonde_probe_failed_runs{{{WORST}}})", "In a row now", "short"),
            Column(
                f"time() - max {_BY} (mailsonde_probe_last_run_timestamp_seconds{{{WORST}}})", "Last run", "s"
            ),
            Column(
                "max by (location, probe, kind, target, severity, description) "
                f"(mailsonde_probe_info{{{WORST}}})",
                "",
                "short",
            ),
        ],
        f"The {MOST} routes to look at first: those that fail now, then those with the most failed runs. "
        "Click a row to open its deliveries or its server. If the last run is long ago, the state is out of "
        "date: check the agent.",
        sort=("State", False),
        links=[to("Delivery", OF_ROW), to("Server", OF_ROW)],
    )


def _budgets() -> AnyPanel:
    return gauge(
        8,
        (14, 4, 10, 9),
        "Error budget left of the worst routes",
        Query(budget_left()),
        "Share of the 30-day error budget that is left. Red: nearly used up. Click to see how fast it burns.",
        BUDGET_COLOURS,
        links=[to("SLO")],
    )


def _states() -> list[AnyPanel]:
    failing = f"mailsonde_probe_success{{{PROBE}}} == 0"
    return [
        timeline(
            9,
            (0, 13, 14, 9),
            "States of the worst routes over time",
            Query(f"mailsonde_probe_success{{{WORST}}}", "{{probe}} → {{target}} ({{kind}}) @ {{location}}"),
            "Green: the last known result is ok. Red: it is a failure. Gap: no data. Routes that turn red "
            "together probably share a cause: check what they have in common.",
            links=[to("Delivery"), to("Server")],
        ),
        graph(
            14,
            (14, 13, 10, 9),
            "Failing routes, by kind",
            [Query(f"count by (location, kind) ({failing})", "{{kind}} @ {{location}}")],
            "How many routes fail, of all that are selected. A step means that something common to them "
            "broke: a server, a network, a resolver. Select a part of them to find it.",
            unit="short",
            stacked=True,
            links=[to_all("Server")],
        ),
    ]


def _deliveries() -> list[AnyPanel]:
    undelivered = per_second(
        "mailsonde:message_rate",
        "mailsonde_messages_total",
        "by (location, state)",
        'state=~"lost|bounced|rejected|deferred|ambiguous",',
    )
    return [
        graph(
            10,
            (0, 22, 12, 8),
            "Mean delivery time of the worst routes",
            [Query(mean(DELIVERIES, WORST))],
            "Mean time to the mailbox, of delivered messages only. If it rises, click to see where messages "
            "wait. The next panel shows undelivered messages.",
            links=[to("Delivery")],
        ),
        graph(
            11,
            (12, 22, 12, 8),
            "Undelivered messages",
            [Query(f"{FIVE_MINUTES} * {undelivered}", "{{state}} @ {{location}}")],
            "How many became so in 5 minutes. Lost: accepted but not arrived. Bounced: a delivery report "
            "came back. Rejected, deferred: "
            "refused at submission. Click to find the routes. docs/messages.md explains each state.",
            unit="short",
            links=[to_all("Delivery")],
        ),
        graph(
            12,
            (0, 30, 12, 8),
            "Age of the oldest message in flight, worst routes",
            [Query(age("mailsonde_oldest_in_flight_timestamp_seconds"))],
            "Rises with the clock while mail is stuck and stays near 0 while it flows. A straight slope: "
            "check the queues now, before the message counts as lost at its deadline.",
            links=[to("Delivery")],
        ),
    ]


def _maintenance() -> list[AnyPanel]:
    ends, begins = (
        f"max {_BY} (mailsonde_maintenance_{what}_timestamp_seconds{{{PROBE}}})"
        for what in ("ends", "begins")
    )
    longest = top(f"{ends} - time()")
    return [
        number(
            15,
            (0, 38, 4, 6),
            "In maintenance",
            Query(f"count(mailsonde_probe_in_maintenance{{{PROBE}}}) or vector(0)", "in maintenance"),
            "Probes whose alerts are quiet, by a window of the configuration or a pause. Their runs do not "
            "count. If the work is done, end a pause with `mailsonde resume`.",
            [("blue", None)],
        ),
        listing(
            16,
            (4, 38, 20, 6),
            "Longest maintenance",
            [Column(longest, "Left", "s"), Column(top(f"time() - {begins} and {longest}"), "So far", "s")],
            f"The {MOST} probes whose alerts stay quiet the longest. Click a row to open its deliveries or "
            "its server.",
            sort=("Left", True),
            links=[to("Delivery", OF_ROW), to("Server", OF_ROW)],
        ),
    ]


def _failures() -> AnyPanel:
    runs = f'increase(mailsonde_probe_reasons_total{{outcome!="ok",{PROBE}}}[$__rate_interval])'
    return graph(
        13,
        (12, 30, 12, 8),
        "Failed and unknown runs, by reason",
        [
            Query(
                f"sum by (location, outcome, reason) ({runs}) > 0",
                "{{reason}} {{outcome}} @ {{location}}",
            )
        ],
        "Why runs failed or ended unknown. docs/reference.md explains each reason, and `mailsonde "
        "check` shows the details of a probe.",
        unit="short",
        links=[to_all("Server")],
    )
