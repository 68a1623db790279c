"""When alerts fire over a replayed week: promtool, Prometheus' own code, evaluates the rules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from tests.real_servers.prometheus import promtool
from tests.replay.series import Recorder
from tests.unit.dashboards.promql import parse, reads

FIRING = 'ALERTS{alertstate="firing",alertname!="MailsondeHeartbeat"}'
_TIME = re.compile(r"^\s+expr: .*, time: (\S+),$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

Alert = frozenset[tuple[str, str]]
"""The labels of one alert."""


def metrics_of(rules: Path) -> set[str]:
    """Return the names of all series that the rules in a directory read."""
    files = [yaml.safe_load(path.read_text()) for path in rules.glob("*.rules.yaml")]
    expressions = [rule["expr"] for file in files for group in file["groups"] for rule in group["rules"]]
    read = {read.metric for expression in expressions for read in reads(parse(expression))}
    return read | {"mailsonde_build_info"}  # from which MailsondeAgentDown has its location


def firing(rules: Path, recorded: Recorder, step: float) -> list[tuple[float, frozenset[Alert]]]:
    """Return which alerts fire at each evaluation, as time in seconds and the alerts' labels.

    ``rules`` is the directory of the rendered rules. They are evaluated every ``step`` seconds, which is also
    the scrape interval.
    """
    times = [step * number for number in range(recorded.scrapes)]
    shown = f"{step:g}s"
    test = {
        "rule_files": [path.name for path in sorted(rules.glob("*.rules.yaml"))],
        "group_eval_order": ["mailsonde-probes"],  # the other groups read what it records
        "evaluation_interval": shown,
        "tests": [
            {
                "interval": shown,
                "input_series": list(recorded.written()),
                "promql_expr_test": [{"expr": FIRING, "eval_time": f"{time:g}s"} for time in times],
            }
        ],
    }
    path = rules / "week.json"  # JSON is also YAML
    path.write_text(json.dumps(test))
    answered = promtool("test", "rules", path)
    at: dict[float, set[Alert]] = {time: set() for time in times}
    now = -1.0
    for line in answered.stderr.splitlines():
        if (match := _TIME.match(line)) is not None:
            now = _seconds(match[1])
        elif "__name__" in line:
            for sample in re.findall(r"{(.*?)} 1E\+00", line):
                at[now].add(_labels(sample))
        elif "exp: nil" not in line and line.strip() not in {"", "FAILED:"}:
            raise AssertionError(f"promtool: {line}")
    return [(time, frozenset(alerts)) for time, alerts in at.items()]


def _labels(sample: str) -> Alert:
    pairs = ((name, json.loads(f'"{value}"')) for name, value in _LABEL.findall(sample))
    return frozenset((name, value) for name, value in pairs if name not in {"__name__", "alertstate"})


def _seconds(duration: str) -> float:
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhdw])", duration))
