"""The overview dashboard: who is hurt now, how late mail is, and whether the agent itself can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as prometheus_model

WIDTH = 24
"""Columns of Grafana's grid."""

_SOURCE = common.DataSourceRef(type_val="prometheus", uid="$datasource")
_WHERE = '{probe=~"$probe"}'


@dataclass(frozen=True)
class Query:
    """A PromQL query, and how its series are named."""

    promql: str
    legend: str = "{{probe}}"
    instant: bool = False


def overview() -> dashboard.Dashboard:
    """Return the builder of the whole dashboard."""
    board = (
        dashboard.Dashboard("mailsonde: overview")
        .uid("mailsonde-overview")
        .description("Delivery latency and health of mail, as mailsonde measures them.")
        .tags(["mailsonde", "mail"])
        .time("now-3h", "now")
        .refresh("30s")
        .timezone(common.TimeZoneBrowser)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("probe")
            .label("Probe")
            .datasource(_SOURCE)
            .query("label_values(mailsonde_probe_interval_seconds, probe)")
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".+")
        )
    )
    for panel in (*_now(), *_delivery(), *_probes(), *_agent()):
        board.with_panel(panel)
    return board


def _now() -> list[stat.Panel]:
    """Who is hurt now: four numbers that should be 0, and one that should be long."""
    return [
        _number(
            1,
            (0, 0, 6, 4),
            "Probes that fail",
            Query(f"count(mailsonde_probe_success{_WHERE} == 0) or vector(0)", "failing", instant=True),
            "Probes whose last run failed. The state timeline below names them; `mailsonde check` says why.",
            red_from=1,
        ),
        _number(
            2,
            (6, 0, 6, 4),
            "Oldest message in flight",
            Query(
                f"max(time() - (mailsonde_oldest_in_flight_timestamp_seconds{_WHERE} > 0)) or vector(0)",
                "age",
                instant=True,
            ),
            "Age of the oldest message that was sent and has not arrived. When it grows with the clock, mail is stuck.",
            unit="s",
            red_from=60,
        ),
        _number(
            3,
            (12, 0, 6, 4),
            "Lost in this time range",
            Query(
                'sum(increase(mailsonde_messages_total{state="lost",probe=~"$probe"}[$__range])) or vector(0)',
                "lost",
                instant=True,
            ),
            "Messages that a server accepted and that were not in the mailbox at their deadline.",
            red_from=1,
        ),
        _number(
            4,
            (18, 0, 6, 4),
            "First certificate to end",
            Query(
                f"min(mailsonde_tls_certificate_not_after_timestamp_seconds{_WHERE}) - time()",
                "left",
                instant=True,
            ),
            "Time until the first certificate ends. Renew it before it gets red.",
            unit="s",
            red_below=3 * 86400,
        ),
    ]


def _delivery() -> list[timeseries.Panel]:
    return [
        _graph(
            5,
            (0, 4, 12, 8),
            "Delivery latency",
            [Query(f"mailsonde_delivery_last_seconds{_WHERE}")],
            "From connecting until visible in the mailbox, of the message that arrived last.",
        ),
        _graph(
            6,
            (12, 4, 12, 8),
            "How wrong the latency may be",
            [Query(f"mailsonde_delivery_uncertainty_seconds{_WHERE}")],
            "The true latency is within this distance of the published one. Wide: the mailbox is polled seldom.",
        ),
        _graph(
            7,
            (0, 12, 12, 8),
            "95th percentile of deliveries",
            [
                Query(
                    "histogram_quantile(0.95, sum by (probe, le) "
                    f"(rate(mailsonde_delivery_seconds_bucket{_WHERE}[$__rate_interval])))"
                )
            ],
            "95 % of messages arrived within this time. Delivered messages only; lost ones are counted beside.",
        ),
        _graph(
            8,
            (12, 12, 12, 8),
            "Age of the oldest message in flight",
            [
                Query(
                    f"(time() - mailsonde_oldest_in_flight_timestamp_seconds{_WHERE}) * "
                    f"(mailsonde_oldest_in_flight_timestamp_seconds{_WHERE} > bool 0)"
                )
            ],
            "Rises with the clock while mail is stuck, and is near 0 while it flows.",
        ),
        _graph(
            9,
            (0, 20, 12, 8),
            "Messages by state",
            [
                Query(
                    f"sum by (state) (rate(mailsonde_messages_total{_WHERE}[$__rate_interval])) * 60",
                    "{{state}}",
                )
            ],
            "Messages a minute that entered each state. Everything but intent, sent and delivered wants a look.",
            unit="short",
        ),
        _graph(
            10,
            (12, 20, 12, 8),
            "Where the time goes",
            [Query(f"sum by (phase) (mailsonde_probe_phase_seconds{_WHERE})", "{{phase}}")],
            "Seconds that each phase of the last runs took. MAIL FROM that grows is a server under pressure.",
            stacked=True,
        ),
    ]


