"""Servers: which step of a dialogue takes long or fails, why, and when certificates end."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import PROBE, AnyPanel, Query, board, gauge, graph, number, timeline, to

_BY = "by (instance, probe, target)"
_NAME = "{{probe}} → {{target}} @ {{instance}}"


def server() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    return board(
        "Server",
        "SMTP, POP3, IMAP and MX as probes see them: success, the time of each phase, reasons, certificates.",
        [*_success(), *_phases(), *_reasons(), *_certificates()],
    )


def _success() -> list[AnyPanel]:
    ok = f'increase(mailsonde_probe_runs_total{{outcome="ok",{PROBE}}}[$__range])'
    told = f'increase(mailsonde_probe_runs_total{{outcome!="unknown",{PROBE}}}[$__range])'
    unknown = f'increase(mailsonde_probe_runs_total{{outcome="unknown",{PROBE}}}[$__range])'
    return [
        number(
            1,
            (0, 0, 5, 4),
            "Runs that were ok",
            Query(f"sum({ok}) / (sum({told}) > 0)", "ok"),
            "Share of the runs of this time range that could tell and were ok. When it is low, choose "
            "probes one by one "
            "to find the server.",
            [("red", None), ("orange", 0.95), ("green", 0.99)],
            unit="percentunit",
        ),
        number(
            2,
            (0, 4, 5, 4),
            "Runs that could not tell",
            Query(f"sum({unknown}) or vector(0)", "unknown"),
            "Faults of the agent's own resolver, network, ledger or machine, or a server that asks to be "
            "left alone. "
            "Mend those first: nothing is known of the servers meanwhile.",
            [("green", None), ("orange", 1)],
        ),
        timeline(
            3,
            (5, 0, 19, 8),
            "Success",
            Query(f"mailsonde_probe_success{{{PROBE}}}", "{{probe}} → {{target}} ({{kind}}) @ {{instance}}"),
            "Red: the last run that could tell failed. The reasons below say why; `mailsonde check` gives "
            "the dialogue.",
            links=[to("Delivery")],
        ),
    ]


def _phases() -> list[AnyPanel]:
    return [
        graph(
            4,
            (0, 8, 16, 9),
            "Where the time goes",
            [
                Query(
                    f"sum by (instance, probe, target, phase) (mailsonde_probe_phase_seconds{{{PROBE}}})",
                    "{{phase}} ({{probe}} → {{target}} @ {{instance}})",
                )
            ],
            "Seconds that each phase of the last run took; choose one probe to read it. DNS: the resolver. "
            "Connect: the network. Banner or MAIL FROM: a server under pressure. Authentication: its "
            "directory.",
            stacked=True,
        ),
        graph(
            5,
            (16, 8, 8, 9),
            "95th percentile of the duration of runs",
            [
                Query(
                    "histogram_quantile(0.95, sum by (instance, probe, target, le) "
                    f"(rate(mailsonde_probe_duration_seconds_bucket{{{PROBE}}}[$__rate_interval])))",
                    _NAME,
                )
            ],
            "95 % of the runs ended within this time. Near a probe's deadline runs begin to fail: "
            "find the phase that grows.",
        ),
    ]


def _reasons() -> list[AnyPanel]:
    def reasons(id_: int, x: int, outcome: str, title: str, description: str) -> AnyPanel:
        chosen = f'outcome="{outcome}",{PROBE}' + (',reason!="none"' if outcome == "ok" else "")
        return graph(
            id_,
            (x, 17, 8, 8),
            title,
            [
                Query(
                    "sum by (instance, probe, reason) "
                    f"(increase(mailsonde_probe_runs_total{{{chosen}}}[$__rate_interval])) > 0",
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
            "Why the servers failed. Look the reason up in docs/reference.md, and act at the server that "
            "it names.",
        ),
        reasons(
            7,
            8,
            "unknown",
            "Runs that could not tell, by reason",
            "Why nothing is known. dns_*: the agent's resolver; local_resources, ledger_unavailable: its "
            "machine; "
            "pop3_in_use: somebody else uses the mailbox, which should be mailsonde's alone.",
        ),
        reasons(
            8,
            16,
            "ok",
            "Warnings, by reason",
            "Runs that were ok with something to mend, such as a certificate that ends soon or an MX "
            "target that is "
            "an alias. Mend it in office hours, before it fails.",
        ),
    ]


def _certificates() -> list[AnyPanel]:
    left = f"(min {_BY} (mailsonde_tls_certificate_not_after_timestamp_seconds{{{PROBE}}}) - time()) / 86400"
    steps = [("red", None), ("orange", 3), ("green", 14)]
    return [
        gauge(
            9,
            (0, 25, 12, 8),
            "Days left of certificates",
            Query(left, _NAME),
            "Days until the certificate that the server showed ends. Renew at orange; at red somebody is "
            "on call. "
            "Then see that the server was reloaded: a renewed file that is not in use changes nothing here.",
            steps,
            unit="d",
            most=90,
        ),
        graph(
            10,
            (12, 25, 12, 8),
            "Days left of certificates, over time",
            [Query(left, _NAME)],
            "Jumps up when a new certificate is in use. When automatic renewal is due and there is no jump, "
            "look at its log.",
            unit="d",
            least=None,
            limits=[("red", None), ("orange", 3), ("transparent", 14)],
        ),
    ]
