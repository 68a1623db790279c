"""A dashboard around its panels: variables, annotations, links to the others."""

from __future__ import annotations

from collections.abc import Iterable

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from panels import SOURCE, AnyPanel
from queries import AGENT, NARROWED, SELECTED, top


def board(
    name: str,
    description: str,
    panels: Iterable[AnyPanel],
    *,
    rank: str = "",
    since: str = "now-3h",
    refresh: str = "30s",
) -> dashboard.Dashboard:
    """Return a dashboard with the common parts: data source, filters, alerts, links to the others.

    ``rank`` is PromQL for a value of each route. The routes with the greatest values are its `$worst`.
    """
    made = (
        dashboard.Dashboard(f"mailsonde: {name}")
        .uid(f"mailsonde-{name.lower()}")
        .description(description)
        .tags(["mailsonde", "mail"])
        .time(since, "now")
        .refresh(refresh)
        .timezone(common.TimeZoneBrowser)
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("mailsonde")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["mailsonde"])
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in _variables():
        made.with_variable(variable)
    for annotation in (_alerts(), _maintenance()):
        made.annotation(annotation)
    if rank:
        made.with_variable(_named("worst", "Worst routes", top(rank)))
    for panel in panels:
        made.with_panel(panel)
    return made


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.TextBoxVariable]:
    hidden = model.VariableHide.HIDE_VARIABLE
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _choice("location", "Location", "label_values(mailsonde_build_info, location)").all_value(".+"),
        # Not lists: a list of 10,000 names takes long to load and to read.
        _text("probe", "Probe (regular expression)", ".+"),
        _text("target", "Target (regular expression)", ".+"),
        _text("labels", 'Labels (team="messaging")', ""),
        _named("selected", "Selected probes", SELECTED).hide(hidden),
        _named("narrowed", "Jobs with a selection of routes", NARROWED).hide(hidden),
    ]


def _alerts() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        # The empty alternatives admit alerts without a probe or from an agent that is down. The
        # heartbeat always fires and would colour everything.
        .expr(
            'ALERTS{alertname=~"Mailsonde.*",alertname!="MailsondeHeartbeat",alertstate="firing",'
            'location=~"$location|",probe=~"$probe|"}'
        )
        .title_format("{{alertname}}")
        .text_format("{{probe}} {{target}} {{location}}")
        .tag_keys("severity")
        .step("30s")
    )


def _maintenance() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Maintenance")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("blue")
        .expr(f'count by (location) (mailsonde_probe_in_maintenance{{{AGENT},probe=~"$probe"}})')
        .title_format("Maintenance")
        .text_format("{{location}}")
        .step("30s")
    )


def _named(name: str, label: str, promql: str) -> dashboard.QueryVariable:
    """Return a variable with the names of the probes in the result of a query."""
    return _choice(name, label, f"query_result({promql})").regex('/probe="([^"]+)"/')


def _text(name: str, label: str, default: str) -> dashboard.TextBoxVariable:
    current = model.VariableOption(text=default, value=default, selected=True)
    return dashboard.TextBoxVariable(name).label(label).default_value(default).current(current)


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .current(model.VariableOption(text="All", value="$__all", selected=True))
    )
