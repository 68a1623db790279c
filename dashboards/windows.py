"""Exchange servers: their queues and states from inside, beside the deliveries from outside."""

from __future__ import annotations

from boards import board
from grafana_foundation_sdk.builders import dashboard
from panels import AnyPanel, Column, graph, listing, number, to_all
from queries import DELIVERIES, PROBE, Query, mean

_SERVER = "by (job, instance)"


def windows() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Windows",
        "Exchange servers from inside, by windows_exporter and config/deploy/windows, beside the deliveries "
        "that are measured from outside.",
        [*_numbers(), *_mail(), *_states()],
    )


def _queue(name: str) -> str:
    """Return PromQL for the length of a queue at each server; the largest of its instances is the total."""
    return f"max {_SERVER} (windows_exchange_transport_queues_{name})"


def _numbers() -> list[AnyPanel]:
    return [
        number(
            1,
            (0, 0, 6, 4),
            "Servers without queues",
            Query(
                f"count(group {_SERVER} (windows_exchange_ldap_read_time_sec) "
                f"unless {_queue('poison')}) or vector(0)",
                "without queues",
            ),
            "Exchange servers that windows_exporter watches without the lengths of their queues. Update "
            "windows_exporter there, and look in its log for a counter that it cannot read.",
            [("green", None), ("orange", 1)],
        ),
        number(
            2,
            (6, 0, 6, 4),
            "Inactive components",
            Query("count(mailsonde_exchange_component_active == 0) or vector(0)", "inactive"),
            "Components of Exchange servers that are not active. The list below names them: end the "
            "maintenance, or find out who set them.",
            [("green", None), ("orange", 1)],
        ),
        number(
            3,
            (12, 0, 6, 4),
            "Unhealthy database copies",
            Query("count(mailsonde_exchange_database_copy_healthy == 0) or vector(0)", "unhealthy"),
            "Copies that are neither mounted nor healthy. A failover to them fails or loses mail: look at "
            "Get-MailboxDatabaseCopyStatus on the server in the list below.",
            [("green", None), ("red", 1)],
        ),
        number(
            4,
            (18, 0, 6, 4),
            "Age of the oldest states",
            Query("max(time() - mailsonde_exchange_states_written_timestamp_seconds)", "age"),
            "When the script that writes the states last succeeded, at the server where that is longest "
            "ago. If it is more than some minutes: look at the scheduled task there.",
            [("green", None), ("orange", 900), ("red", 1800)],
            unit="s",
        ),
    ]


def _mail() -> list[AnyPanel]:
    return [
        graph(
            5,
            (0, 4, 24, 8),
            "Mean delivery from outside",
            [Query(mean(DELIVERIES, PROBE, "by (location, target)"), "through {{target}} @ {{location}}")],
            "Mean latency of the messages that the selected probes sent through each server. When it rises, "
            "a queue below rises at the server where mail waits.",
            links=[to_all("Delivery")],
        ),
        graph(
            6,
            (0, 12, 12, 8),
            "Submission and largest delivery queues",
            [
                Query(_queue("submission_queue_length"), "{{instance}} submission"),
                Query(_queue("internal_largest_delivery"), "{{instance}} largest internal"),
                Query(_queue("external_largest_delivery"), "{{instance}} largest external"),
            ],
            "Submission: the categorizer is behind; back pressure begins at 9,999. Internal: a server or "
            "database does not take mail. External: the smart host or the internet does not.",
            unit="short",
        ),
        graph(
            7,
            (12, 12, 12, 8),
            "Messages that do not move",
            [
                Query(_queue("retry_mailbox_delivery"), "{{instance}} mailbox retry"),
                Query(_queue("unreachable"), "{{instance}} unreachable"),
                Query(_queue("poison"), "{{instance}} poison"),
            ],
            "Retry: a mailbox database does not take mail. Unreachable: no connector leads there. Poison: "
            "these messages crashed the transport service; look at them with Get-Message.",
            unit="short",
        ),
    ]


def _states() -> list[AnyPanel]:
    return [
        listing(
            8,
            (0, 20, 8, 8),
            "Components that are not active",
            [
                Column(
                    "max by (server, component) (mailsonde_exchange_component_active) == 0", "Active", "bool"
                )
            ],
            "Components that a maintenance, a person or managed availability has set inactive. End the "
            "maintenance with Set-ServerComponentState, for the requester that set it.",
            sort=("server", False),
            words=("no", "yes"),
        ),
        listing(
            9,
            (8, 20, 8, 8),
            "Database copies",
            [
                Column(
                    "max by (server, database) (mailsonde_exchange_database_copy_healthy)", "Healthy", "bool"
                )
            ],
            "Copies of mailbox databases, the unhealthy ones first. Look at Get-MailboxDatabaseCopyStatus "
            "on that server.",
            sort=("Healthy", False),
            words=("no", "yes"),
        ),
        listing(
            10,
            (16, 20, 8, 8),
            "Certificates of the servers",
            [
                Column(
                    "min by (server, use) (mailsonde_exchange_certificate_not_after_timestamp_seconds) "
                    "- time()",
                    "Time left",
                    "s",
                )
            ],
            "Certificates by what Exchange uses them for, the next to expire first. Auth is the one of the "
            "organization: no connection shows it. Renew in time.",
            sort=("Time left", False),
        ),
    ]
