"""The live page in a real browser, with a real agent for Postfix and Dovecot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.real_servers.browser import Watch
from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import wait_until
from tests.real_servers.relay import Delivery, untouched
from tests.real_servers.site import AgentProcess, Site, agent_of

PATIENCE = 30_000  # ms


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("page"), server_tls, deadline="20s", relayed=True) as running:
        text = running.config.read_text()
        refused = "  - {name: gone, kind: smtp, interval: 2s, server: gone}\n"
        gone = "  gone: {protocol: smtp, host: 127.0.0.1, port: 1, tls: none}\n"
        running.config.write_text(text.replace("servers:\n", f"servers:\n{gone}") + refused)
        yield running


@pytest.fixture(scope="module")
def agent(site: Site) -> AgentProcess:
    running = site.start_agent()
    wait_until(lambda: running.metric('mailsonde_delivery_seconds_count{probe="trip"') >= 3, "deliveries")
    return running


def _run_of(agent: AgentProcess, probe: str) -> str:
    """Return the path of a probe's latest run."""
    answer = httpx.get(
        f"{agent.address}/probes/{probe}", headers={"accept": "application/json"}, trust_env=False
    )
    return f"/probes/{probe}/runs/{answer.json()['runs'][0]['run']}"


def _await_updates(page: Page) -> None:
    """Wait until the page has received three events."""
    wait_until(
        lambda: page.evaluate("Number(document.documentElement.dataset.updates || 0)") >= 3, "three updates"
    )


def test_overview_is_live(agent: AgentProcess, context: BrowserContext) -> None:
    """The table shows each probe, problems first, and adds new runs without a reload."""
    page = context.new_page()
    watch = Watch(page, agent.address)
    page.goto(agent.address)
    expect(page.locator("tbody tr")).to_have_count(4)
    expect(page.locator("tbody tr").first).to_contain_text("failed")
    expect(page.locator("tbody tr").first).to_contain_text("Connection refused")
    since = page.locator("tbody tr time[data-exact]")
    expect(since).to_have_count(1)
    expect(since).to_have_text(re.compile(r"\d{4}.*:\d\d"))  # a time, not an age
    expect(page).to_have_title("1 failed, mailsonde")
    expect(page.locator("#live")).to_have_text("live", timeout=PATIENCE)
    trip = page.locator('tr[data-route="trip submission"]')
    expect(trip).to_contain_text("±")
    expect(trip.locator(".said")).to_contain_text("Mail flows: the last message took")
    expect(trip.locator(".share")).to_have_text(re.compile(r"Delivered: 100 % of \d+ in 24\sh, 100 % of"))
    page.evaluate("window.stays = true")
    strip = trip.locator(".strip .ok")
    cells = strip.get_attribute("d")
    _await_updates(page)
    wait_until(lambda: strip.get_attribute("d") != cells, "a new run in the strip")
    assert page.evaluate("window.stays")
    assert watch.troubles == []


def test_filters_narrow_the_table_at_once(agent: AgentProcess, context: BrowserContext) -> None:
    """Typing a name, or selecting problems, hides the other rows, including new ones."""
    page = context.new_page()
    page.goto(agent.address)
    page.get_by_label("Find").fill("POP")
    expect(page.locator("tbody tr:visible")).to_have_count(1)
    page.get_by_label("Find").fill("nothing like it")
    expect(page.get_by_text("No matching probes.")).to_be_visible()
    page.get_by_label("Find").fill("")
    page.get_by_label("Only problems").check()
    expect(page.locator("tbody tr:visible")).to_have_count(1)
    _await_updates(page)
    expect(page.locator("tbody tr:visible")).to_have_count(1)


def test_probe_page_draws_and_stays_fresh(agent: AgentProcess, context: BrowserContext) -> None:
    """Both charts are drawn, and new runs are added to the tables without a reload."""
    page = context.new_page()
    watch = Watch(page, agent.address)
    page.goto(f"{agent.address}/probes/trip")
    expect(page.locator("h1")).to_contain_text("trip")
    expect(page.locator(".status-text")).to_contain_text("Mail flows")
    for chart in ("latency", "phases"):
        expect(page.locator(f"#{chart} canvas")).to_be_visible()
        inked = page.evaluate(
            "id => { const c = document.querySelector(`#${id} canvas`);"
            " return new Set(new Uint32Array(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data.buffer)).size }",
            chart,
        )
        assert inked > 20, f"{chart} is blank: {inked} colours"
    expect(page.locator("#phases-legend")).to_contain_text("tls")
    newest = page.locator("table.runs").last.locator("tbody a").first
    first = newest.get_attribute("href")
    wait_until(lambda: newest.get_attribute("href") != first, "a new run in the table")
    assert watch.troubles == []


