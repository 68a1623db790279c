"""The pages of a running agent, as HTML and JSON."""

from __future__ import annotations

import asyncio
import html
import re
import socket
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from monitor.ledger.store import SqlLedger, open_ledger
from monitor.load import Load, Shortage
from monitor.recent import POINTS_KEPT
from probes.core.clock import SystemClock
from probes.delivery.message_life import LedgerError
from tests.fakes.overlong import OVERLONG
from tests.fakes.scripted_server import Peer, Script, dialogue
from tests.unit.web.conftest import StartAgent

JSON = {"accept": "application/json"}
EHLO = (rb"EHLO \S+", b"250-mail.example.com\r\n250 <img src=x onerror=alert(1)>")
SOUND = dialogue(b"220 <script>alert('banner')</script> \x1b[31mred\x1b[0m", EHLO, (b"QUIT", b"221 bye"))
REFUSING = dialogue(b"554-<script>alert(1)</script>\x1b[2J\r\n554 no")


async def _page(client: httpx.AsyncClient, path: str) -> str:
    answer = await client.get(path, headers={"accept": "text/html,*/*"})
    assert answer.status_code == 200, answer.text
    return answer.text


POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


class Inline(HTMLParser):
    """Collects inline scripts and styles of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        runs = tag == "script" and "src" not in named and named.get("type") != "application/json"
        handles = any(name == "style" or name.startswith("on") for name in named)
        leads = any((named.get(name) or "").startswith("javascript:") for name in ("href", "action"))
        if runs or handles or leads or tag == "style":
            self.found.append(self.get_starttag_text() or tag)


async def test_nothing_runs_or_loads_but_what_the_agent_serves(start_agent: StartAgent) -> None:
    """Every page, including errors and JSON, has the strictest policy and complies with it."""
    async with start_agent(SOUND) as watched:
        result = await watched.result()
        for path in ("/", "/probes/hq-0", f"/probes/hq-0/runs/{result.run}", "/nowhere"):
            for accept in ("text/html", "application/json"):
                answer = await watched.client.get(path, headers={"accept": accept})
                policy = answer.headers["content-security-policy"]
                assert dict(directive.split(" ", 1) for directive in policy.split("; ")) == POLICY
                assert answer.headers["x-content-type-options"] == "nosniff"
            page = await watched.client.get(path)
            assert "<script" in page.text or path == "/nowhere"
            assert Inline(page.text).found == []


async def test_overview_probe_and_run_as_json(start_agent: StartAgent) -> None:
    """The pages' addresses give the same content as JSON: state, last runs, and dialogue."""
    async with start_agent(SOUND) as watched:
        await watched.result()
        (probe,) = (await watched.client.get("/", headers=JSON)).json()["probes"]
        assert (probe["probe"], probe["kind"], probe["target"]) == ("hq-0", "smtp", "mail")
        assert (probe["state"], probe["messages"], probe["findings"]) == ("ok", None, None)
        assert probe["sentence"].startswith("All ok: the last run took ")
        shown = (await watched.client.get("/probes/hq-0", headers=JSON)).json()
        run = shown["runs"][0]
        assert (run["outcome"], shown["failures"], "transcript" in run) == ("ok", [], False)
        told = (await watched.client.get(f"/probes/hq-0/runs/{run['run']}", headers=JSON)).json()
        assert {name: value for name, value in told.items() if name != "transcript"} == run
        assert [line[9:] for line in told["transcript"]][-2:] == ["C: QUIT", "S: 221 bye"]


