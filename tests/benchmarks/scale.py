"""The agent at 100 to 10,000 routes a minute: what it costs, how late it is, and how wrong.

``python -m tests.benchmarks scale [--routes 100,1000] [--minutes 10]``
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.benchmarks.mail_load import Load, Metrics, Published, Running, quantile, running, wait
from tests.fakes.mail_site.connection import Pace

ROUTES = (100, 1000, 5000, 10_000)
GOAL_LAG = 0.1
GOAL_WITHIN = 0.99
SCRAPES = 3
RATES = (80, 110, 150, 170, 200, 240, 290, 350, 420)
"""Round trips a second at which to look whether the agent holds back."""

_TRIP_SERIES = "mailsonde_probe_runs_total"


@dataclass
class Scraped:
    """What one scrape costs: processor seconds, seconds, and the longest stall of the event loop."""

    metrics: Metrics
    processor: float = 0.0
    seconds: float = 0.0
    stall: float = 0.0


@dataclass
class Figures:
    """Everything about one load; in seconds, KiB and octets."""

    load: Load
    cores: float = 0.0
    site_cores: float = 0.0
    runs: float = 0.0
    lag: tuple[float, float] = (0.0, 0.0)
    skipped: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    resident: float = 0.0
    scraped: list[Scraped] = field(default_factory=list)
    stall_before: float = 0.0
    published: list[Published] = field(default_factory=list)
    ledger_octets_a_run: float = 0.0
    seconds: float = 0.0

    @property
    def milliseconds(self) -> float:
        """Processor time a run."""
        return 1000 * self.cores * self.seconds / max(1.0, self.runs)

    @property
    def within(self) -> float:
        """Share of published latencies whose error is within their uncertainty."""
        return sum(each.is_within for each in self.published) / max(1, len(self.published))

    @property
    def errors(self) -> list[float]:
        """Return the errors, ascending."""
        return sorted(each.error for each in self.published) or [float("nan")]

    @property
    def held_back(self) -> Counter[str]:
        """Runs that were skipped or ended for lack of resources, by reason."""
        return +(self.skipped + Counter({"local_resources": self.reasons["local_resources"]}))


class _Stalls(threading.Thread):
    """Asks the agent all the time whether it is healthy; the longest answer is the longest stall."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self._host = urlsplit(address).netloc
        self._is_over = False

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        while not self._is_over:
            began = time.monotonic()
            connection.request("GET", "/-/healthy")
            connection.getresponse().read()
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.002)

    def end(self) -> float:
        """Return the longest stall in seconds."""
        self._is_over = True
        self.join()
        return self.longest


def _scrape(at_work: Running, cores: float) -> Scraped:
    """Scrape the agent; leave out the processor time that it spends anyway, of so many ``cores``."""
    stalls = _Stalls(at_work.agent.address)
    stalls.start()
    began, (used, _) = time.monotonic(), at_work.cpu()
    connection = http.client.HTTPConnection(urlsplit(at_work.agent.address).netloc, timeout=300)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    seconds = time.monotonic() - began
    used = at_work.cpu()[0] - used - cores * seconds
    longest = stalls.end()
    return Scraped(Metrics(text), max(0.0, used), seconds, longest)


def _difference(after: Counter[str], before: Counter[str]) -> Counter[str]:
    return Counter({key: after[key] - before[key] for key in after})


def _reasons(metrics: Metrics) -> Counter[str]:
    told = metrics.by("mailsonde_probe_reasons_total", "reason") or metrics.by(_TRIP_SERIES, "reason")
    return Counter({reason: count for reason, count in told.items() if reason != "none"})


def measure(load: Load, seconds: float, scrapes: int = SCRAPES) -> Figures:
    """Run a load for so many ``seconds`` after each route has run once."""
    figures = Figures(load, seconds=seconds)
    with running(load) as at_work:
        empty = at_work.ledger_octets()
        wait(min(load.interval, 0.1 * load.routes) + 5.0, f"{load.routes:,} routes, first runs")
        before = at_work.metrics()
        since, used = time.monotonic(), at_work.cpu()
        wait(seconds, f"{load.routes:,} routes at {load.interval:g} s")
        elapsed = time.monotonic() - since
        figures.cores, figures.site_cores = (
            (now - then) / elapsed for now, then in zip(at_work.cpu(), used, strict=True)
        )
        after = at_work.metrics()
        figures.runs = after.total(_TRIP_SERIES) - before.total(_TRIP_SERIES)
        figures.skipped = +_difference(
            *(each.by("mailsonde_schedule_skipped_total", "reason") for each in (after, before))
        )
        figures.reasons = +_difference(_reasons(after), _reasons(before))
        lags = _difference(
            *(each.by("mailsonde_schedule_lag_seconds_bucket", "le") for each in (after, before))
        )
        figures.lag = quantile(lags, 0.5), quantile(lags, 0.99)
        if scrapes:
            stalls = _Stalls(at_work.agent.address)
            stalls.start()
            time.sleep(2.0)
            figures.stall_before = stalls.end()
            figures.scraped = [_scrape(at_work, figures.cores) for _ in range(scrapes)]
        figures.resident = at_work.resident()
        at_work.agent.stop()
        runs = max(1.0, after.total(_TRIP_SERIES))
        figures.ledger_octets_a_run = (at_work.ledger_octets() - empty) / runs
        figures.published = at_work.published(since)
    return figures