def test_a_run_shows_its_dialogue(agent: AgentProcess, context: BrowserContext) -> None:
    """A run's page has the dialogue with Postfix without credentials; a failure says what was wrong."""
    page = context.new_page()
    watch = Watch(page, agent.address)
    page.goto(agent.address + _run_of(agent, "trip"))
    said = page.locator(".transcript")
    expect(said).to_contain_text("AUTH PLAIN (withheld)")
    expect(said).to_contain_text("235 2.7.0 Authentication successful")
    expect(said).to_contain_text("delivered: in mailbox canary")
    page.goto(f"{agent.address}/probes/gone/runs/latest?outcome=failed&target=gone")  # as alerts link to it
    expect(page.locator(".status-text")).to_contain_text("Connection refused")
    page.goto(f"{agent.address}/runbooks/MailsondeProbeDown.md")
    page.get_by_role("link", name="MailsondeMessageLost").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("MailsondeMessageLost")
    assert watch.troubles == []


def test_a_probe_page_counts_messages_and_shows_hops(agent: AgentProcess, context: BrowserContext) -> None:
    """The page has the number of messages by state, and the hops of the last arrival."""
    page = context.new_page()
    before = agent.metric('mailsonde_messages_total{probe="trip",target="submission",state="delivered"')
    page.goto(f"{agent.address}/probes/trip")
    messages = page.get_by_role("region", name="Messages")
    delivered = messages.locator("div", has_text="delivered").locator("dd")
    assert before <= int(delivered.inner_text().replace(",", ""))
    hops = page.get_by_role("region", name="Hops", exact=True).locator("tbody tr")
    expect(hops.first).to_contain_text("ESMTP")
    expect(hops.last).to_contain_text("LMTP")


_MARKUP = b"<img/src=/x/onerror=top.stolen=1><script>top.stolen=1</script>"
HOSTILE = b"Received: from %s by \x1b[31m%s\r\n with %s; Thu, 1 Jan 1970 00:00:00 +0000\r\n" % (
    _MARKUP,
    b"y" * 300,
    b"<b>bold</b>" * 6,
)


def test_hostile_hops_are_text_and_cut(site: Site, agent: AgentProcess, context: BrowserContext) -> None:
    """Markup, escapes and long words in Received fields are short text in the tables of hops."""
    assert site.relay is not None
    site.relay.treatment = lambda mail: [Delivery(HOSTILE * 60 + mail.raw)]
    page = context.new_page()
    watch = Watch(page, agent.address)
    page.goto(f"{agent.address}/probes/trip")
    hops = page.get_by_role("region", name="Hops", exact=True)
    try:
        expect(hops).to_contain_text("onerror")
        run = page.get_by_role("region", name="Last runs").locator("tbody a").first.get_attribute("href")
        _assert_harmless(page)
        page.goto(f"{agent.address}{run}")
        _assert_harmless(page)
    finally:
        site.relay.treatment = untouched
    assert watch.troubles == []


def _assert_harmless(page: Page) -> None:
    hops = page.get_by_role("region", name="Hops", exact=True)
    expect(hops.locator("tbody tr")).to_have_count(50)
    by, sender, protocol = hops.locator("tbody tr").first.locator("td").all_inner_texts()[:3]
    assert by.startswith("\\x1b[31myyy")
    assert by.endswith("y…")
    assert len(by) == 255
    assert sender == _MARKUP.decode()
    assert protocol.startswith("<b>bold</b>")
    assert len(protocol) == 60
    assert page.locator("main img, main b").count() == 0
    assert "\x1b" not in page.content()
    assert page.evaluate("top.stolen") is None


def test_late_mail_is_seen_while_it_is_late(site: Site, agent: AgentProcess, context: BrowserContext) -> None:
    """While Postfix holds mail, the overview says so before any deadline has passed."""
    page = context.new_page()
    page.goto(agent.address)
    site.postfix.hold()
    try:
        trip = page.locator('tr[data-route="trip submission"]')
        expect(trip.locator(".badge")).to_have_text("late", timeout=PATIENCE)
        expect(trip.locator(".said")).to_contain_text("between submission and mailbox canary")
    finally:
        site.postfix.release()
    expect(trip.locator(".badge")).to_have_text("ok", timeout=PATIENCE)


