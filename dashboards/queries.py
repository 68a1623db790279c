"""PromQL of all dashboards: what the variables select, and sums over many routes."""

from __future__ import annotations

from dataclasses import dataclass

AGENT = 'location=~"$location"'
"""Matchers of metrics of the agent itself."""

PROBE = f'{AGENT},probe=~"${{selected:pipe}}",target=~"$target"'
"""Matchers of metrics of the selected probes."""

WORST = f'{AGENT},probe=~"$worst",target=~"$target"'
"""Matchers of metrics of the worst of the selected probes, for panels with one line a route."""

MOST = 20
"""Maximum number of worst routes, and of rows in a table."""

FIVE_MINUTES = 300
"""The seconds for which graphs show rates that are too small to be read by the second."""

BY_ROUTE = "by (job, location, probe, target)"

ROUTE = "{{probe}} → {{target}} @ {{location}}"
"""The legend of a route's series."""

_NAMED = f'mailsonde_probe_info{{{AGENT},probe=~"$probe",target=~"$target"}}'
_LABELLED = f"{_NAMED[:-1]},$labels}}"

SELECTED = (
    f'label_replace(vector(1), "probe", "$probe", "", "") and on () (count({_LABELLED}) == count({_NAMED})) '
    f"or on () count by (probe) ({_LABELLED})"
)
"""PromQL for the selected probes: the pattern of names or, if labels narrow it down, each of the names.

Panels filter by the names because a join with the labels would double the work of every query.
"""

_ALL_SELECTED = f"count({_LABELLED}) == count(mailsonde_probe_info{{{AGENT}}})"
_BEGAN_EARLIER = (
    f"group(mailsonde_build_info{{{AGENT}}} offset $__range) "
    f"unless on () group(mailsonde:run_rate{{{AGENT}}} offset $__range)"
)
"""PromQL for whether the time range begins before the rules were loaded."""

NARROWED = (
    f'label_replace(vector(1), "probe", "-", "", "") and on () ({_ALL_SELECTED}) '
    f"and on () group(mailsonde:run_rate{{{AGENT}}}) unless on () ({_BEGAN_EARLIER}) "
    'or on () label_replace(vector(1), "probe", ".+", "", "")'
)
"""PromQL for the jobs whose routes panels read one by one: `-`, which is none, if all routes are selected.

Panels then read what the rules record for all of them. Where the rules did not, it is all jobs.
"""

_RECORDED = f'job!~"${{narrowed:pipe}}",{AGENT}'
_ONE_BY_ONE = f'job=~"${{narrowed:pipe}}",{PROBE}'


@dataclass(frozen=True)
class Query:
    """A PromQL query and the legend of its series."""

    promql: str
    legend: str = ROUTE


def top(vector: str) -> str:
    """Return PromQL for the greatest values of ``vector``."""
    return f"topk({MOST}, {vector})"


DELIVERIES = "mailsonde_delivery_seconds_sum", "mailsonde_delivery_seconds_count"
RUNS = "mailsonde_probe_duration_seconds_total", "mailsonde_probe_runs_total"


def mean(seconds_and_number: tuple[str, str], matchers: str, by: str = BY_ROUTE) -> str:
    """Return PromQL for the mean duration of a few deliveries or runs. Empty if there are none."""
    total, count = (
        f"sum {by} (rate({counter}{{{matchers}}}[$__rate_interval]))" for counter in seconds_and_number
    )
    return f"{total} / ({count} > 0)"


def per_second(
    recorded: str, counter: str, by: str, matcher: str = "", window: str = "$__rate_interval"
) -> str:
    """Return PromQL for the rate of a counter of many routes, ``recorded`` as a metric for all of them.

    ``matcher`` is one more matcher, of both metrics, that ends with a comma.
    """
    return (
        f"sum {by} (avg_over_time({recorded}{{{matcher}{_RECORDED}}}[{window}]) "
        f"or rate({counter}{{{matcher}{_ONE_BY_ONE}}}[{window}]))"
    )


def recorded(metric: str, labels: str = "") -> str:
    """Return the selector of a metric that is recorded for all routes; nothing if only some are selected."""
    return f"{metric}{{{labels}{_RECORDED}}}"


def one_by_one(metric: str, labels: str = "") -> str:
    """Return the selector of a metric of the selected routes; nothing if rules record it for all of them."""
    return f"{metric}{{{labels}{_ONE_BY_ONE}}}"
