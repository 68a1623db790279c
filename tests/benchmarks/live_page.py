"""The live page with 100 probes that run every second, in headless Chromium, and with 10,000 routes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
from playwright.sync_api import Page

from tests.benchmarks.many_routes import INTERVAL, many_routes
from tests.benchmarks.processes import cpu_seconds, workplace
from tests.benchmarks.smtp_probe import PROBES_A_SECOND, start_agent
from tests.real_servers.browser import chromium
from tests.real_servers.dovecot import Dovecot
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import wait_until

GOAL_OCTETS = 150_000
ROUTES = (1000, 10_000)

WATCHED = 20.0
"""Seconds that the page is watched."""

_OBSERVE = """
window.long = [];
new PerformanceObserver(list => long.push(...list.getEntries().map(entry => entry.duration)))
  .observe({type: "longtask", buffered: true});
window.frames_seen = 0;
(function next() { frames_seen += 1; requestAnimationFrame(next); })();
"""


def main() -> None:
    """Print the figures."""
    print(f"the live page with {PROBES_A_SECOND} probes, each every second, in headless Chromium:")
    with workplace() as (directory, tls):
        dovecot = Dovecot(directory / "dovecot", tls)
        postfix = Postfix(directory / "postfix", dovecot, tls)
        agent = start_agent(directory, tls, postfix.smtp_port)
        try:
            full = 41.0 * PROBES_A_SECOND
            wait_until(lambda: agent.metric("mailsonde_probe_runs_total") >= full, "full strips", 90)
            with chromium() as browser:
                for path in ("/", "/probes/smtp-7"):
                    _watch(browser.new_page(), agent.address + path, path)
            skipped = agent.metric("mailsonde_schedule_skipped_total")
            print(f"  runs left out or late meanwhile: {skipped:.0f}")
        finally:
            agent.stop()
            for server in (postfix, dovecot):
                server.stop()
    print(f"the overview with many routes, each with a run in {INTERVAL:g} s:")
    for routes in ROUTES:
        _watch_many(routes)


def _watch_many(routes: int) -> None:
    """Print what requests of the overview cost the agent, and what an open page adds."""
    with (
        many_routes(routes) as (address, process),
        httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=60.0) as client,
    ):
        client.get("/")  # renders the templates for the first time
        alone = _processor_time(process, lambda: time.sleep(WATCHED))
        for path in ("/", "/?page=2", "/?wrong=1", "/?q=roundtrip-0001"):
            answers = [client.get(path) for _ in range(3)]
            seconds = sorted(answer.elapsed.total_seconds() for answer in answers)[1]
            octets = answers[0].num_bytes_downloaded
            print(f"  {routes:6} routes, {path:18} {octets / 1000:7.1f} KB over the wire in {seconds:.2f} s")
        octets = [0]
        watched = _processor_time(process, lambda: _listen(client, octets))
        print(
            f"  {routes:6} routes, an open page {octets[0] / WATCHED / 1000:7.1f} KB/s, and "
            f"{100 * (watched - alone) / WATCHED:.1f} % of a processor"
        )


def _processor_time(process: int, work: Callable[[], object]) -> float:
    begun = cpu_seconds(process)
    work()
    return cpu_seconds(process) - begun


def _listen(client: httpx.Client, octets: list[int]) -> None:
    until = time.monotonic() + WATCHED
    with client.stream("GET", "/events") as stream:
        for chunk in stream.iter_bytes():
            octets[0] += len(chunk)
            if time.monotonic() > until:
                break


def _watch(page: Page, url: str, name: str) -> None:
    """Print the cost of loading a page, and its behaviour during updates."""
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    octets: dict[str, float] = {}
    network.on("Network.loadingFinished", lambda event: _count(event, octets))
    page.add_init_script(_OBSERVE)
    begun = time.monotonic()
    page.goto(url)
    page.wait_for_timeout(500)
    loaded = sum(octets.values())
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    seen, frames = _now(page)
    page.wait_for_timeout(1000 * WATCHED)
    updates, frames_after = (after - before for after, before in zip(_now(page), (seen, frames), strict=True))
    long = page.evaluate("window.long")
    print(
        f"  {name:16} {loaded / 1000:7.1f} KB over the wire (goal: at most {GOAL_OCTETS / 1000:.0f}), "
        f"first paint {paint:.0f} ms, {updates} updates and {frames_after / WATCHED:.0f} frames/s in "
        f"{WATCHED:.0f} s, tasks over 50 ms: {len(long)}, longest {max(long, default=0):.0f} ms, "
        f"{sum(long) / 10 / (time.monotonic() - begun):.1f} % of the time"
    )


def _count(event: dict[str, Any], octets: dict[str, float]) -> None:
    octets[event["requestId"]] = event["encodedDataLength"]


def _now(page: Page) -> tuple[int, int]:
    """Return the number of the page's updates and frames."""
    updates, frames = page.evaluate(
        "[Number(document.documentElement.dataset.updates || 0), window.frames_seen]"
    )
    return int(updates), int(frames)
