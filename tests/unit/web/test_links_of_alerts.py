"""The addresses that alerts link to: the latest run that went wrong, and the runbooks."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest

from monitor.shipped import shipped
from monitor.web.runbooks import as_html
from tests.fakes.scripted_server import dialogue
from tests.unit.web.conftest import StartAgent

REFUSING = dialogue(b"554 5.7.1 no")
HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}


@pytest.mark.parametrize("query", ["?outcome=failed&target=mail", "?outcome=failed", ""])
async def test_the_latest_failed_run(query: str, start_agent: StartAgent) -> None:
    """An alert's link leads to the run that it is about, under whatever name the agent was reached."""
    async with start_agent(REFUSING, interval="1h") as watched:
        run = (await watched.result()).run
        link = f"/probes/hq-0/runs/latest{query}"
        answer = await watched.client.get(link)
        assert (answer.status_code, answer.headers["location"]) == (302, run)
        page = await watched.client.get(urljoin(link, answer.headers["location"]), headers=HTML)
        assert (page.status_code, "554 5.7.1 no" in page.text) == (200, True)


async def test_without_such_a_run_the_probe_is_shown(start_agent: StartAgent) -> None:
    """If no kept run ended that way, the link leads to the probe's page; an unknown probe is said."""
    async with start_agent(REFUSING, interval="1h") as watched:
        await watched.result()
        link = "/probes/hq-0/runs/latest?outcome=unknown&target=mail"
        location = (await watched.client.get(link)).headers["location"]
        assert urljoin(link, location) == "/probes/hq-0?target=mail"
        assert (await watched.client.get("/probes/none/runs/latest")).status_code == 404


async def test_each_runbook_is_served(start_agent: StartAgent) -> None:
    """Each alert's runbook is a page, and the runbooks that it links to are pages too."""
    runbooks = sorted((shipped("alerts") / "runbooks").glob("*.md"))
    assert len(runbooks) > 15
    async with start_agent(REFUSING, interval="1h") as watched:
        for path in runbooks:
            page = await watched.client.get(f"/runbooks/{path.name}", headers=HTML)
            assert (page.status_code, f"<h1>{path.stem}</h1>" in page.text) == (200, True)
            for link in re.findall(r'<a href="([^"/#:]+)">', page.text):
                assert (await watched.client.get(f"/runbooks/{link}")).status_code == 200
            as_json = (await watched.client.get(f"/runbooks/{path.stem}", headers=JSON)).json()
            assert as_json == {"alert": path.stem, "markdown": path.read_text()}


async def test_nothing_else_is_served_as_a_runbook(start_agent: StartAgent) -> None:
    """A name that is no alert's opens no file."""
    async with start_agent(REFUSING, interval="1h") as watched:
        for name in ("MailsondeNone", "thresholds", "..%2Fthresholds.yaml", "%2e%2e/site.yaml"):
            assert (await watched.client.get(f"/runbooks/{name}")).status_code == 404


def test_html_in_a_runbook_is_text() -> None:
    """Markup in a runbook, and a link that would run a script, stay text."""
    shown = as_html("# A <b>x</b>\n\n<script>alert(1)</script>\n\n[go](javascript:alert(1))")
    assert "<b>" not in shown
    assert "<script" not in shown
    assert "href" not in shown
