"""``python -m tests.benchmarks [FIGURE]...``: the figures, side by side with other tools.

``python -m tests.benchmarks beside REVISION``: side by side with another revision of mailsonde.
``python -m tests.benchmarks scale --help``: the options of one figure.
"""

from __future__ import annotations

import os
import platform
import sys

from tests.benchmarks import (
    alert_replay,
    bad_input,
    beside,
    cloud,
    dashboard_queries,
    exchange_matrix,
    fault_to_page,
    first_minutes,
    isolation,
    latency,
    ledger_at_size,
    ledger_intents,
    live_page,
    mailbox_rate,
    memory,
    open_messages,
    polling,
    profile,
    reload,
    round_trip,
    rule_evaluation,
    scale,
    scrape,
    smtp_probe,
    start,
    tokens,
)

_missed: list[str] = []
"""The figures that did not reach their goal."""


def _smtp() -> None:
    print(f"processor time of an SMTP STARTTLS probe, {smtp_probe.PROBES_A_SECOND} a second, same Postfix:")
    if not _compare(smtp_probe.measure(), smtp_probe.GOAL):
        _missed.append("smtp")


def _roundtrip() -> None:
    print(
        f"processor time of a complete round trip, {round_trip.ROUTES} routes by each protocol, "
        f"a message every {round_trip.INTERVAL} s each:"
    )
    if not _compare(round_trip.measure(), round_trip.GOAL):
        _missed.append("roundtrip")


def _scrape() -> None:
    if not scrape.main():
        _missed.append("scrape")


def _reload() -> None:
    if not reload.main():
        _missed.append("reload")


def _bad() -> None:
    if not bad_input.main():
        _missed.append("bad")


def _profile() -> None:
    if not profile.main():
        _missed.append("profile")


def _dashboards() -> None:
    if not dashboard_queries.main():
        _missed.append("dashboards")


def _rules() -> None:
    if not rule_evaluation.main():
        _missed.append("rules")


def _compare(figures: dict[str, float], goal: float) -> bool:
    """Print the figures; return whether the ratio meets its goal."""
    for name, value in figures.items():
        print(f"  {name:26} {value:10.3f}" + (f"   goal: at most {goal:.2f}" if name == "ratio" else ""))
    return figures["ratio"] <= goal


def _ledger() -> None:
    ledger_intents.main()
    ledger_at_size.main()


FIGURES = {
    "smtp": _smtp,
    "roundtrip": _roundtrip,
    "profile": _profile,
    "ledger": _ledger,
    "latency": latency.main,
    "polling": polling.main,
    "open": open_messages.main,
    "rate": mailbox_rate.main,
    "page": live_page.main,
    "dashboards": _dashboards,
    "rules": _rules,
    "alerts": alert_replay.main,
    "pages": fault_to_page.main,
    "first": first_minutes.main,
    "start": start.main,
    "isolation": isolation.main,
    "scale": scale.main,
    "bad": _bad,
    "scrape": _scrape,
    "reload": _reload,
    "tokens": tokens.main,
    "cloud": cloud.main,
    "exchange": exchange_matrix.main,
    "memory": memory.main,
}

WITH_OPTIONS = {
    "bad": bad_input.main,
    "dashboards": dashboard_queries.main,
    "scale": scale.main,
    "memory": memory.main,
    "profile": profile.main,
    "reload": reload.main,
    "rules": rule_evaluation.main,
}


def main(names: list[str]) -> None:
    """Print the named figures, or all."""
    if names[:1] == ["beside"]:
        beside.main(names[1:], _compare)
        return
    if len(names) > 1 and names[0] in WITH_OPTIONS and names[1].startswith("-"):
        WITH_OPTIONS[names[0]](names[1:])
        return
    if unknown := set(names) - FIGURES.keys():
        sys.exit(f"no figure {', '.join(sorted(unknown))}; there are: {', '.join(FIGURES)}")
    print(
        f"{os.cpu_count()} processors, Python {platform.python_version()}; medians of several rounds",
        flush=True,
    )
    for name in names or FIGURES:
        FIGURES[name]()
        sys.stdout.flush()
    if _missed:
        sys.exit(f"goal not reached: {', '.join(_missed)}")


main(sys.argv[1:])
