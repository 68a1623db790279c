"""The agent itself: whether it answers, runs its probes on time, and measures reliably."""

from __future__ import annotations

from boards import board
from grafana_foundation_sdk.builders import dashboard
from panels import OF_ROW, AnyPanel, Column, graph, listing, number, timeline, to
from queries import AGENT, FIVE_MINUTES, PROBE, Query, one_by_one, per_second, recorded, top

_UP = 'up{job="mailsonde"}'
_AGE = f"time() - mailsonde_probe_last_run_timestamp_seconds{{{PROBE}}}"
_STALE = f'mailsonde_threshold_seconds{{threshold="stale",{PROBE}}}'


def agent() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Agent",
        "Whether the agent answers, runs its probes on time, and measures reliably.",
        [
            *_presence(),
            *_versions(),
            *_runs(),
            *_schedule(),
            *_mailboxes(),
            *_tokens(),
            *_throttling(),
            *_own_delays(),
            *_own_resources(),
        ],
    )


def _presence() -> list[AnyPanel]:
    return [
        number(
            1,
            (0, 0, 4, 4),
            "Agents down",
            Query(f"count({_UP} == 0) or vector(0)", "down"),
            "Agents that Prometheus cannot scrape. They are not watching the mail. Check whether the "
            "process runs, and its log.",
            [("green", None), ("red", 1)],
        ),
        number(
            2,
            (4, 0, 4, 4),
            "Stale probes",
            Query(f"count({_AGE} > ignoring (threshold) {_STALE}) or vector(0)", "stale"),
            "Probes without a finished run for three intervals and the time that a run may take. Their "
            "results are out of date: check below whether runs are skipped or late.",
            [("green", None), ("orange", 1)],
        ),
        number(
            11,
            (8, 0, 4, 4),
            "Agents with an outdated configuration",
            Query(
                f"count(mailsonde_config_last_reload_successful{{{AGENT}}} == 0 "
                f"or mailsonde_web_config_last_reload_successful{{{AGENT}}} == 0) or vector(0)",
                "outdated configuration",
            ),
            "Agents that could not load their configuration or web configuration at the last attempt. Run "
            "`mailsonde validate` there: it lists every mistake with its line number.",
            [("green", None), ("red", 1)],
        ),
        number(
            14,
            (12, 0, 3, 4),
            "Overloaded agents",
            Query(
                f"count(max by (job, location) (mailsonde_agent_overloaded{{{AGENT}}}) == 1) or vector(0)",
                "overloaded",
            ),
            "Agents that hold back new messages because they cannot keep up. Give them more processor time "
            "or fewer probes.",
            [("green", None), ("red", 1)],
        ),
    ]


def _versions() -> list[AnyPanel]:
    return [
        listing(
            3,
            (15, 0, 9, 8),
            "Versions",
            [
                Column(
                    f"max by (location, instance, version, python) (mailsonde_build_info{{{AGENT}}})",
                    "",
                    "short",
                ),
            ],
            "Versions of mailsonde and Python at each location. Update outdated agents: results compare "
            "best if all locations measure the same way.",
            sort=("version", False),
        ),
        timeline(
            4,
            (0, 4, 11, 4),
            "Scrapes",
            Query(_UP, "{{instance}}"),
            "Red: Prometheus could not scrape the agent. This causes gaps in all other panels. Check the "
            "agent and the network in between.",
            words=("down", "up"),
        ),
        number(
            19,
            (11, 4, 4, 4),
            "Age of the oldest configuration",
            Query(f"time() - min(mailsonde_config_last_reload_success_timestamp_seconds{{{AGENT}}})", "age"),
            "How long ago the agent with the oldest configuration read it. If you have changed the "
            "configuration since, run `mailsonde reload` there.",
            [("green", None)],
            unit="s",
        ),
    ]