async def test_an_overloaded_agent_says_so(start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it holds back messages, the overview says what is short, and what to do."""
    monkeypatch.setattr(Load, "look", lambda _: None)
    async with start_agent(SOUND) as watched:
        assert "overloaded" not in (await watched.client.get("/")).text
        watched.agent.runtime.state.shortage = str(Shortage.LEDGER)
        assert f"holds back new messages: {Shortage.LEDGER}." in (await watched.client.get("/")).text


async def test_what_the_site_says_about_a_probe(start_agent: StartAgent) -> None:
    """Overview, page and JSON show a probe's description, escaped, and that its alerts do not page."""
    about = "The <b>trial</b> of mx2"
    site_says = {"description": about, "severity": "warning"}
    async with start_agent(SOUND, **site_says, labels={"team": "mail"}) as watched:
        for path in ("/", "/probes/hq-0"):
            page = (await watched.client.get(path)).text
            assert "The &lt;b&gt;trial&lt;/b&gt; of mx2" in page
            assert about not in page
        assert "warning at most" in page
        (probe,) = (await watched.client.get("/", headers=JSON)).json()["probes"]
        assert (probe["description"], probe["severity"]) == (about, "warning")
        metrics = (await watched.client.get("/metrics")).text
        (info,) = re.findall("^mailsonde_probe_info.*$", metrics, re.MULTILINE)
        assert all(f'{key}="{value}"' in info for key, value in [*site_says.items(), ("team", "mail")])


SCRIPTS = [SOUND, REFUSING, *(script for script, _ in OVERLONG.values())]


@pytest.mark.parametrize("script", SCRIPTS, ids=["sound", "refusing", *OVERLONG])
async def test_what_servers_say_is_escaped_and_cut(script: Script, start_agent: StartAgent) -> None:
    """Markup, terminal escapes and 100 KB from a server are shown as short text on every page."""
    async with start_agent(script) as watched:
        result = await watched.result()
        run = f"/probes/hq-0/runs/{result.run}"
        pages = [await _page(watched.client, path) for path in ("/", "/probes/hq-0", run)]
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "\x1b" not in page
        assert len(page) < 60_000
    assert r"\x1b[" in pages[2]
    assert re.search(r"&lt;script&gt;alert\(", pages[2])


@pytest.mark.parametrize(("script", "begins"), OVERLONG.values(), ids=OVERLONG)
async def test_of_100_kb_the_beginning_is_shown(script: Script, begins: str, start_agent: StartAgent) -> None:
    """Pages and JSON show the beginning of a 100 KB answer, in detail and dialogue, marked as cut."""
    async with start_agent(script) as watched:
        result = await watched.result()
        overview = await _page(watched.client, "/")
        told = (await watched.client.get(f"/probes/hq-0/runs/{result.run}", headers=JSON)).json()
        (shown,) = (await watched.client.get("/", headers=JSON)).json()["probes"]
    assert (told["outcome"], told["reason"]) == ("failed", "line_too_long")
    assert told["detail"].startswith(begins)
    assert len(told["detail"]) < 400
    assert told["detail"].endswith("…")
    assert shown["last"]["detail"] == told["detail"]
    assert html.escape(begins[1:], quote=True) in overview  # there it begins with a capital letter
    said = [line[10:] for line in told["transcript"] if line[9:10] == "S"]
    assert any(begins.rpartition(": ")[2] in line for line in said)
    assert said[-1].endswith("…")
    assert all(len(line) <= 200 + len(" : ") for line in said)
    assert sum(map(len, told["transcript"])) < 10_000


async def test_a_failure_is_told_first_and_kept(start_agent: StartAgent) -> None:
    """A failed run is failed on the overview, with the server's answer, and is among the failures."""
    async with start_agent(REFUSING) as watched:
        result = await watched.result()
        overview = await _page(watched.client, "/")
        assert "<title>1 failed, mailsonde</title>" in overview
        first = datetime.fromtimestamp(result.started_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert f'Failing since <time datetime="{first}" data-exact>{first}</time> or earlier' in overview
        assert "In phase greeting: 554" in overview
        probe = await _page(watched.client, "/probes/hq-0")
        assert probe.count(f"/probes/hq-0/runs/{result.run}") == 2  # in both last failures and last runs


async def test_a_remedy_is_told_with_its_failure(start_agent: StartAgent) -> None:
    """What to do about a failure is on the pages of its probe and run, in JSON and in the history."""
    down = dialogue(b"421 4.3.2 Service not active")
    async with start_agent(down, interval="1h") as watched:
        result = await watched.result()
        run = f"/probes/hq-0/runs/{result.run}"
        assert "Get-ServerComponentState" in result.verdict.remedy
        for path in ("/probes/hq-0", run):
            page = await _page(watched.client, path)
            assert f"<b>Remedy:</b> {html.escape(result.verdict.remedy)}" in page
        told = (await watched.client.get(run, headers=JSON)).json()
        assert told["remedy"] == result.verdict.remedy


async def test_names_of_the_machine_and_of_the_configuration_open_the_pages(start_agent: StartAgent) -> None:
    """The pages open only under the machine's name and those in agent.hosts and agent.url."""
    names = {"hosts": ("mail.monitor.example",), "url": "https://Sonde.example:8443/mail"}
    async with start_agent(SOUND, **names) as watched:
        for host in (socket.gethostname(), "mail.monitor.example:8080", "sonde.example:8443"):
            assert (await watched.client.get("/", headers={"host": host})).status_code == 200
        assert (await watched.client.get("/", headers={"host": "monitor.example"})).status_code == 421


async def test_a_hundred_runs_are_listed(start_agent: StartAgent) -> None:
    """A probe's page lists the last hundred runs, and also the last hundred failures."""
    async with start_agent(REFUSING, interval="1h") as watched:
        ran = (await watched.result()).with_transcript()
        for number in range(110):
            watched.agent.runtime.ledger.record_run({**ran, "run": f"{number:032x}"})
        page = await _page(watched.client, "/probes/hq-0")
        shown = (await watched.client.get("/probes/hq-0", headers=JSON)).json()
    newest_first = [f"{number:032x}" for number in range(109, 9, -1)]
    assert re.findall(r'href="/probes/hq-0/runs/(\w+)"', page) == 2 * newest_first
    assert [run["run"] for run in shown["failures"]] == newest_first


async def test_a_row_has_a_line_of_its_latencies(start_agent: StartAgent) -> None:
    """Each row of the overview has a line of durations, with a point for each cell of the strip."""
    async with start_agent(SOUND) as watched:
        for _ in range(3):
            await watched.result()
        page = await _page(watched.client, "/")
    (line,) = re.findall(r'<polyline points="([^"]+)"/>', page)
    (cells,) = re.findall(r'<path class="ok" d="([^"]+)"/>', page)
    assert len(line.split()) == cells.count("M") >= 3


async def test_a_probe_says_its_deadline(start_agent: StartAgent) -> None:
    """A probe's page and its JSON have the deadline."""
    async with start_agent(SOUND) as watched:
        page = await _page(watched.client, "/probes/hq-0")
        assert "<dt>Deadline</dt><dd>1 s</dd>" in page
        told = (await watched.client.get("/probes/hq-0", headers=JSON)).json()
        assert told["deadline_seconds"] == 1.0


async def test_filters_work_without_scripts(start_agent: StartAgent) -> None:
    """The form filters the table by name and by problems."""
    async with start_agent(SOUND, probes=3) as watched:
        for _ in range(3):
            await watched.result()
        assert (await _page(watched.client, "/")).count("data-route=") == 3
        assert (await _page(watched.client, "/?q=HQ-1")).count("data-route=") == 1
        nothing = await _page(watched.client, "/?wrong=1")
        assert "data-route=" not in nothing
        assert '<p id="none">No matching probes.</p>' in nothing


async def test_many_routes_are_shown_a_page_at_a_time(start_agent: StartAgent) -> None:
    """A page shows 200 routes and counts all; further pages and a search show the others, JSON has all."""

    async def silent(peer: Peer) -> None:
        await peer.octets()

    async with start_agent(silent, probes=250, interval="1h", deadline="1h") as watched:
        page = await _page(watched.client, "/")
        assert page.count("data-route=") == 200
        assert "Showing 1 to 200 of 250 matches" in page
        assert sum(map(int, re.findall(r">(\d+) (?:waiting|ok)<", page))) == 250
        found = await _page(watched.client, "/?q=hq-24")
        assert found.count("data-route=") == 11  # hq-24 and hq-240 to hq-249
        assert "Showing" not in found
        assert len((await watched.client.get("/", headers=JSON)).json()["probes"]) == 250
        rest = await _page(watched.client, "/?page=2")
        assert rest.count("data-route=") == 50
        assert "Showing 201 to 250 of 250 matches" in rest
        assert ('rel="next" href="/?q=&amp;page=2"' in page, 'rel="prev"' in page) == (True, False)
        assert ('rel="prev" href="/?q=&amp;page=1"' in rest, 'rel="next"' in rest) == (True, False)
        assert set(re.findall('data-route="[^"]+"', page + rest)) == {
            f'data-route="hq-{number} mail"' for number in range(250)
        }
        for beyond in ("/?page=3", "/?page=999999999", "/?q=hq&page=2"):
            assert "Showing 201 to 250 of 250 matches" in await _page(watched.client, beyond)
        for strange in ("/?page=0", "/?page=-1", "/?page=x", f"/?page={'9' * 5000}"):
            assert "Showing 1 to 200 of 250 matches" in await _page(watched.client, strange)
        second = (await watched.client.get("/?page=2", headers=JSON)).json()["probes"]
        assert [each["probe"] for each in second] == re.findall('data-route="([^ ]+) mail"', rest)


async def test_each_route_has_its_own_history(start_agent: StartAgent) -> None:
    """A probe's page shows the runs of the requested route, however many other routes have."""
    async with start_agent(SOUND, interval="1h") as watched:
        result = await watched.result()
        mine = result.with_transcript()
        for number in range(300):
            of_another = {"run": f"{number:032x}", "target": f"mx{number % 20}"}
            watched.agent.runtime.ledger.record_run(mine | of_another)
        shown = (await watched.client.get("/probes/hq-0?target=mail", headers=JSON)).json()
        assert [run["run"] for run in shown["runs"]] == [result.run]
        for run in (result.run, f"{7:032x}"):
            told = (await watched.client.get(f"/probes/hq-0/runs/{run}", headers=JSON)).json()
            assert (told["run"], told["transcript"]) == (run, mine["transcript"])
        answer = await watched.client.get(f"/probes/hq-0/runs/{'f' * 32}", headers=JSON)
        assert (answer.status_code, answer.json()) == (
            404,
            {"error": "no such run; the agent keeps the last agent.runs_kept runs and failures of a route"},
        )


async def test_a_ledger_that_fails_is_told_in_words(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the ledger cannot be read, pages of probes and runs say so with 503; the overview works."""

    async def fail(*_: object) -> None:
        raise LedgerError("disk I/O error")

    async with start_agent(SOUND) as watched:
        result = await watched.result()
        monkeypatch.setattr(SqlLedger, "_read_runs", fail)
        assert (await watched.client.get("/")).status_code == 200
        for path in ("/probes/hq-0", f"/probes/hq-0/runs/{result.run}"):
            answer = await watched.client.get(path, headers=JSON)
            assert answer.status_code == 503
            assert answer.json() == {"error": "the ledger cannot be read: disk I/O error"}
            page = (await watched.client.get(path)).text
            assert "<title>Service unavailable, mailsonde</title>" in page
            assert "<h1>Service unavailable</h1>" in page
            assert "the ledger cannot be read: disk I/O error" in page


async def test_errors_are_called_what_they_are(start_agent: StartAgent) -> None:
    """Each kind of error has its own title, and a refused method is named."""
    async with start_agent(SOUND) as watched:
        missing = await watched.client.get("/probes/hq-1")
        assert missing.status_code == 404
        assert "<title>Not found, mailsonde</title>" in missing.text
        assert "no probe with this name is configured" in missing.text
        refused = await watched.client.post("/")
        assert refused.status_code == 405
        assert "<title>Method not allowed, mailsonde</title>" in refused.text
        assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_pages_are_made_one_after_the_other(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forty concurrent requests for a page, one runs, twenty wait, and the others get 503."""
    go_on, reads, most = asyncio.Event(), 0, 0

    async def slow(*_: object) -> list[object]:
        nonlocal reads, most
        reads += 1
        most = max(most, reads)
        await go_on.wait()
        reads -= 1
        return []

    async with start_agent(SOUND) as watched:
        monkeypatch.setattr(SqlLedger, "_read_runs", slow)
        asked = [asyncio.create_task(watched.client.get("/probes/hq-0", headers=JSON)) for _ in range(40)]
        for _, first in zip(range(19), asyncio.as_completed(asked), strict=False):
            answer = await first
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json() == {"error": "the agent is busy with other requests; try again"}
        assert (await watched.client.get("/")).status_code == 200  # this one does not need the ledger
        go_on.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert (statuses.count(200), most) == (21, 1)


async def test_probes_have_their_turn_while_a_page_is_made(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a page is rendered, the event loop runs other tasks, so no run waits for all of it."""
    rounds, rendered_in = 0, set()

    def instant(_: object) -> str:
        rendered_in.add(rounds)
        return "2027-01-15T08:00:00Z"

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    monkeypatch.setattr("monitor.slices.SLICE", 0.0)
    monkeypatch.setattr("monitor.web.pages._instant", instant)
    async with start_agent(REFUSING, interval="1h") as watched:
        await watched.result()
        counting = asyncio.create_task(count())
        page = await _page(watched.client, "/probes/hq-0")
        counting.cancel()
    assert page.count("2027-01-15T08:00:00Z") > len(rendered_in) > 1


async def test_a_new_agent_shows_the_last_runs_of_every_route(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    """After a restart, each strip starts with the last runs of its route, even for slow probes."""
    async with start_agent(SOUND, interval="1h") as watched:
        before = (await watched.result()).as_object()
    async with open_ledger(f"sqlite://{tmp_path}/ledger.db", SystemClock(), "earlier", "local") as ledger:
        for number in range(100):
            for busy in range(1, 26):
                ledger.record_run(before | {"run": f"{number:032x}", "probe": f"hq-{busy}"})
    over = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await over.wait()
        await peer.close()

    async with start_agent(silent, probes=26, interval="1h") as watched:
        probes = (await watched.client.get("/", headers=JSON)).json()["probes"]
        page = await _page(watched.client, "/")
        over.set()
    assert {probe["state"] for probe in probes} == {"ok"}
    assert page.count(f"last {POINTS_KEPT} runs: {POINTS_KEPT} ok") == 25
    assert page.count("last 1 runs: 1 ok") == 1
