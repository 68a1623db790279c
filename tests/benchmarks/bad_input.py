"""Whether mailboxes that are well keep their time and precision beside others that are not.

``python -m tests.benchmarks bad [--mailboxes 1200] [--seconds 60] [--protocol pop3]``

A route learns from its messages when to poll. With only a few of them, two measurements may differ more by
what was learnt than by the dead mailboxes.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import mailbox_rate
from tests.benchmarks.mail_load import Load, Metrics, Published, configuration, running, wait
from tests.fakes.mail_site.connection import Pace
from tests.fakes.mail_site.process import MailSite

DEAD = ("dead", "refused", "hole")
"""How mailboxes are dead, in turn: no answer to the login, a refusal of it, or a server that says nothing."""

TIMEOUT = 10.0
"""Time limit of the servers, in seconds."""

FOREIGN, LEFT_OVER = 100_000, 5000
"""Messages in a full mailbox: of other people, and of ours."""

WARM_UP = 13
"""Intervals before a measurement."""

GOAL = 1.25
"""Uncertainty of the well mailboxes' latencies, relative to that without the others."""


@dataclass(frozen=True)
class HalfDead(Load):
    """A load with one route a mailbox, with ``dead`` mailboxes behind those that are well."""

    routes_a_mailbox: int = 1
    dead: int = 0

    @property
    def well(self) -> int:
        return self.routes - self.dead

    def address(self, mailbox: int) -> str:
        """Return the address of a mailbox."""
        how = "canary" if mailbox < self.well else DEAD[mailbox % len(DEAD)]
        return f"{how}-{mailbox}@example.com"

    @property
    def settings(self) -> dict[str, object]:
        """Settings of the mailboxes' server beyond its address."""
        return {"logins_per_minute": 60000, "timeout": f"{TIMEOUT:g}s"}


def _configured(
    hole: int, load: Load, site: MailSite, authority: Path, directory: Path, port: int
) -> dict[str, Any]:
    """Return the configuration, in which some mailboxes are at a server that accepts and says nothing."""
    document = configuration(load, site, authority, directory, port)
    document["agent"]["max_connections"] = 2 * load.routes + 1000
    document["servers"]["hole"] = {**document["servers"][load.protocol], "port": hole}
    for mailbox in document["mailboxes"].values():
        if mailbox["address"].startswith("hole"):
            mailbox["server"] = "hole"
    return document


@dataclass
class Figures:
    """What the well mailboxes got, and what the agent took for all."""

    load: HalfDead
    ok: float = 0.0
    seconds: float = 0.0
    cores: float = 0.0
    resident: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    published: list[Published] = field(default_factory=list)

    @property
    def on_time(self) -> float:
        """Share of the well routes' runs that ended well in their minute."""
        return self.ok / (self.load.well * self.seconds / self.load.interval)

    @property
    def uncertainty(self) -> float:
        """Median uncertainty of the published latencies, in seconds."""
        return statistics.median([each.uncertainty for each in self.published] or [float("nan")])


def _changes(after: Metrics, before: Metrics, name: str, label: str) -> Counter[str]:
    return Counter(after.by(name, label)) - Counter(before.by(name, label))


def measure(load: HalfDead, warm_up: float, seconds: float) -> Figures:
    """Run a load for ``seconds``, after ``warm_up`` seconds in which dead mailboxes are found out."""
    figures = Figures(load)
    with ExitStack() as stack:
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        configure = partial(_configured, hole.getsockname()[1])
        at_work = stack.enter_context(running(load, configure=configure))
        wait(warm_up, f"{load.routes:,} mailboxes, {load.dead:,} dead, first runs")
        before, since, (used, _) = at_work.metrics(), time.monotonic(), at_work.cpu()
        wait(seconds, f"{load.routes:,} mailboxes, {load.dead:,} dead")
        after, figures.seconds = at_work.metrics(), time.monotonic() - since
        figures.cores = (at_work.cpu()[0] - used) / figures.seconds
        figures.resident = at_work.resident() / 1024
        figures.ok = _changes(after, before, "mailsonde_probe_runs_total", "outcome")["ok"]
        figures.reasons = _changes(after, before, "mailsonde_probe_reasons_total", "reason")
        figures.skipped = _changes(after, before, "mailsonde_schedule_skipped_total", "reason")
        at_work.agent.stop()
        figures.published = at_work.published(since)
    return figures