def _runs() -> list[AnyPanel]:
    age = f"time() - {one_by_one('mailsonde_probe_last_run_timestamp_seconds')}"
    stale = one_by_one("mailsonde_threshold_seconds", 'threshold="stale",')
    by_kind = "by (location, kind)"
    seconds = per_second("mailsonde:run_seconds_rate", "mailsonde_probe_duration_seconds_total", by_kind)
    runs = per_second("mailsonde:run_rate", "mailsonde_probe_runs_total", by_kind)
    return [
        graph(
            5,
            (0, 8, 12, 8),
            "Runs by outcome",
            [
                Query(
                    per_second("mailsonde:run_rate", "mailsonde_probe_runs_total", "by (location, outcome)"),
                    "{{outcome}} @ {{location}}",
                )
            ],
            "Finished runs per second. If all outcomes drop together, the agent or its machine has a "
            "problem. If unknown rises, see the reasons on the Server dashboard.",
            unit="cps",
            stacked=True,
        ),
        graph(
            6,
            (12, 8, 12, 8),
            "Longest time since the last run, relative to the limit",
            [
                Query(
                    f"max by (location, kind) ({recorded('mailsonde:last_run_age_ratio')} or ({age}) / "
                    f"ignoring (threshold) {stale})",
                    "{{kind}} @ {{location}}",
                )
            ],
            "Up to a third is normal. Above the dashed line, the last result of some probe is out of date: "
            "check the agent's log.",
            unit="percentunit",
            limits=[("transparent", None), ("red", 1)],
        ),
        graph(
            7,
            (0, 16, 12, 8),
            "Mean duration of runs, by kind",
            [Query(f"{seconds} / ({runs} > 0)", "{{kind}} @ {{location}}")],
            "Mean duration of the runs of a kind. If some are longer than the interval, they are skipped as "
            "overrun: lengthen the interval or shorten the deadline.",
        ),
    ]


def _schedule() -> list[AnyPanel]:
    skipped = per_second("mailsonde:skip_rate", "mailsonde_schedule_skipped_total", "by (location, reason)")
    lag = (
        "histogram_quantile({}, sum by (location, le) "
        f"(rate(mailsonde_schedule_lag_seconds_bucket{{{{{AGENT}}}}}[$__rate_interval])))"
    )
    return [
        graph(
            8,
            (12, 16, 12, 8),
            "Start delay of runs",
            [
                Query(lag.format(0.5), "50 % @ {{location}}"),
                Query(lag.format(0.99), "99 % @ {{location}}"),
            ],
            "Above the dashed line (1 s), the agent's machine is too busy and measurements may suffer: "
            "give it more CPU or fewer probes.",
            limits=[("transparent", None), ("red", 1)],
        ),
        graph(
            9,
            (0, 24, 12, 8),
            "Skipped runs",
            [Query(f"{FIVE_MINUTES} * {skipped}", "{{reason}} @ {{location}}")],
            "How many were skipped in 5 minutes. Missed: the agent could not start the run in time; check "
            "its machine. Overrun: the previous "
            "run was still in progress; lengthen the interval or shorten the deadline.",
            unit="short",
        ),
        listing(
            13,
            (12, 32, 12, 8),
            "Probes with skipped runs",
            [
                Column(
                    top(
                        "sum by (location, probe, target, reason) "
                        f"(increase(mailsonde_schedule_skipped_total{{{PROBE}}}[$__range]))"
                    ),
                    "Runs",
                    "short",
                )
            ],
            "The probes with the most skipped runs in this time range. If one probe skips, look at its "
            "interval; if all do, at the agent's machine.",
            sort=("Runs", True),
            links=[to("Server", OF_ROW)],
        ),
        graph(
            12,
            (0, 32, 12, 8),
            "Clock steps",
            [Query(f"increase(mailsonde_clock_steps_total{{{AGENT}}}[$__rate_interval])", "{{location}}")],
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
            "Unexpected messages",
            [
                Query(
                    "sum by (location, reason) "
                    f"(increase(mailsonde_mailbox_unexpected_total{{{AGENT}}}[$__rate_interval]))",
                    "{{reason}} @ {{location}}",
                )
            ],
            "Forged: someone fakes test messages; find out who. Duplicate: a server delivers twice. "
            "Unknown: another agent uses a mailbox; give each agent its own. The alert names the mailbox.",
            unit="short",
        ),
    ]


def _tokens() -> list[AnyPanel]:
    return [
        graph(
            15,
            (0, 40, 8, 8),
            "Requests for access tokens",
            [
                Query(
                    "sum by (location, oauth2, result) "
                    f"(increase(mailsonde_oauth2_token_requests_total{{{AGENT}}}[$__rate_interval]))",
                    "{{oauth2}} {{result}} @ {{location}}",
                )
            ],
            "Refused: correct the entry of oauth2, or renew its secret or certificate. Unavailable: check "
            "the way to the token endpoint, and the proxy. While a token is valid, logins go on with it.",
            unit="short",
        ),
        graph(
            17,
            (8, 40, 8, 8),
            "Access tokens",
            [
                Query(
                    "max by (location, oauth2) "
                    f"(mailsonde_oauth2_token_expires_timestamp_seconds{{{AGENT}}}) - time()",
                    "{{oauth2}} left @ {{location}}",
                ),
                Query(
                    "time() - max by (location, oauth2) "
                    f"(mailsonde_oauth2_token_obtained_timestamp_seconds{{{AGENT}}})",
                    "{{oauth2}} age @ {{location}}",
                ),
            ],
            "Age of the newest token, and the time for which it is still valid. A token is renewed when at "
            "least a tenth of its lifetime is left; below that, renewing fails.",
            unit="s",
        ),
        graph(
            16,
            (16, 40, 8, 8),
            "Time left for credentials",
            [
                Query(
                    "min by (location, oauth2) "
                    f"(mailsonde_oauth2_credential_not_after_timestamp_seconds{{{AGENT}}}) - time()",
                    "{{oauth2}} @ {{location}}",
                )
            ],
            "When the secrets and certificates expire with which agents ask for tokens. Renew them in time; "
            "the agent reads a new certificate at once.",
            unit="s",
        ),
    ]


