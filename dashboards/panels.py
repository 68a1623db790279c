"""The kinds of panel, and their links to other dashboards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model
from queries import BY_ROUTE, PROBE, Query, top

Place = tuple[int, int, int, int]
"""Column, row, width and height on Grafana's grid of 24 columns."""

Steps = Sequence[tuple[str, float | None]]
"""Colours, each with the value where it begins; the first has none."""

AnyPanel = bargauge.Panel | heatmap.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
_Panel = TypeVar(
    "_Panel",
    bargauge.Panel,
    heatmap.Panel,
    stat.Panel,
    statetimeline.Panel,
    table.Panel,
    timeseries.Panel,
)

SOURCE = common.DataSourceRef(type_val="prometheus", uid="$datasource")
_KEPT = "${datasource:queryparam}&${location:queryparam}&${labels:queryparam}&${__url_time_range}"


OF_SERIES = "var-probe=${__field.labels.probe}&var-target=${__field.labels.target}"
OF_ROW = "var-probe=${__data.fields.probe}&var-target=${__data.fields.target}"


def to(name: str, route: str = OF_SERIES) -> dashboard.DashboardLink:
    """Return a link from a series to another dashboard for the same route; it keeps the other variables."""
    return (
        dashboard.DashboardLink(name)
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/mailsonde-{name.lower()}?{route}&{_KEPT}")
    )


def to_all(name: str) -> dashboard.DashboardLink:
    """Return a link to another dashboard that keeps all variables, for a series of several probes."""
    return to(name, "${probe:queryparam}&${target:queryparam}")


def number(
    id_: int,
    place: Place,
    title: str,
    query: Query,
    description: str,
    steps: Steps,
    *,
    unit: str = "short",
    links: Sequence[dashboard.DashboardLink] = (),
) -> stat.Panel:
    """Return a panel with one number, or one per series, on a colour that rates it.

    A ``short`` number is a count. `increase` returns fractions, so round before showing and colouring it.
    """
    panel = _filled(stat.Panel(), id_, place, title, description, unit, links)
    if unit == "short":
        panel = panel.decimals(0)
        steps = [(color, None if value is None else value - 0.5) for color, value in steps]
    return (
        panel.with_target(_now(query))
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
    )


def gauge(
    id_: int,
    place: Place,
    title: str,
    query: Query,
    description: str,
    steps: Steps,
    *,
    unit: str = "percentunit",
    most: float = 1.0,
    links: Sequence[dashboard.DashboardLink] = (),
) -> bargauge.Panel:
    """Return a panel with a bar for each series."""
    panel = _filled(bargauge.Panel(), id_, place, title, description, unit, links)
    return (
        panel.with_target(_now(query))
        .min(0)
        .max(most)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )


def graph(
    id_: int,
    place: Place,
    title: str,
    queries: Sequence[Query],
    description: str,
    *,
    unit: str = "s",
    stacked: bool = False,
    least: float | None = 0.0,
    limits: Steps = (),
    links: Sequence[dashboard.DashboardLink] = (),
    interval: str = "5m",  # a shorter window would often contain no message, and take longer to read
) -> timeseries.Panel:
    """Return a panel with lines over time from ``least`` upwards; ``limits`` are dashed lines.

    ``interval`` is the shortest time between two points.
    """
    panel = _filled(timeseries.Panel(), id_, place, title, description, unit, links)
    panel = (
        panel.fill_opacity(20 if stacked else 5)
        .show_points(common.VisibilityMode.AUTO)
        .legend(_legend())
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .interval(interval)
    )
    if least is not None:
        panel = panel.min(least)
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if limits:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(limits)).thresholds_style(style)
    for letter, query in zip("ABCDEF", queries, strict=False):
        panel = panel.with_target(_over_time(query, letter))
    return panel


def timeline(
    id_: int,
    place: Place,
    title: str,
    query: Query,
    description: str,
    *,
    words: tuple[str, str] = ("failed", "ok"),
    links: Sequence[dashboard.DashboardLink] = (),
) -> statetimeline.Panel:
    """Return a panel with a bar over time for each series of 0 and 1; ``words`` are their names."""
    panel = _filled(statetimeline.Panel(), id_, place, title, description, "bool", links)
    return (
        panel.with_target(_over_time(query))
        .thresholds(_thresholds([("red", None), ("green", 1)]))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .mappings([zero_or_one(words)])
        .show_value(common.VisibilityMode.NEVER)
        .legend(_legend())
    )