def _row(figures: Figures, alone: float) -> str:
    load = figures.load
    errors = sorted(each.error for each in figures.published) or [float("nan")]
    within = sum(each.is_within for each in figures.published) / max(1, len(figures.published))
    return (
        f"{load.protocol:6}{load.well:8,}{load.dead:8,}{figures.on_time:9.1%}"
        f"{1000 * errors[len(errors) // 2]:9.1f}{1000 * errors[int(len(errors) * 0.99)]:9.1f}"
        f"{1000 * figures.uncertainty:13.1f}{figures.uncertainty / alone:7.2f}{within:9.1%}"
        f"{figures.cores:7.2f}{figures.resident:7.0f}"
    )


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the figures; return whether the well mailboxes kept their precision."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks bad")
    options.add_argument("--mailboxes", type=int, default=1200, help="mailboxes, of which half are dead")
    options.add_argument("--interval", type=float, default=30.0, help="seconds between two messages to one")
    options.add_argument("--seconds", type=float, default=60.0, help="seconds of each measurement")
    options.add_argument("--warm-up", type=float, help=f"seconds before it; default: {WARM_UP} intervals")
    options.add_argument("--protocol", choices=("pop3", "imap"), action="append")
    told = options.parse_args(arguments)
    protocols = told.protocol or ("pop3", "imap")
    _one_mailbox(protocols)
    return _half_dead(protocols, told)


def _one_mailbox(protocols: Sequence[str]) -> None:
    """Print how precise one mailbox is that is full, or whose server is slow, beside one that is neither."""
    print(f"one mailbox, a message a second, 50 ms a command; {FOREIGN:,} messages of other people and")
    print(f"{LEFT_OVER:,} of ours in it before; or a message in five seconds, and a second a command:")
    print(f"{'':6}{'':12}{'found':>7}{'error ms p50':>14}{'p99':>8}{'uncertainty':>13}{'ratio':>7}", end="")
    print(f"{'within':>9}{'cleaned up':>12}{'missing':>11}{'CPU s':>7}", flush=True)
    cases: dict[str, dict[str, float]] = {
        "alone": {},
        "full": {"foreign": FOREIGN, "left_over": LEFT_OVER},
        "slow": {"command": 1.0},
    }
    for protocol in protocols:
        alone = float("nan")
        for name, bad in cases.items():
            rate = 12.0 if name == "slow" else 60.0
            outcome = mailbox_rate.measure(protocol, rate, 40.0, **bad)  # type: ignore[arg-type] # whole numbers
            errors = sorted(outcome.errors()) or [(float("nan"), float("nan"))]
            uncertainty = statistics.median(width for _, width in errors)
            alone = uncertainty if name == "alone" else alone
            within = sum(error <= width + 1e-4 for error, width in errors) / len(errors)
            missing = bad.get("foreign", 0) - outcome.seen.foreign
            print(
                f"{protocol:6}{name:12}{len(outcome.found):7}{1000 * errors[len(errors) // 2][0]:14.1f}"
                f"{1000 * errors[int(len(errors) * 0.99)][0]:8.1f}{1000 * uncertainty:13.1f}"
                f"{uncertainty / alone:7.2f}{within:9.1%}{outcome.cleaned_up:12,}{missing:11}"
                f"{outcome.processor:7.2f}",
                flush=True,
            )


def _half_dead(protocols: Sequence[str], told: argparse.Namespace) -> bool:
    """Print what well mailboxes get beside dead ones; return whether they kept their precision."""
    print(
        f"mailboxes beside dead ones ({', '.join(DEAD)} in turn), a message every {told.interval:g} s each,"
    )
    print(f"one server, {TIMEOUT:g} s time limit; goal: uncertainty at most {GOAL:g} times that without them")
    print(
        f"{'':6}{'':8}{'':8}{'on':>9}{'error of latency ms':>20}{'uncertainty':>11}{'':7}{'':9}{'':7}{'':>7}"
    )
    print(
        f"{'':6}{'well':>8}{'dead':>8}{'time':>9}{'p50':>9}{'p99':>9}{'ms p50':>13}{'ratio':>7}{'within':>9}"
        f"{'cores':>7}{'MB':>7}",
        flush=True,
    )
    is_reached = True
    for protocol in protocols:
        well, alone = told.mailboxes // 2, float("nan")
        for dead in (0, told.mailboxes - well):
            load = HalfDead(
                well + dead,
                told.interval,
                protocol=protocol,
                delay=0.3,
                deadline=30.0,
                pace=Pace(0.01),
                dead=dead,
            )
            warm_up = WARM_UP * told.interval if told.warm_up is None else told.warm_up
            figures = measure(load, warm_up, told.seconds)
            alone = alone if dead else figures.uncertainty
            print(_row(figures, alone), flush=True)
            print(f"       reasons: {dict(figures.reasons)}; skipped: {dict(figures.skipped)}", flush=True)
            is_reached &= figures.uncertainty <= GOAL * alone and figures.on_time > 0.95
    return is_reached


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
