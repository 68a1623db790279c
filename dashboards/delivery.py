"""Deliveries: how long messages take, how precise that is, where they wait, and which states they end in."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import BY_ROUTE, PROBE, AnyPanel, Query, board, graph, heat, number, timeline


def delivery() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Delivery",
        "Test messages: latency with its measurement error, where they wait, and which states they end in.",
        [*_numbers(), *_latency(), _age(), *_messages(), *_ways(), *_arrival_issues()],
    )


def _numbers() -> list[AnyPanel]:
    sent = f'sum(increase(mailsonde_messages_total{{state="sent",{PROBE}}}[$__range]))'
    delivered = f'sum(increase(mailsonde_messages_total{{state="delivered",{PROBE}}}[$__range]))'
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
            "95th percentile in this time range",
            Query(
                "histogram_quantile(0.95, sum by (le) "
                f"(increase(mailsonde_delivery_seconds_bucket{{{PROBE}}}[$__range])))",
                "95 %",
            ),
            "95 % of delivered messages arrived within this time. If it is high, find the slow hop below.",
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
            Query(
                f'sum(increase(mailsonde_messages_total{{state="lost",{PROBE}}}[$__range])) or vector(0)',
                "lost",
            ),
            "Accepted, but not in the mailbox at the deadline. Search the servers' logs for the Message-ID.",
            [("green", None), ("red", 1)],
        ),
    ]


def age(timestamp: str) -> str:
    """Return PromQL for the time since the metric ``timestamp``, or 0 if the metric is 0."""
    return f"(time() - {timestamp}{{{PROBE}}}) * ({timestamp}{{{PROBE}}} > bool 0)"


def _latency() -> list[AnyPanel]:
    quantile = (
        "histogram_quantile({}, sum by (instance, probe, target, le) "
        f"(rate(mailsonde_delivery_seconds_bucket{{{{{PROBE}}}}}[$__rate_interval])))"
    )
    return [
        heat(
            5,
            (0, 4, 24, 9),
            "Distribution of delivery times",
            f"sum by (le) (increase(mailsonde_delivery_seconds_bucket{{{PROBE}}}[$__rate_interval]))",
            "Each cell: how many messages took that long. Two bands mean two kinds of delivery, such as "
            "with and without a retry. Select one probe to tell them apart. Delivered messages only.",
        ),
        graph(
            6,
            (0, 13, 12, 8),
            "Delivery latency",
            [Query(f"mailsonde_delivery_last_seconds{{{PROBE}}}")],
            "Time from connecting until the message is visible in the mailbox, for the last arrival. Trust "
            "a change only if it is larger than the uncertainty in the next panel.",
        ),
        graph(
            7,
            (12, 13, 12, 8),
            "Uncertainty of the latency",
            [Query(f"mailsonde_delivery_uncertainty_seconds{{{PROBE}}}")],
            "The true latency differs from the published one by at most this much. If it is large, "
            "mailsonde polls the mailbox too rarely: raise polls_per_message or use IMAP.",
        ),
        graph(
            8,
            (0, 21, 12, 8),
            "Median and 95th percentile of delivery time",
            [
                Query(quantile.format(0.5), "50 % {{probe}} → {{target}} @ {{instance}}"),
                Query(quantile.format(0.95), "95 % {{probe}} → {{target}} @ {{instance}}"),
            ],
            "50 % and 95 % of delivered messages arrived within these times. If both rise, the system is "
            "slow. If only the higher one rises, some messages wait, for example for a retry or a scanner.",
        ),
    ]


def _age() -> AnyPanel:
    return graph(
        9,
        (12, 21, 12, 8),
        "Age of the oldest message in flight",
        [
            Query(age("mailsonde_oldest_in_flight_timestamp_seconds")),
            Query(
                age("mailsonde_oldest_intent_timestamp_seconds"),
                "not handed over: {{probe}} → {{target}} @ {{instance}}",
            ),
            Query(
                f'max {BY_ROUTE} (mailsonde_threshold_seconds{{threshold="overdue",{PROBE}}})',
                "overdue: {{probe}} → {{target}} @ {{instance}}",
            ),
        ],
        "Rises with the clock while mail is stuck and stays near 0 while it flows. A straight slope: "
        "check the queues now, before the message counts as lost at its deadline. If the message is not "
        "handed over, the server that should accept it keeps it waiting. Above the line `overdue`, the "
        "alert fires.",
    )


def _messages() -> list[AnyPanel]:
    return [
        graph(
            10,
            (0, 29, 12, 8),
            "Messages by state",
            [
                Query(
                    f"sum by (instance, state) (rate(mailsonde_messages_total{{{PROBE}}}[$__rate_interval]))",
                    "{{state}} @ {{instance}}",
                )
            ],
            "Messages per second that entered each state. Sent and delivered should match. Check any other "
            "state: docs/messages.md explains each one.",
            unit="cps",
        ),
        graph(
            11,
            (12, 29, 12, 8),
            "Messages in flight",
            [Query(f"mailsonde_messages_in_flight{{{PROBE}}}")],
            "Messages on the way, by route. If the line climbs in steps, a queue accepts mail but does not "
            "deliver it: check the server behind that route.",
            unit="short",
        ),
    ]


def _ways() -> list[AnyPanel]:
    return [
        graph(
            12,
            (0, 37, 12, 8),
            "Where the last message waited",
            [
                Query(
                    f"mailsonde_hop_delay_seconds{{{PROBE}}}",
                    "{{position}}: {{probe}} → {{target}} @ {{instance}}",
                )
            ],
            "Time between the Received stamps of hosts on the route, by position and by the hosts' own "
            "clocks. The thickest layer shows the host whose queue to check.",
            stacked=True,
        ),
        graph(
            13,
            (12, 37, 12, 8),
            "Hops with an impossible timestamp",
            [Query(f"mailsonde_hops_skewed{{{PROBE}}}")],
            "Hosts on the last message's route whose clock is wrong. Above 0: do not trust the hop delays, "
            "and correct the clocks of those hosts (NTP).",
            unit="short",
        ),
    ]


def _arrival_issues() -> list[AnyPanel]:
    return [
        graph(
            14,
            (0, 45, 12, 8),
            "Junked and altered arrivals",
            [
                Query(
                    f"sum by (instance, probe, target, issue) "
                    f"(increase(mailsonde_arrival_issues_total{{{PROBE}}}[$__rate_interval]))",
                    "{{issue}}: {{probe}} → {{target}} @ {{instance}}",
                )
            ],
            "Junked: a filter classifies mail as spam; check its verdict in the message. Altered: a "
            "gateway changes the subject, text or attachment; find out which one, and whether that is "
            "intended.",
            unit="short",
        ),
        timeline(
            15,
            (12, 45, 12, 8),
            "Authentication of the last arrival",
            Query(
                f"mailsonde_authentication_passed{{{PROBE}}}",
                "{{method}}: {{probe}} → {{target}} @ {{instance}}",
            ),
            "SPF, DKIM and DMARC results of the receiving host. Red: check the DNS records and the keys of "
            "the sending domain. Empty: the receiving host adds no Authentication-Results.",
            words=("not passed", "pass"),
        ),
    ]