PAGES = ("/", "/probes/trip", "/probes/gone", "run", "/runbooks/MailsondeMessageOverdue.md")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_inaccessible(width: int, scheme: str, agent: AgentProcess, browser: Browser) -> None:
    """axe-core finds nothing, on a screen or phone, light or dark, and no page is wider than the screen."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    for path in PAGES:
        page.goto(agent.address + (_run_of(agent, "trip") if path == "run" else path))
        found = Axe().run(page).response["violations"]
        assert found == [], [(each["id"], each["nodes"][0]["html"]) for each in found]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_long_names_fit(server_directory: Callable[[str], Path], context: BrowserContext) -> None:
    """The longest names, without a place to break, make no page wider than its window."""
    name, server = "n" * 63, "s" * 63
    settings = (
        f"servers:\n  {server}: {{protocol: smtp, host: 127.0.0.1, port: 1, tls: none}}\n"
        f"probes:\n  - {{name: {name}, kind: smtp, interval: 1h, server: {server}}}\n"
    )
    with agent_of(server_directory("long"), settings) as agent:
        wait_until(lambda: agent.metric("mailsonde_probe_runs_total") == 1, "the run")
        page = context.new_page()
        for width in (1600, 1200, 1000, 901, 360):
            page.set_viewport_size({"width": width, "height": 800})
            for path in ("/", f"/probes/{name}", _run_of(agent, name)):
                page.goto(agent.address + path)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


def test_dark_is_dark(agent: AgentProcess, browser: Browser) -> None:
    """With a preference for dark pages, text is light on dark; otherwise dark on light."""
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = browser.new_page(color_scheme=scheme)
        page.goto(agent.address)
        ground, letters = (
            sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{which}"))[:3]))
            for which in ("backgroundColor", "color")
        )
        assert abs(ground - letters) > 500
        assert (ground < letters) == is_dark
        page.close()


def test_keyboard_reaches_everything(agent: AgentProcess, context: BrowserContext) -> None:
    """Tab and Enter are enough to get from the overview to a run; the focus survives updates."""
    page = context.new_page()
    page.goto(agent.address)
    _tab_to(page, "gone")
    _await_updates(page)
    assert page.evaluate("document.activeElement.textContent") == "gone"
    page.keyboard.press("Enter")
    page.wait_for_url("**/probes/gone")
    _tab_to(page, "ago")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")


def _tab_to(page: Page, text: str) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if text in page.evaluate("document.activeElement.closest('a')?.textContent || ''").split():
            return
    raise AssertionError(f"the Tab key does not reach {text}")


def test_without_scripts_there_is_a_plain_table(agent: AgentProcess, browser: Browser) -> None:
    """Without JavaScript, the overview and a probe are complete, and the filter's button works."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(agent.address)
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_label("Find").fill("smtp")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody tr a").click()
    expect(page.locator("table.runs").last.locator("tbody tr").first).to_contain_text("ok")
    context.close()


def test_a_hundred_probes_are_light_and_live(
    site: Site, server_directory: Callable[[str], Path], context: BrowserContext
) -> None:
    """A page with a hundred probes is at most 150 KB as transferred, and adds runs of all of them."""
    with _agent_of_many(site, server_directory("hundred"), 100, "2s") as agent:
        page = context.new_page()
        watch = Watch(page, agent.address)
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        octets: list[float] = []
        network.on("Network.loadingFinished", lambda event: octets.append(event["encodedDataLength"]))
        page.goto(agent.address)
        expect(page.locator("tbody tr")).to_have_count(100)
        assert 1000 < sum(octets) <= 150_000
        expect(page.locator("tbody .badge.ok")).to_have_count(100, timeout=PATIENCE)
        assert watch.troubles == []


def test_with_hundreds_of_routes_the_worst_are_shown(
    site: Site, server_directory: Callable[[str], Path], context: BrowserContext
) -> None:
    """Of 250 routes, 200 are shown; a failing one is added at the top, and a search finds others."""
    broken = "  - {name: zz, kind: smtp, interval: 10s, server: gone}\n"
    with _agent_of_many(site, server_directory("many"), 249, "20s", broken) as agent:
        page = context.new_page()
        watch = Watch(page, agent.address)
        page.goto(agent.address)
        expect(page.get_by_text("Showing 1 to 200 of 250 matches")).to_be_visible()
        expect(page.locator("tbody tr").first).to_contain_text("zz", timeout=PATIENCE)
        _await_updates(page)
        expect(page.locator("tbody tr")).to_have_count(200)
        expect(page.locator("#counts .failed")).to_have_text("1 failed")
        page.get_by_label("Find").fill("MAIL-248")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        _await_updates(page)
        expect(page.locator("tbody tr")).to_have_count(1)
        expect(page.locator("#counts .failed")).to_have_text("1 failed")
        assert watch.troubles == []


def _agent_of_many(
    site: Site, directory: Path, count: int, interval: str, more: str = ""
) -> AbstractContextManager[AgentProcess]:
    """Run an agent with that many smtp probes of the site's server, and ``more``."""
    probes = "".join(
        f"  - {{name: mail-{number:02}, kind: smtp, interval: {interval}, server: mail}}\n"
        for number in range(count)
    )
    return agent_of(
        directory,
        f"servers:\n  mail: {{protocol: smtp, host: 127.0.0.1, port: {site.postfix.smtp_port}, tls: none}}\n"
        f"  gone: {{protocol: smtp, host: 127.0.0.1, port: 1, tls: none}}\n"
        f"probes:\n{probes}{more}",
    )
