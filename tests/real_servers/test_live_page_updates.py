"""Updates of the live page: in hidden tabs, when refused, and during a user's actions."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from monitor.web.events import MOST_STREAMS
from tests.real_servers.browser import Watch
from tests.real_servers.process import wait_until
from tests.real_servers.site import AgentProcess, agent_of

TABS = 8
"""More tabs than the six connections that Chromium opens to one site."""

_TABS = """
let hidden = false;
Object.defineProperty(document, "hidden", { get: () => hidden });
window.show = (shown) => { hidden = !shown; document.dispatchEvent(new Event("visibilitychange")); };
"""
"""Lets a test say which tab is in front: to Chromium without a screen every one is."""


_SERVERS = """\
servers:
  gone: {{protocol: smtp, host: 127.0.0.1, port: 1, tls: none}}
  mute: {{protocol: smtp, host: 127.0.0.1, port: {mute}, tls: none, timeout: 10m}}
probes:
"""


@pytest.fixture(scope="module")
def agent(server_directory: Callable[[str], Path]) -> Iterator[AgentProcess]:
    """An agent with a probe that fails every second."""
    probes = "  - {name: often, kind: smtp, interval: 1s, server: gone}\n"
    with agent_of(server_directory("updates"), _SERVERS.format(mute=1) + probes) as running:
        yield running


def _open(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    return page


def test_many_tabs_do_not_freeze(agent: AgentProcess, context: BrowserContext) -> None:
    """Of eight tabs, only the visible one is live; a tab that is shown again continues."""
    context.add_init_script(_TABS)
    tabs: list[Page] = []
    for _ in range(TABS):
        for behind in tabs[-1:]:
            behind.evaluate("show(false)")
            expect(behind.locator("#live")).to_have_text("paused")
        tabs.append(_open(context, agent.address))
        expect(tabs[-1].locator("#live")).to_have_text("live")
    tabs[-1].evaluate("show(false)")
    tabs[0].evaluate("show(true)")
    expect(tabs[0].locator("#live")).to_have_text("live")
    strip = tabs[0].locator(".strip path")
    cells = strip.get_attribute("d")
    wait_until(lambda: strip.get_attribute("d") != cells, "a new run in the strip")


def test_a_hidden_tab_has_a_true_title_and_takes_up_what_it_missed(
    server_directory: Callable[[str], Path], context: BrowserContext
) -> None:
    """A hidden tab's title shows failures and lost contact; when shown again, it has the missed row."""
    probes = (
        "  - {name: first, kind: smtp, interval: 1h, server: gone}\n"
        "  - {name: a-late-one, kind: smtp, interval: 1h, deadline: 10m, server: mute}\n"
    )
    context.add_init_script(_TABS)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        agent_of(server_directory("missed"), _SERVERS.format(mute=mute.getsockname()[1]) + probes) as agent,
    ):
        wait_until(lambda: agent.metric("mailsonde_probe_runs_total") == 1, "the first run")
        page = context.new_page()
        page.clock.install()
        page.goto(agent.address)
        row = page.locator('tr[data-route="a-late-one mute"]')
        expect(page.locator("#live")).to_have_text("live")
        expect(page).to_have_title("1 failed, mailsonde")
        row.get_by_role("link").focus()
        page.evaluate("show(false)")
        connection, _ = mute.accept()
        with connection:
            connection.sendall(b"554 not today\r\n")
        wait_until(lambda: agent.metric("mailsonde_probe_runs_total") == 2, "the run")
        page.clock.fast_forward(30_000)
        expect(page).to_have_title("2 failed, mailsonde")
        expect(row.locator(".badge")).to_have_text("waiting")
        page.evaluate("show(true)")
        expect(page.locator("tbody tr").first).to_contain_text("554 not today")
        expect(row.get_by_role("link")).to_be_focused()
        page.evaluate("show(false)")
        agent.stop()
        page.clock.fast_forward(30_000)
        expect(page).to_have_title("no answer, mailsonde")