def heat(id_: int, place: Place, title: str, promql: str, description: str) -> heatmap.Panel:
    """Return a heat map of a histogram of seconds over time."""
    panel = _filled(heatmap.Panel(), id_, place, title, description, "short", ())
    buckets = _over_time(Query(promql, "{{le}}")).format(prometheus_model.PromQueryFormat.HEATMAP)
    return (
        panel.with_target(buckets)
        .interval("5m")
        .calculate(False)
        .cell_gap(1)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .exponent(0.5)
            .fill("dark-orange")
            .reverse(False)
        )
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(common.AxisPlacement.LEFT))
        .tooltip(heatmap.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True))
        .show_legend()
    )


@dataclass(frozen=True)
class Column:
    """A column of a table: a query, its heading and its unit. Without a heading, only the labels appear."""

    promql: str
    head: str
    unit: str


def listing(
    id_: int,
    place: Place,
    title: str,
    columns: Sequence[Column],
    description: str,
    *,
    sort: tuple[str, bool],
    words: tuple[str, str] = ("failed", "ok"),
    links: Sequence[dashboard.DashboardLink] = (),
) -> table.Panel:
    """Return a table of query results, merged by labels; ``sort`` is a heading and whether it descends.

    Columns of the unit ``bool`` show ``words`` in colour instead of 0 and 1.
    """
    panel = _filled(table.Panel(), id_, place, title, description, "short", links)
    heads: dict[str, str] = {}
    for letter, column in zip("ABCDEFGH", columns, strict=False):
        target = _now(Query(column.promql, ""), letter).format(prometheus_model.PromQueryFormat.TABLE)
        panel = panel.with_target(target)
        heads[f"Value #{letter}" if len(columns) > 1 else "Value"] = column.head
        shown = [model.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.unit == "short":
            shown.append(model.DynamicConfigValue(id_val="decimals", value=0))
        if column.unit == "bool":
            shown.append(model.DynamicConfigValue(id_val="mappings", value=[zero_or_one(words)]))
            shown.append(
                model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"})
            )
        panel = panel.override_by_name(column.head, shown)
    hidden = ["Time", "job", *(value for value, head in heads.items() if not head)]
    arranged = {"excludeByName": dict.fromkeys(hidden, True), "renameByName": heads}
    return (
        panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options=arranged))
        .sort_by([common_builders.TableSortByFieldState().display_name(sort[0]).desc(sort[1])])
    )


def slow_mail_from(id_: int, place: Place) -> timeseries.Panel:
    """Return the panel on back pressure, which two dashboards have."""
    delay = f'mailsonde_probe_phase_seconds{{phase="mail",{PROBE}}}'
    return graph(
        id_,
        place,
        "Slowest answers to MAIL FROM",
        [Query(top(f"max {BY_ROUTE} ({delay})"))],
        "In the last runs; of round trips, only answers after 5 s or more. From 10 s in steps of 5 s, if "
        "other answers are quick: Exchange's back pressure, before it refuses mail. Free its disk, memory or "
        "queues.",
    )


def zero_or_one(words: tuple[str, str]) -> model.ValueMap:
    """Return the mapping of 0 to a red word and of 1 to a green word."""
    return model.ValueMap(
        options={
            str(value): model.ValueMappingResult(text=words[value], color=color, index=value)
            for value, color in enumerate(("red", "green"))
        }
    )


def _filled(
    panel: _Panel,
    id_: int,
    place: Place,
    title: str,
    description: str,
    unit: str,
    links: Sequence[dashboard.DashboardLink],
) -> _Panel:
    x, y, width, height = place
    panel.id(id_).title(title).description(description).datasource(SOURCE).unit(unit)
    panel.grid_pos(model.GridPos(x=x, y=y, w=width, h=height))
    if links:
        panel.data_links(list(links))
    return panel


def _over_time(query: Query, ref_id: str = "A") -> prometheus.Dataquery:
    target = prometheus.Dataquery().datasource(SOURCE).expr(query.promql).legend_format(query.legend)
    return target.ref_id(ref_id).range()


def _now(query: Query, ref_id: str = "A") -> prometheus.Dataquery:
    return _over_time(query, ref_id).instant().format(prometheus_model.PromQueryFormat.TIME_SERIES)


def _legend() -> common_builders.VizLegendOptions:
    return (
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .calcs([])
    )


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(color=color, value=value) for color, value in steps])
    )