def _probes() -> list[statetimeline.Panel | timeseries.Panel]:
    timeline = (
        statetimeline.Panel()
        .id(11)
        .title("Probes")
        .description("Green: the last run that could tell was ok. Red: it failed. A gap: nothing was known.")
        .grid_pos(_at((0, 28, WIDTH, 8)))
        .datasource(_SOURCE)
        .with_target(_target(Query(f"mailsonde_probe_success{_WHERE}", "{{probe}} → {{target}}")))
        .thresholds(_steps([("red", None), ("green", 1)]))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .mappings(
            [
                model.ValueMap(
                    options={
                        "0": model.ValueMappingResult(text="failed", color="red", index=0),
                        "1": model.ValueMappingResult(text="ok", color="green", index=1),
                    }
                )
            ]
        )
    )
    reasons = _graph(
        12,
        (0, 36, 12, 8),
        "Runs that were not ok, by reason",
        [
            Query(
                "sum by (outcome, reason) "
                '(increase(mailsonde_probe_runs_total{outcome!="ok",probe=~"$probe"}[$__rate_interval]))',
                "{{outcome}}: {{reason}}",
            )
        ],
        "Why runs failed, or could not tell. docs/reference.md explains each reason.",
        unit="short",
    )
    return [timeline, reasons]


def _agent() -> list[timeseries.Panel]:
    return [
        _graph(
            13,
            (12, 36, 12, 8),
            "Messages that nobody awaited",
            [
                Query(
                    "sum by (mailbox, reason) (increase(mailsonde_mailbox_unexpected_total[$__rate_interval]))",
                    "{{mailbox}}: {{reason}}",
                )
            ],
            "Duplicates, forged or unknown tokens in the mailboxes. Forged: somebody plays with test messages.",
            unit="short",
        ),
        _graph(
            14,
            (0, 44, 12, 8),
            "How late runs start",
            [
                Query(
                    "histogram_quantile(0.99, sum by (le) (rate(mailsonde_schedule_lag_seconds_bucket[$__rate_interval])))",
                    "99th percentile",
                )
            ],
            "Above a second, the agent's machine is too busy, and latencies may suffer.",
        ),
        _graph(
            15,
            (12, 44, 12, 8),
            "Runs that did not start",
            [
                Query(
                    f"sum by (probe, reason) (increase(mailsonde_schedule_skipped_total{_WHERE}[$__rate_interval]))",
                    "{{probe}}: {{reason}}",
                )
            ],
            "Missed: the agent could not start them in time. Overrun: the previous run still went on.",
            unit="short",
        ),
    ]


def _number(
    id_: int,
    place: tuple[int, int, int, int],
    title: str,
    query: Query,
    description: str,
    *,
    unit: str = "short",
    red_from: float | None = None,
    red_below: float | None = None,
) -> stat.Panel:
    steps = (
        [("green", None), ("red", red_from)]
        if red_from is not None
        else [("red", None), ("green", red_below)]
    )
    return (
        stat.Panel()
        .id(id_)
        .title(title)
        .description(description)
        .grid_pos(_at(place))
        .datasource(_SOURCE)
        .unit(unit)
        .with_target(_target(query))
        .thresholds(_steps(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(common.BigValueColorMode.BACKGROUND)
    )


def _graph(
    id_: int,
    place: tuple[int, int, int, int],
    title: str,
    queries: list[Query],
    description: str,
    *,
    unit: str = "s",
    stacked: bool = False,
) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .id(id_)
        .title(title)
        .description(description)
        .grid_pos(_at(place))
        .datasource(_SOURCE)
        .unit(unit)
        .min(0)
        .fill_opacity(20 if stacked else 5)
        .show_points(common.VisibilityMode.AUTO)
        .interval("2m")  # messages are few: a shorter window would often hold none
    )
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    for query in queries:
        panel = panel.with_target(_target(query))
    return panel


def _at(place: tuple[int, int, int, int]) -> model.GridPos:
    """Return a place on the grid: column, row, width, height."""
    x, y, width, height = place
    return model.GridPos(x=x, y=y, w=width, h=height)


def _target(query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.promql).legend_format(query.legend).ref_id("A")
    if query.instant:
        return target.instant().format(prometheus_model.PromQueryFormat.TIME_SERIES)
    return target.range()


def _steps(steps: list[tuple[str, float | None]]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(color=color, value=value) for color, value in steps])
    )
