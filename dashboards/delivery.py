"""Deliveries: how long messages take, how surely that is known, where they wait, and what becomes of them."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import PROBE, AnyPanel, Query, board, graph, heat, number, timeline


def delivery() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Delivery",
        "Test messages on their way: latency with its measurement error, where they wait, and what "
        "becomes of them.",
        [*_numbers(), *_latency(), *_messages(), *_ways(), *_findings()],
    )


def _numbers() -> list[AnyPanel]:
    sent = f'sum(increase(mailsonde_messages_total{{state="sent",{PROBE}}}[$__range]))'
    delivered = f'sum(increase(mailsonde_messages_total{{state="delivered",{PROBE}}}[$__range]))'
    return [
        number(
            1,
            (0, 0, 6, 4),
            "Delivered of those sent",
            Query(f"{delivered} / ({sent} > 0)", "delivered"),
            "Share of the messages of this time range that arrived by their deadline; those still in "
            "flight count as "
            "missing. When it is low, look at the states below.",
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
            "95 % of the messages that arrived did so within this time. When it is high, find the hop "
            "below that waits.",
            [("green", None), ("orange", 30), ("red", 60)],
            unit="s",
        ),
        number(
            3,
            (12, 0, 6, 4),
            "In flight",
            Query(f"sum(mailsonde_messages_in_flight{{{PROBE}}})", "in flight"),
            "Messages under way. Some always are; when their number grows, mail is stuck in a queue.",
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
            "Accepted, and not in the mailbox at the deadline. Search the servers' logs for the Message-ID.",
            [("green", None), ("red", 1)],
        ),
    ]


def _latency() -> list[AnyPanel]:
    quantile = (
        "histogram_quantile({}, sum by (instance, probe, target, le) "
        f"(rate(mailsonde_delivery_seconds_bucket{{{{{PROBE}}}}}[$__rate_interval])))"
    )
    return [
        heat(
            5,
            (0, 4, 24, 9),
            "Deliveries by how long they took",
            f"sum by (le) (increase(mailsonde_delivery_seconds_bucket{{{PROBE}}}[$__rate_interval]))",
            "Each cell: how many messages took that long. Two bands are two ways of being delivered, such "
            "as with "
            "and without a retry: choose one probe at a time to tell them apart. Delivered messages only.",
        ),
        graph(
            6,
            (0, 13, 12, 8),
            "Delivery latency",
            [Query(f"mailsonde_delivery_last_seconds{{{PROBE}}}")],
            "From connecting until visible in the mailbox, of the message that arrived last. "
            "Believe a change only when it is wider than the error beside.",
        ),
        graph(
            7,
            (12, 13, 12, 8),
            "How wrong the latency may be",
            [Query(f"mailsonde_delivery_uncertainty_seconds{{{PROBE}}}")],
            "The true latency is within this distance of the published one, either way. "
            "When it is wide, the mailbox is looked at seldom: raise polls_per_message, or use IMAP.",
        ),
        graph(
            8,
            (0, 21, 12, 8),
            "Median and 95th percentile of delivery",
            [
                Query(quantile.format(0.5), "50 % {{probe}} → {{target}} @ {{instance}}"),
                Query(quantile.format(0.95), "95 % {{probe}} → {{target}} @ {{instance}}"),
            ],
            "Half of the messages, and 95 % of them, arrived within this time. Both rise: the system is "
            "slow. "
            "Only the higher one: some messages wait, as for a retry or a scanner.",
        ),
        graph(
            9,
            (12, 21, 12, 8),
            "Age of the oldest message in flight",
            [
                Query(
                    f"(time() - mailsonde_oldest_in_flight_timestamp_seconds{{{PROBE}}}) * "
                    f"(mailsonde_oldest_in_flight_timestamp_seconds{{{PROBE}}} > bool 0)"
                )
            ],
            "Rises with the clock while mail is stuck, and is near 0 while it flows. "
            "A straight slope: look into the queues now, before the deadline makes it a loss.",
        ),
    ]


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
            "Messages a second that entered each state. Sent and delivered should run together; "
            "any other state wants a look: docs/messages.md says what each means.",
            unit="cps",
        ),
        graph(
            11,
            (12, 29, 12, 8),
            "Messages in flight",
            [Query(f"mailsonde_messages_in_flight{{{PROBE}}}")],
            "Messages under way, by route. A staircase upwards is a queue that takes and does not deliver: "
            "look at the server behind that route.",
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
            "Time between the stamps of hosts on the way, by their position; by their own clocks. "
            "The highest layer is the host whose queue to look into.",
            stacked=True,
        ),
        graph(
            13,
            (12, 37, 12, 8),
            "Hops with a stamp that cannot be true",
            [Query(f"mailsonde_hops_skewed{{{PROBE}}}")],
            "Hosts on the last message's way whose clock is wrong. Above 0: do not trust the waits beside, "
            "and set the clocks of those hosts (NTP).",
            unit="short",
        ),
    ]


def _findings() -> list[AnyPanel]:
    return [
        graph(
            14,
            (0, 45, 12, 8),
            "Arrivals in junk, or altered",
            [
                Query(
                    f"sum by (instance, probe, target, finding) "
                    f"(increase(mailsonde_arrival_findings_total{{{PROBE}}}[$__rate_interval]))",
                    "{{finding}}: {{probe}} → {{target}} @ {{instance}}",
                )
            ],
            "Junked: a filter takes mail for spam; look at its verdict in the message. "
            "Altered: a gateway changes subject, text or attachment; find out which, and if that is meant.",
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
            "What the receiving host found of SPF, DKIM and DMARC. Red: check the DNS records and the "
            "keys of the "
            "sending domain. Empty: the receiving host writes no Authentication-Results.",
            words=("not passed", "pass"),
        ),
    ]
