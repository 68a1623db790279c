"""The agent itself: whether it answers, runs its probes in time, and can be trusted with what it measures."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import AGENT, PROBE, AnyPanel, Column, Query, board, graph, listing, number, timeline

_UP = f'up{{job="mailsonde",{AGENT}}}'


def agent() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Agent",
        "Whether the agent answers, runs its probes in time, and can be trusted with what it measures.",
        [*_presence(), *_runs(), *_schedule(), *_mailboxes()],
    )


def _presence() -> list[AnyPanel]:
    return [
        number(
            1,
            (0, 0, 4, 4),
            "Agents that do not answer",
            Query(f"count({_UP} == 0) or vector(0)", "down"),
            "Agents that Prometheus cannot scrape: mail is not being watched from there. "
            "See if the process runs, and what its log says.",
            [("green", None), ("red", 1)],
        ),
        number(
            2,
            (4, 0, 4, 4),
            "Probes that stand still",
            Query(
                f"count(time() - mailsonde_probe_last_run_timestamp_seconds{{{PROBE}}} "
                f"> 3 * mailsonde_probe_interval_seconds{{{PROBE}}} + 60) or vector(0)",
                "standing still",
            ),
            "Probes of which no run ended for three intervals and a minute; a round trip may wait that long "
            "for its message. What is shown of them is old: see below whether runs are skipped or late.",
            [("green", None), ("orange", 1)],
        ),
        number(
            11,
            (8, 0, 4, 4),
            "Agents with an old configuration",
            Query(
                f"count(mailsonde_config_last_reload_successful{{{AGENT}}} == 0) or vector(0)",
                "old configuration",
            ),
            "Agents whose last read of the configuration failed. Run `mailsonde validate` on the file there: "
            "it names every mistake with its line.",
            [("green", None), ("red", 1)],
        ),
        listing(
            3,
            (12, 0, 12, 8),
            "Versions",
            [
                Column(f"max by (instance, version, python) (mailsonde_build_info{{{AGENT}}})", "", "short"),
            ],
            "Version of mailsonde and of Python at each location. Update those that lag behind: "
            "locations are compared best when they measure alike.",
            sort=("version", False),
        ),
        timeline(
            4,
            (0, 4, 12, 4),
            "Scrapes",
            Query(_UP, "{{instance}}"),
            "Red: Prometheus did not get the metrics. Gaps in all other panels at that time are for this "
            "reason; "
            "look at the agent and at the network between.",
            words=("down", "up"),
        ),
    ]


def _runs() -> list[AnyPanel]:
    return [
        graph(
            5,
            (0, 8, 12, 8),
            "Runs by outcome",
            [
                Query(
                    f"sum by (instance, outcome) "
                    f"(rate(mailsonde_probe_runs_total{{{PROBE}}}[$__rate_interval]))",
                    "{{outcome}} @ {{instance}}",
                )
            ],
            "Runs that ended, a second. A fall of all together: the agent or its machine is in trouble. "
            "More unknown: see the reasons on the dashboard Server.",
            unit="cps",
            stacked=True,
        ),
        graph(
            6,
            (12, 8, 12, 8),
            "Time since the last run, in intervals",
            [
                Query(
                    f"(time() - mailsonde_probe_last_run_timestamp_seconds{{{PROBE}}}) "
                    f"/ mailsonde_probe_interval_seconds{{{PROBE}}}",
                    "{{probe}} → {{target}} @ {{instance}}",
                )
            ],
            "Should saw between 0 and 1, and a roundtrip by as much more as a delivery takes. Above 3: "
            "the probe is "
            "stale, and what it last showed is old. Look at the agent's log.",
            unit="short",
            limits=[("transparent", None), ("red", 3)],
        ),
        graph(
            7,
            (0, 16, 12, 8),
            "Duration of runs, by kind",
            [
                Query(
                    "histogram_quantile(0.95, sum by (instance, kind, le) "
                    f"(rate(mailsonde_probe_duration_seconds_bucket{{{PROBE}}}[$__rate_interval])))",
                    "{{kind}} @ {{instance}}",
                )
            ],
            "95 % of the runs of a kind ended within this time. Longer than the interval: runs are left "
            "out as overrun; "
            "lengthen the interval, or shorten the deadline.",
        ),
    ]


def _schedule() -> list[AnyPanel]:
    lag = (
        "histogram_quantile({}, sum by (instance, le) "
        f"(rate(mailsonde_schedule_lag_seconds_bucket{{{{{AGENT}}}}}[$__rate_interval])))"
    )
    return [
        graph(
            8,
            (12, 16, 12, 8),
            "How late runs start",
            [
                Query(lag.format(0.5), "50 % @ {{instance}}"),
                Query(lag.format(0.99), "99 % @ {{instance}}"),
            ],
            "Above the dashed line of a second the agent's machine is too busy, and latencies may suffer: "
            "give it more CPU, or fewer probes.",
            limits=[("transparent", None), ("red", 1)],
        ),
        graph(
            9,
            (0, 24, 12, 8),
            "Runs that did not start",
            [
                Query(
                    "sum by (instance, probe, reason) "
                    f"(increase(mailsonde_schedule_skipped_total{{{PROBE}}}[$__rate_interval]))",
                    "{{probe}}: {{reason}} @ {{instance}}",
                )
            ],
            "Missed: the agent could not start them in time; look at its machine. Overrun: the previous "
            "run still went "
            "on; lengthen the interval, or shorten the deadline.",
            unit="short",
        ),
        graph(
            12,
            (0, 32, 12, 8),
            "Clock steps",
            [Query(f"increase(mailsonde_clock_steps_total{{{AGENT}}}[$__rate_interval])", "{{instance}}")],
            "How often the wall clock of the agent's machine was set. Probes keep their intervals. Check the "
            "machine's time synchronization.",
            unit="short",
        ),
    ]


def _mailboxes() -> list[AnyPanel]:
    return [
        graph(
            10,
            (12, 24, 12, 8),
            "Messages that nobody awaited",
            [
                Query(
                    "sum by (instance, mailbox, reason) "
                    f"(increase(mailsonde_mailbox_unexpected_total{{{AGENT}}}[$__rate_interval]))",
                    "{{mailbox}}: {{reason}} @ {{instance}}",
                )
            ],
            "Forged: somebody plays with test messages; find out who. Duplicate: a server delivers twice. "
            "Unknown: another agent uses this mailbox; give each its own.",
            unit="short",
        ),
    ]
