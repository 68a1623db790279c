"""Counts the faults that are tried, and prints at the end how many had the right result, by kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

FAULT = "fault"
"""The property of a test's report that tells the kind and the fault."""


@pytest.fixture(autouse=True)
def any_machine_is_quick_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a busy machine from turning timeouts into ``local_resources``."""
    monkeypatch.setattr("monitor.runner.HELD_UP_SHARE", 2.0)


@pytest.fixture(autouse=True)
def fault_tried(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Record what a test tries: its case, or its own name and parameters for a kind."""
    parameters = dict(request.node.callspec.params) if hasattr(request.node, "callspec") else {}
    if case := parameters.get("case"):
        record_property(FAULT, (case.kind, case.fault))
    elif kind := parameters.pop("kind", None):
        record_property(FAULT, (kind, " ".join([request.node.originalname, *map(str, parameters.values())])))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    faults: dict[str, set[str]] = defaultdict(set)
    tried, right = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call" and (found := dict(report.user_properties).get(FAULT)):
                kind, fault = found
                faults[kind].add(fault)
                tried[kind] += 1
                right[kind] += outcome == "passed"
    if not tried:
        return
    rows = [(kind, len(faults[kind]), tried[kind], right[kind]) for kind in tried]
    rows.append(("all", len(set().union(*faults.values())), tried.total(), right.total()))
    terminalreporter.section("faults × kinds")
    terminalreporter.line(f"{'kind':<24}{'faults':>8}{'tried':>8}{'right':>8}")
    for row in rows:
        terminalreporter.line("{:<24}{:>8}{:>8}{:>8}".format(*row))
