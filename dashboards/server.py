"""Servers: which phase of a dialogue is slow or fails, why, and when certificates expire."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import PROBE, AnyPanel, Column, Query, board, gauge, graph, listing, number, timeline, to

_BY = "by (instance, probe, target)"
_NAME = "{{probe}} → {{target}} @ {{instance}}"


def server() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Server",
        "SMTP, POP3, IMAP and MX as the probes see them: success, phases, reasons, certificates, findings.",
        [*_success(), *_phases(), *_reasons(), *_certificates(), *_findings()],
    )


def _success() -> list[AnyPanel]:
    ok = f'increase(mailsonde_probe_runs_total{{outcome="ok",{PROBE}}}[$__range])'
    told = f'increase(mailsonde_probe_runs_total{{outcome!="unknown",{PROBE}}}[$__range])'
    unknown = f'increase(mailsonde_probe_runs_total{{outcome="unknown",{PROBE}}}[$__range])'
    return [
        number(
            1,
            (0, 0, 5, 4),
            "Share of ok runs",
            Query(f"sum({ok}) / (sum({told}) > 0)", "ok"),
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
            "Success",
            Query(f"mailsonde_probe_success{{{PROBE}}}", "{{probe}} → {{target}} ({{kind}}) @ {{instance}}"),
            "Red: the last known result is a failure. The reasons below say why, and `mailsonde check "
            "--verbose` shows the dialogue.",
            links=[to("Delivery")],
        ),
    ]


def _phases() -> list[AnyPanel]:
    return [
        graph(
            4,
            (0, 8, 16, 9),
            "Duration of each phase",
            [
                Query(
                    f"sum by (instance, probe, target, phase) (mailsonde_probe_phase_seconds{{{PROBE}}})",
                    "{{phase}} ({{probe}} → {{target}} @ {{instance}})",
                )
            ],
            "Duration of each phase of the last run. Select one probe. Slow DNS: check the resolver. Slow "
            "connect: the network. Slow banner or MAIL FROM: an overloaded server. Slow authentication: "
            "its directory.",
            stacked=True,
        ),
        graph(
            5,
            (16, 8, 8, 9),
            "95th percentile of run duration",
            [
                Query(
                    "histogram_quantile(0.95, sum by (instance, probe, target, le) "
                    f"(rate(mailsonde_probe_duration_seconds_bucket{{{PROBE}}}[$__rate_interval])))",
                    _NAME,
                )
            ],
            "95 % of runs ended within this time. Runs begin to fail near the probe's deadline: find the "
            "phase that grows.",
        ),
    ]


def _reasons() -> list[AnyPanel]:
    def reasons(id_: int, x: int, outcome: str, title: str, description: str) -> AnyPanel:
        chosen = f'outcome="{outcome}",{PROBE}'
        return graph(
            id_,
            (x, 17, 8, 8),
            title,
            [
                Query(
                    "sum by (instance, probe, reason) "
                    f"(increase(mailsonde_probe_reasons_total{{{chosen}}}[$__rate_interval])) > 0",
                    "{{probe}}: {{reason}} @ {{instance}}",
                )
            ],
            description,
            unit="short",
        )

    return [
        reasons(
            6,
            0,
            "failed",
            "Failed runs, by reason",
            "Why runs failed. docs/reference.md explains each reason. Fix the problem at the server that "
            "the legend names.",
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
    left = f"(min {_BY} (mailsonde_tls_certificate_not_after_timestamp_seconds{{{PROBE}}}) - time()) / 86400"
    steps = [("red", None), ("orange", 3), ("green", 14)]
    return [
        gauge(
            9,
            (0, 25, 12, 8),
            "Certificate days left",
            Query(left, _NAME),
            "Days until the server's certificate expires. Renew it at orange; at red, the critical alert "
            "pages someone. Then reload the server: a renewed file that is not in use changes nothing here.",
            steps,
            unit="d",
            most=90,
        ),
        graph(
            10,
            (12, 25, 12, 8),
            "Certificate days left, over time",
            [Query(left, _NAME)],
            "Jumps up when a new certificate is in use. If automatic renewal is due and there is no jump, "
            "check its log.",
            unit="d",
            least=None,
            limits=[("red", None), ("orange", 3), ("transparent", 14)],
        ),
    ]


def _findings() -> list[AnyPanel]:
    return [
        listing(
            11,
            (0, 33, 14, 8),
            "Findings",
            [
                Column(
                    f"max by (instance, probe, target, check, severity) (mailsonde_finding{{{PROBE}}})",
                    "",
                    "short",
                )
            ],
            "What is wrong with domains and hosts now. Look up the check in docs/reference.md. "
            "The live page of the probe shows what was seen, what was expected and the remedy.",
            sort=("severity", False),
        ),
        graph(
            12,
            (14, 33, 10, 8),
            "Findings, by severity",
            [
                Query(
                    f"sum by (instance, probe, target, severity) (mailsonde_finding{{{PROBE}}})",
                    "{{severity}}: {{probe}} → {{target}} @ {{instance}}",
                )
            ],
            "How many checks have findings. Where a line begins or rises, look for a change to the zone "
            "at that time.",
            unit="short",
        ),
    ]