_HEAD = (
    f"{'':7}{'CPU':>15}{'lag, ms':>14}{'missed,':>10}{'memory':>14}{'scrape, median of 3':>38}"
    f"{'error of the latency, ms':>28}{'ledger':>8}{'server':>8}\n"
    f"{'routes':>7}{'cores':>7}{'ms/run':>8}{'p50':>7}{'p99':>7}{'skipped':>10}{'MB':>6}{'KiB/rt':>8}"
    f"{'samples':>9}{'MB':>7}{'CPU s':>7}{'stall ms':>15}{'within':>10}{'p50':>8}{'p99':>10}{'B/run':>8}"
    f"{'cores':>8}"
)


def _row(figures: Figures, base: float) -> str:
    scraped, errors = figures.scraped, figures.errors
    middle = {
        name: statistics.median(getattr(each, name) for each in scraped) for name in ("processor", "stall")
    }
    routes = figures.load.routes
    stall = f"{1000 * middle['stall']:.0f} ({1000 * figures.stall_before:.0f})"
    return (
        f"{routes:7,}{figures.cores:7.2f}{figures.milliseconds:8.2f}"
        f"{1000 * figures.lag[0]:7.1f}{1000 * figures.lag[1]:7.0f}{sum(figures.skipped.values()):10.0f}"
        f"{figures.resident / 1024:6.0f}{(figures.resident - base) / routes:8.1f}"
        f"{scraped[0].metrics.samples:9,}{scraped[0].metrics.octets / 1e6:7.1f}{middle['processor']:7.2f}"
        f"{stall:>15}{figures.within:10.2%}{1000 * errors[len(errors) // 2]:8.2f}"
        f"{1000 * errors[int(len(errors) * 0.99)]:10.2f}{figures.ledger_octets_a_run:8.0f}"
        f"{figures.site_cores:8.2f}"
    )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:.0f}" for reason, count in counts.most_common())


def _table(loads: Sequence[Load], seconds: float) -> None:
    base = measure(Load(1, interval=1.0, routes_a_mailbox=1), 5.0).resident
    print(f"an agent with one route takes {base / 1024:.0f} MB of memory; stall: (without a scrape)")
    print(_HEAD, flush=True)
    for load in loads:
        figures = measure(load, seconds)
        print(_row(figures, base), flush=True)
        if figures.skipped or figures.reasons:
            print(f"        skipped: {_told(figures.skipped)}; not ok: {_told(figures.reasons)}", flush=True)
    print(f"  goal: 10,000 a minute on one core, lag p99 < {GOAL_LAG * 1000:g} ms, nothing skipped,")
    print(f"        error within its uncertainty in at least {GOAL_WITHIN:.0%}")


def _limit(load: Load) -> None:
    """Print the load at which the agent begins to hold back."""
    held = 0.0
    for rate in RATES:
        figures = measure(
            Load(1000, 1000 / rate, load.routes_a_mailbox, load.protocol, delay=load.delay, pace=load.pace),
            20.0,
            scrapes=0,
        )
        if figures.held_back:
            print(
                f"begins to hold back between {held:.0f} and {rate} round trips a second "
                f"({held * 60:,.0f} and {rate * 60:,} routes at 60 s): {_told(figures.held_back)}; "
                f"{figures.cores:.2f} cores, latency within its uncertainty in {figures.within:.2%}",
                flush=True,
            )
            return
        held = figures.runs / figures.seconds
    print(f"does not hold back at {held:.0f} round trips a second", flush=True)


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table, and the load at which the agent begins to hold back."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks scale")
    options.add_argument("--routes", default=",".join(map(str, ROUTES)), help="such as 100,1000")
    options.add_argument("--minutes", type=float, default=1.0, help="minutes of each load, without its start")
    options.add_argument("--interval", type=float, default=60.0, help="seconds between two runs of a route")
    options.add_argument("--mailbox", type=int, default=10, metavar="ROUTES", help="routes a mailbox")
    options.add_argument("--protocol", choices=("imap", "pop3"), default="imap")
    options.add_argument("--delay", type=float, default=0.0, help="median seconds of a message's transit")
    options.add_argument("--round-trip", type=float, default=0.0, help="seconds to the servers and back")
    options.add_argument("--no-limit", action="store_true", help="do not look for the highest load")
    told = options.parse_args(arguments)
    loads = [
        Load(
            int(routes),
            told.interval,
            told.mailbox,
            told.protocol,
            delay=told.delay,
            pace=Pace(told.round_trip),
        )
        for routes in told.routes.split(",")
    ]
    print(
        f"round trips by SMTP with STARTTLS and AUTH, and {told.protocol.upper()} over TLS, {told.mailbox} "
        f"routes a mailbox, {told.minutes:g} min each, agent and servers on one processor each:"
    )
    _table(loads, 60 * told.minutes)
    if not told.no_limit:
        _limit(loads[0])


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