def test_a_page_that_gets_no_answer_asks_again(
    server_directory: Callable[[str], Path], context: BrowserContext
) -> None:
    """A page without contact says so, and has the new run once the agent answers."""
    probe = "  - {name: late, kind: smtp, interval: 1h, deadline: 10m, server: mute}\n"
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        agent_of(server_directory("trouble"), _SERVERS.format(mute=mute.getsockname()[1]) + probe) as agent,
    ):
        page = _open(context, f"{agent.address}/probes/late")
        expect(page.locator("#live")).to_have_text("live")
        page.route("**/probes/late", lambda route: route.fulfill(status=503))
        connection, _ = mute.accept()
        with connection:
            connection.sendall(b"554 not today\r\n")
        expect(page.locator("#live")).to_have_text("not live: trying again")
        page.unroute("**/probes/late")
        expect(page.get_by_role("region", name="Last runs")).to_contain_text("554 not today")
        expect(page.locator("#live")).to_have_text("live")


def test_a_refused_page_asks_again_where_it_was(agent: AgentProcess, context: BrowserContext) -> None:
    """A refused page says that it is not live, keeps the input, and retries in half a minute."""
    page = context.new_page()
    watch = Watch(page, agent.address)
    page.clock.install()
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=agent.address, trust_env=False))
        for _ in range(MOST_STREAMS):
            wait_until(lambda: _is_let_in(client, stack), "a stream")
        page.goto(agent.address)
        expect(page.locator("#live")).to_have_text("not live: trying again")
        page.get_by_label("Find").fill("oft")
        page.evaluate("window.stays = true")
    with httpx.Client(base_url=agent.address, trust_env=False) as client, ExitStack() as stack:
        wait_until(lambda: _is_let_in(client, stack), "the streams' end")
    page.clock.fast_forward(30_000)
    expect(page.locator("#live")).to_have_text("live")
    assert page.evaluate("window.stays")
    expect(page.get_by_label("Find")).to_have_value("oft")
    streams = [url for url in watch.requests if "/events?" in url]
    assert streams == [streams[0]] * 2


def _is_let_in(client: httpx.Client, stack: ExitStack) -> bool:
    """Open a stream that lasts until ``stack`` ends."""
    return stack.enter_context(client.stream("GET", "/events")).status_code == 200


def _newest(region: Locator) -> str | None:
    return region.locator("tbody a").first.get_attribute("href")


def _await_newer(region: Locator) -> None:
    known = _newest(region)
    wait_until(lambda: _newest(region) != known, "a new run in the table")


def test_a_table_under_the_keys_stays_fresh(agent: AgentProcess, context: BrowserContext) -> None:
    """A table with the focus gets new runs, and keeps the focus and its scroll position."""
    wait_until(lambda: agent.metric("mailsonde_probe_runs_total") >= 3, "runs")
    page = _open(context, f"{agent.address}/probes/often")
    page.set_viewport_size({"width": 360, "height": 800})
    region = page.get_by_role("region", name="Last runs")
    region.click(position={"x": 5, "y": 5})
    region.evaluate("region => { region.scrollLeft = 40; }")
    _await_newer(region)
    expect(region).to_be_focused()
    assert region.evaluate("region => region.scrollLeft") == 40
    link = region.locator(f'a[href="{_newest(region)}"]')
    link.focus()
    _await_newer(region)
    expect(link).to_be_focused()
    link.evaluate("link => { link.href = '/probes/often/runs/no-longer-kept'; }")
    _await_newer(region)
    expect(region).to_be_focused()


def test_selected_text_is_held(agent: AgentProcess, context: BrowserContext) -> None:
    """A table with selected text waits while others continue, and catches up afterwards."""
    wait_until(lambda: agent.metric("mailsonde_probe_runs_total") >= 1, "a run")
    context.add_init_script(_TABS)
    page = _open(context, f"{agent.address}/probes/often")
    runs, failures = (page.get_by_role("region", name=f"Last {name}") for name in ("runs", "failures"))
    runs.locator("tbody .said").first.select_text()
    held = _newest(runs)
    for _ in range(2):
        _await_newer(failures)
    assert _newest(runs) == held
    assert "Connection refused" in page.evaluate("getSelection().toString()")
    page.evaluate("show(false)")  # so that it is not because of a later run
    page.evaluate("getSelection().removeAllRanges()")
    wait_until(lambda: _newest(runs) != held, "a new run in the table")
