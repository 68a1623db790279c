"""Deliveries: how long messages take, how precise that is, where they wait, and which states they end in."""

from __future__ import annotations

from boards import board
from grafana_foundation_sdk.builders import dashboard
from panels import OF_ROW, AnyPanel, Column, graph, heat, listing, number, to
from queries import BY_ROUTE, FIVE_MINUTES, PROBE, ROUTE, WORST, Query, one_by_one, per_second, recorded, top

LOST = f'increase(mailsonde_messages_total{{state="lost",{PROBE}}}[$__range])'
"""PromQL for the messages of each route that were lost in the time range."""

_AGE = f"(time() - (mailsonde_oldest_in_flight_timestamp_seconds{{{PROBE}}} > 0))"
_LAST = f"mailsonde_delivery_last_seconds{{{PROBE}}}"
_SLOW = f"({_AGE} > {_LAST} or {_LAST} or {_AGE})"
"""The latency of a route's last arrival or, if it is longer, the age of its oldest message in flight."""


def delivery() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Delivery",
        "Test messages: latency with its measurement error, where they wait, and which states they end in.",
        [
            *_numbers(),
            *_latency(),
            _age(),
            *_messages(),
            *_ways(),
            *_arrival_issues(),
            *_authentication(),
            _slow(),
        ],
        rank=_SLOW,
    )


def _numbers() -> list[AnyPanel]:
    sent, delivered = (
        per_second("mailsonde:message_rate", "mailsonde_messages_total", "", f'state="{state}",', "$__range")
        for state in ("sent", "delivered")
    )
    buckets = f"increase(mailsonde_delivery_seconds_bucket{{{WORST}}}[$__range])"
    return [
        number(
            1,
            (0, 0, 6, 4),
            "Delivered share of sent messages",
            Query(f"{delivered} / ({sent} > 0)", "delivered"),
            "Share of the messages in this time range that arrived by their deadline. Messages in flight "
            "count as not delivered. If it is low, check the states below.",
            [("red", None), ("orange", 0.95), ("green", 0.99)],
            unit="percentunit",
        ),
        number(
            2,
            (6, 0, 6, 4),
            "95th percentile of the worst routes",
            Query(f"histogram_quantile(0.95, sum by (le) ({buckets}))", "95 %"),
            "95 % of their messages that were delivered in this time range arrived within this time. If it "
            "is high, find the slow hop below.",
            [("green", None), ("orange", 30), ("red", 60)],
            unit="s",
        ),
        number(
            3,
            (12, 0, 6, 4),
            "In flight",
            Query(f"sum(mailsonde_messages_in_flight{{{PROBE}}})", "in flight"),
            "Messages on the way. A few are normal. If their number grows, mail is stuck in a queue.",
            [("green", None), ("orange", 5), ("red", 20)],
        ),
        number(
            4,
            (18, 0, 6, 4),
            "Lost in this time range",
            Query(f"sum({LOST}) or vector(0)", "lost"),
            "Accepted, but not in the mailbox at the deadline. Search the servers' logs for the Message-ID.",
            [("green", None), ("red", 1)],
        ),
    ]


def age(timestamp: str) -> str:
    """Return PromQL for the time since the worst routes' metric ``timestamp``, or 0 if the metric is 0."""
    return f"(time() - {timestamp}{{{WORST}}}) * ({timestamp}{{{WORST}}} > bool 0)"


def _latency() -> list[AnyPanel]:
    buckets = f"increase(mailsonde_delivery_seconds_bucket{{{WORST}}}[$__rate_interval])"
    return [
        heat(
            5,
            (0, 4, 24, 9),
            "Distribution of delivery times of the worst routes",
            f"sum by (le) ({buckets})",
            "Each cell: how many messages took that long. Two bands mean two kinds of delivery, such as "
            "with and without a retry. Select one probe to tell them apart. Delivered messages only.",
        ),
        graph(
            6,
            (0, 13, 12, 8),
            "Delivery latency of the worst routes",
            [Query(f"mailsonde_delivery_last_seconds{{{WORST}}}")],
            "Time from connecting until the message is visible in the mailbox, for the last arrival. Trust "
            "a change only if it is larger than the uncertainty in the next panel.",
        ),
        graph(
            7,
            (12, 13, 12, 8),
            "Uncertainty of the latency of the worst routes",
            [Query(f"mailsonde_delivery_uncertainty_seconds{{{WORST}}}")],
            "The true latency differs from the published one by at most this much. If it is large, "
            "mailsonde polls the mailbox too rarely: raise polls_per_message or use IMAP.",
        ),
        graph(
            8,
            (0, 21, 12, 8),
            "Median and 95th percentile of the worst routes",
            [
                Query(
                    f"histogram_quantile({part}, sum by (location, le) ({buckets}))",
                    f"{part:.0%} @ {{{{location}}}}",
                )
                for part in (0.5, 0.95)
            ],
            "50 % and 95 % of delivered messages arrived within these times. If both rise, the system is "
            "slow. If only the higher one rises, some messages wait, for example for a retry or a scanner.",
        ),
    ]


def _age() -> AnyPanel:
    return graph(
        9,
        (12, 21, 12, 8),
        "Age of the oldest message in flight, worst routes",
        [
            Query(age("mailsonde_oldest_in_flight_timestamp_seconds")),
            Query(
                age("mailsonde_oldest_intent_timestamp_seconds"),
                f"not handed over: {ROUTE}",
            ),
            Query(
                f'max {BY_ROUTE} (mailsonde_threshold_seconds{{threshold="overdue",{WORST}}})',
                f"overdue: {ROUTE}",
            ),
        ],
        "Rises with the clock while mail is stuck and stays near 0 while it flows. A straight slope: "
        "check the queues now, before the message counts as lost at its deadline. If the message is not "
        "handed over, the server that should accept it keeps it waiting. Above the line `overdue`, the "
        "alert fires.",
    )


