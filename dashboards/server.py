"""Servers: which phase of a dialogue is slow or fails, why, and when certificates expire."""

from __future__ import annotations

from boards import board
from delivery import age
from grafana_foundation_sdk.builders import dashboard
from panels import OF_ROW, AnyPanel, Column, gauge, graph, listing, number, slow_mail_from, timeline, to
from queries import (
    BY_ROUTE,
    MOST,
    PROBE,
    ROUTE,
    RUNS,
    WORST,
    Query,
    mean,
    one_by_one,
    per_second,
    recorded,
    top,
)

FAILING = (
    f'sum {BY_ROUTE} (increase(mailsonde_probe_runs_total{{outcome="failed",{PROBE}}}[$__range])) '
    f"+ 1e6 * (1 - max {BY_ROUTE} (mailsonde_probe_success{{{PROBE}}}))"
)
"""Ranks routes: those that fail now come first, then those with the most failed runs."""

EXPIRY = f"mailsonde_tls_certificate_not_after_timestamp_seconds{{{PROBE}}}"


def server() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Server",
        "SMTP, POP3, IMAP and MX as the probes see them: success, phases, reasons, certificates, findings.",
        [
            *_success(),
            *_phases(),
            *_reasons(),
            *_certificates(),
            *_findings(),
            _failures(),
            _failing(),
            slow_mail_from(15, (0, 57, 24, 8)),
        ],
        rank=FAILING,
    )


def _success() -> list[AnyPanel]:
    counter = "mailsonde_probe_runs_total"
    ok, told = (
        per_second("mailsonde:run_rate", counter, "", f"{outcome},", "$__range")
        for outcome in ('outcome="ok"', 'outcome!="unknown"')
    )
    unknown = f'increase({counter}{{outcome="unknown",{PROBE}}}[$__range])'
    return [
        number(
            1,
            (0, 0, 5, 4),
            "Share of ok runs",
            Query(f"{ok} / ({told} > 0)", "ok"),
            "Share of ok runs in this time range, without unknown runs. If it is low, select one probe at "
            "a time to find the server.",
            [("red", None), ("orange", 0.95), ("green", 0.99)],
            unit="percentunit",
        ),
        number(
            2,
            (0, 4, 5, 4),
            "Unknown runs",
            Query(f"sum({unknown}) or vector(0)", "unknown"),
            "Caused by the agent's resolver, network, ledger or machine, or by a server that asks clients "
            "to wait. Fix these first: they hide the state of the servers.",
            [("green", None), ("orange", 1)],
        ),
        timeline(
            3,
            (5, 0, 19, 8),
            "Success of the worst routes",
            Query(f"mailsonde_probe_success{{{WORST}}}", "{{probe}} → {{target}} ({{kind}}) @ {{location}}"),
            "Red: the last known result is a failure. The reasons below say why, and `mailsonde check "
            "--verbose` shows the dialogue.",
            links=[to("Delivery")],
        ),
    ]


def _phases() -> list[AnyPanel]:
    by, phases = "sum by (kind, phase)", one_by_one("mailsonde_probe_phase_seconds")
    seconds = f"{by} ({recorded('mailsonde:phase_seconds')} or {phases})"
    number_of = f"{by} ({recorded('mailsonde:phases')} or 0 * {phases} + 1)"
    return [
        graph(
            4,
            (0, 8, 16, 9),
            "Duration of each phase",
            [Query(f"{seconds} / {number_of}", "{{kind}}: {{phase}}")],
            "Mean duration of each phase of the last runs. Select one probe. Slow DNS: check the resolver. "
            "Slow connect: the network. Slow banner or MAIL FROM: an overloaded server. Slow authentication: "
            "its directory. A round trip shows the banner as part of connect, and MAIL FROM as part of data "
            "unless it takes 5 s.",
            stacked=True,
        ),
        graph(
            5,
            (16, 8, 8, 9),
            "Mean run duration of the worst routes",
            [Query(mean(RUNS, WORST))],
            "Mean duration of their runs. Runs begin to fail near the probe's deadline: find the "
            "phase that grows.",
        ),
    ]