def _throttling() -> list[AnyPanel]:
    return [
        graph(
            18,
            (0, 48, 12, 8),
            "Throttled requests",
            [
                Query(
                    "sum by (location, protocol, server, mailbox) "
                    f"(increase(mailsonde_throttled_requests_total{{{AGENT}}}[$__rate_interval]))",
                    "{{server}} {{mailbox}} {{protocol}} @ {{location}}",
                )
            ],
            "Servers that limit this client. Raise the interval, or lower polls_per_message, max_connections "
            "or messages_per_minute of the server.",
            unit="short",
        ),
    ]


def _own_delays() -> list[AnyPanel]:
    def quantiles(metric: str) -> list[Query]:
        buckets = f"sum by (location, le) (rate({metric}_bucket{{{AGENT}}}[$__rate_interval]))"
        return [
            Query(f"histogram_quantile({share}, {buckets})", f"{share:.0%} @ {{{{location}}}}")
            for share in (0.5, 0.99)
        ]

    return [
        graph(
            20,
            (0, 56, 8, 8),
            "Event loop lag",
            quantiles("mailsonde_event_loop_lag_seconds"),
            "How late the event loop is, which runs all probes. Above the dashed line (1 s), look for "
            "swapping, a suspended machine, or too many probes.",
            limits=[("transparent", None), ("red", 1)],
        ),
        graph(
            21,
            (8, 56, 8, 8),
            "Ledger: time for a change",
            [
                *quantiles("mailsonde_ledger_commit_seconds"),
                Query(
                    f"max by (location) (mailsonde_ledger_oldest_wait_seconds{{{AGENT}}})",
                    "oldest waiting @ {{location}}",
                ),
            ],
            "How long changes wait until they are on the disk. A message is sent only after that. If the "
            "oldest one waits longer and longer, the disk hangs.",
            limits=[("transparent", None), ("red", 1)],
        ),
        graph(
            22,
            (16, 56, 8, 8),
            "Runs missing from the history",
            [
                Query(
                    "sum by (location) "
                    f"(increase(mailsonde_ledger_runs_dropped_total{{{AGENT}}}[$__rate_interval]))",
                    "{{location}}",
                )
            ],
            "Finished runs that could not be recorded, because the ledger was too slow or could not be "
            "written. Metrics count them. See the agent's log.",
            unit="short",
        ),
    ]


def _own_resources() -> list[AnyPanel]:
    return [
        graph(
            23,
            (0, 64, 8, 8),
            "File descriptors",
            [
                Query(f"max by (location) (process_open_fds{{{AGENT}}})", "open @ {{location}}"),
                Query(
                    f"max by (location) (mailsonde_descriptors_for_sending{{{AGENT}}})",
                    "no sends from here on @ {{location}}",
                ),
                Query(f"max by (location) (process_max_fds{{{AGENT}}})", "limit @ {{location}}"),
            ],
            "Each connection takes one. Before the limit, the agent stops sending messages; raise "
            "LimitNOFILE of the unit in time.",
            unit="short",
        ),
        graph(
            24,
            (8, 64, 8, 8),
            "Memory",
            [
                Query(f"max by (location) (process_resident_memory_bytes{{{AGENT}}})", "{{location}}"),
                Query(f"max by (location) (mailsonde_memory_limit_bytes{{{AGENT}}})", "limit @ {{location}}"),
            ],
            "At its limit, or the machine's, the kernel kills the agent. If memory grows "
            "although the probes do not, report a defect.",
            unit="bytes",
        ),
        graph(
            25,
            (16, 64, 8, 8),
            "Processor time",
            [
                Query(
                    f"sum by (location) (rate(process_cpu_seconds_total{{{AGENT}}}[$__rate_interval]))",
                    "{{location}}",
                )
            ],
            "1 is one processor. Near 1, the agent soon holds back messages: use longer intervals or fewer "
            "probes, or split them among several agents.",
            unit="short",
        ),
    ]