def _messages() -> list[AnyPanel]:
    entered = per_second("mailsonde:message_rate", "mailsonde_messages_total", "by (location, state)")
    return [
        graph(
            10,
            (0, 29, 12, 8),
            "Messages by state",
            [Query(entered, "{{state}} @ {{location}}")],
            "Messages per second that entered each state. Sent and delivered should match. Check any other "
            "state: docs/messages.md explains each one.",
            unit="cps",
        ),
        graph(
            11,
            (12, 29, 12, 8),
            "Messages in flight, worst routes",
            [Query(f"mailsonde_messages_in_flight{{{WORST}}}")],
            "Messages on the way, by route. If the line climbs in steps, a queue accepts mail but does not "
            "deliver it: check the server behind that route.",
            unit="short",
            links=[to("Delivery")],
        ),
    ]


def _ways() -> list[AnyPanel]:
    waited = f"{recorded('mailsonde:hop_delay_seconds')} or {one_by_one('mailsonde_hop_delay_seconds')}"
    return [
        graph(
            12,
            (0, 37, 12, 8),
            "Where the last message waited",
            [Query(f"avg by (location, position) ({waited})", "{{position}} @ {{location}}")],
            "Mean time between the Received stamps of hosts on the routes, by position and by the hosts' own "
            "clocks. The thickest layer shows the host whose queue to check. Select one route.",
            stacked=True,
        ),
        listing(
            13,
            (12, 37, 12, 8),
            "Routes with impossible timestamps",
            [Column(top(f"max {BY_ROUTE} (mailsonde_hops_skewed{{{PROBE}}}) > 0"), "Hosts", "short")],
            "Hosts on the last message's route whose clock is wrong. Do not trust the hop delays of these "
            "routes, and correct the clocks of those hosts (NTP).",
            sort=("Hosts", True),
            links=[to("Delivery", OF_ROW)],
        ),
    ]


def _arrival_issues() -> list[AnyPanel]:
    counter = "mailsonde_arrival_issues_total"
    arrived = f"increase({counter}{{{PROBE}}}[$__range])"
    arriving = per_second("mailsonde:arrival_issue_rate", counter, "by (location, issue)")
    return [
        graph(
            14,
            (0, 45, 12, 8),
            "Junked and altered arrivals",
            [Query(f"{FIVE_MINUTES} * {arriving}", "{{issue}} @ {{location}}")],
            "How many arrived so in 5 minutes. Junked: a filter classifies mail as spam; check its verdict "
            "in the message. Altered: a "
            "gateway changes the subject, text or attachment; find out which one, and whether that is "
            "intended.",
            unit="short",
        ),
        listing(
            16,
            (12, 45, 12, 8),
            "Routes with junked or altered arrivals",
            [
                Column(
                    top(f"sum by (location, probe, target, issue) ({arrived}) > 0.5"),
                    "Arrivals",
                    "short",
                )
            ],
            "Which routes had the most such arrivals in this time range. Click a row to open its deliveries: "
            "routes that share a filter or gateway come together.",
            sort=("Arrivals", True),
            links=[to("Delivery", OF_ROW)],
        ),
    ]


def _authentication() -> list[AnyPanel]:
    methods, info = ("spf", "dkim", "dmarc"), "mailsonde_authentication_info"
    not_passed = " or ".join(f'{info}{{{method}!~"|pass",{PROBE}}}' for method in methods)

    def share(method: str) -> str:
        passed, known = (
            f"sum by (location) ({recorded('mailsonde:authentications', such)} or {one_by_one(info, such)})"
            for such in (f'{method}="pass",', f'{method}!="",')
        )
        return f"({passed} or 0 * {known}) / {known}"

    return [
        graph(
            15,
            (0, 53, 12, 8),
            "Share of routes whose last arrival passed authentication",
            [Query(share(method), f"{method} @ {{{{location}}}}") for method in methods],
            "SPF, DKIM and DMARC results of the receiving hosts. If a line falls, check the DNS records and "
            "the keys of the sending domain. Empty: no receiving host adds Authentication-Results.",
            unit="percentunit",
        ),
        listing(
            17,
            (12, 53, 12, 8),
            "Routes whose last arrival did not pass",
            [Column(top(f"max by (location, probe, target, spf, dkim, dmarc) ({not_passed})"), "", "short")],
            "Some of the routes behind the fallen lines. Click a row to open its deliveries, and compare the "
            "sending domains.",
            sort=("probe", False),
            links=[to("Delivery", OF_ROW)],
        ),
    ]


def _slow() -> AnyPanel:
    slow, all_ = (
        f"sum {BY_ROUTE} (increase({counter}{{{WORST}}}[$__rate_interval]))"
        for counter in ("mailsonde_slow_deliveries_total", "mailsonde_delivery_seconds_count")
    )
    return graph(
        18,
        (0, 61, 24, 8),
        "Share of slow deliveries, worst routes",
        [Query(f"{slow} / ({all_} > 0)")],
        "Deliveries that took as long as the route's threshold `slow`, or longer. If the share stays at 5 % "
        "or more, the alert fires: find the slow hop above.",
        unit="percentunit",
    )