def _reasons() -> list[AnyPanel]:
    def reasons(id_: int, x: int, outcome: str, title: str, description: str) -> AnyPanel:
        counter = f'mailsonde_probe_reasons_total{{outcome="{outcome}",{PROBE}}}'
        runs = f"increase({counter}[$__rate_interval])"
        query = Query(f"sum by (location, reason) ({runs}) > 0", "{{reason}} @ {{location}}")
        return graph(id_, (x, 17, 8, 8), title, [query], description, unit="short")

    return [
        reasons(
            6,
            0,
            "failed",
            "Failed runs, by reason",
            "Why runs failed. docs/reference.md explains each reason. The list at the end says which routes "
            "fail now: fix the problem at their server.",
        ),
        reasons(
            7,
            8,
            "unknown",
            "Unknown runs, by reason",
            "Why runs ended unknown. dns_*: the agent's resolver. local_resources, ledger_unavailable: its "
            "machine. pop3_in_use: another client uses the mailbox, which should be for mailsonde alone.",
        ),
        reasons(
            8,
            16,
            "ok",
            "Warnings, by reason",
            "Runs that were ok but found something to fix, such as a certificate that expires soon. "
            "The findings below say more about domains. Fix them during office hours, before runs fail.",
        ),
    ]


def _certificates() -> list[AnyPanel]:
    left = f"({EXPIRY} - time()) / 86400"
    steps = [("red", None), ("orange", 3), ("green", 14)]
    return [
        gauge(
            9,
            (0, 25, 12, 8),
            "Certificate days left",
            Query(f"bottomk({MOST}, min {BY_ROUTE} ({left}))", ROUTE),
            f"Days until the servers' certificates expire, for the {MOST} that expire first. Renew them at "
            "orange; at red, the critical alert pages someone. Then reload the server: a renewed file that "
            "is not in use changes nothing here.",
            steps,
            unit="d",
            most=90,
        ),
        graph(
            10,
            (12, 25, 12, 8),
            "Certificates that expire soon",
            [
                Query(f"sum by (location) ({left} < bool {days})", f"within {days} days @ {{{{location}}}}")
                for days in (3, 14, 30)
            ],
            "How many routes see a certificate that expires soon. A line falls when a new certificate is in "
            "use. If automatic renewal is due and it does not fall, check its log.",
            unit="short",
        ),
    ]


def _findings() -> list[AnyPanel]:
    def of(severity: str) -> str:
        found = f'mailsonde_finding{{severity="{severity}",{PROBE}}}'
        return f"max by (location, probe, target, check, severity) ({found})"

    found = f"mailsonde_finding{{{PROBE}}}"
    return [
        listing(
            11,
            (0, 33, 14, 8),
            "Findings",
            [Column(top(f"3 * {of('critical')} or 2 * {of('warning')} or {of('info')}"), "", "short")],
            f"What is wrong with domains and hosts now, the {MOST} worst first. Look up the check in "
            "docs/reference.md. The live page of the probe shows what was seen, what was expected and the "
            "remedy.",
            sort=("severity", False),
            links=[to("Server", OF_ROW)],
        ),
        graph(
            12,
            (14, 33, 10, 8),
            "Findings, by severity",
            [Query(f"sum by (location, severity) ({found})", "{{severity}} @ {{location}}")],
            "How many checks have findings. Where a line begins or rises, look for a change to the zones "
            "at that time.",
            unit="short",
        ),
    ]


def _failures() -> AnyPanel:
    failures = f"mailsonde_probe_failure{{{PROBE}}}"
    return listing(
        13,
        (0, 41, 24, 8),
        "Why probes fail",
        [Column(top(f"max by (location, probe, target, outcome, reason, phase) ({failures})"), "", "short")],
        f"Reason and phase of the last run of probes that failed or are unknown, {MOST} at most. Click a row "
        "to select it. The live page shows the run.",
        sort=("reason", False),
        links=[to("Server", OF_ROW)],
    )


def _failing() -> AnyPanel:
    return graph(
        14,
        (0, 49, 24, 8),
        "How long the worst routes with a limit of their own have failed",
        [
            Query(age("mailsonde_probe_failing_since_timestamp_seconds")),
            Query(
                f'max {BY_ROUTE} (mailsonde_threshold_seconds{{threshold="down",{WORST}}})', f"limit: {ROUTE}"
            ),
        ],
        "Since the first failed run, for probes with `alerts: {down: ...}`. Above the line `limit`, the "
        "alert fires: the reasons above say what to fix.",
    )
