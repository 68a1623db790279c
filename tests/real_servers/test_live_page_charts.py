"""The charts of a probe's page for known data, by the browser's drawing calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.real_servers.process import wait_until
from tests.real_servers.site import AgentProcess, agent_of

PIXEL = 1.01
"""What rounding may take or add."""

FIGURES: dict[str, Any] = {
    "at": [1_700_000_000, 1_700_000_060, 1_700_000_120, 1_700_000_180],
    "word": ["ok", "ok", "failed", "ok"],
    "run": ["", "", "", ""],
    "seconds": [1.0, 2.0, None, 3.0],
    "uncertainty": [0.5, 0.25, None, 1.0],
    "phases": {"connect": [1.0, 0.5, 2.0, 1.0], "tls": [2.0, 0.5, None, 1.0], "data": [1.0, 1.0, None, 0.25]},
    "deadline": 5.0,
    "sends": True,
}
OK, FAILED = "#1c7a3c", "#c3272f"
"""Colours of the light scheme."""

_RECORD = """
window.drawn = [];
let path = [];
const wrap = (kind, name, note) => {
  const real = kind.prototype[name];
  kind.prototype[name] = function (...given) { note(this, ...given); return real.apply(this, given); };
};
const note = (what) => (context, given) => drawn.push({
  what, chart: context.canvas.parentElement.closest(".chart").id, dashed: context.getLineDash().length > 0,
  colour: what === "stroke" ? context.strokeStyle : context.fillStyle, points: path, bars: given?.bars || [],
});
wrap(CanvasRenderingContext2D, "beginPath", () => { path = []; });
for (const name of ["moveTo", "lineTo", "arc"]) {
  wrap(CanvasRenderingContext2D, name, (_, x, y) => path.push([x, y]));
}
wrap(Path2D, "rect", (bars, ...rectangle) => { (bars.bars ||= []).push(rectangle); });
wrap(CanvasRenderingContext2D, "stroke", note("stroke"));
wrap(CanvasRenderingContext2D, "fill", note("fill"));
wrap(CanvasRenderingContext2D, "fillText", (_, text, x, y) => drawn.push({ what: "text", text, x, y }));
"""


@pytest.fixture(scope="module")
def agent(server_directory: Callable[[str], Path]) -> Iterator[AgentProcess]:
    servers = "servers:\n  gone: {protocol: smtp, host: 127.0.0.1, port: 1, tls: none}\n"
    probes = "probes:\n  - {name: once, kind: smtp, interval: 1h, server: gone}\n"
    with agent_of(server_directory("charts"), servers + probes) as running:
        wait_until(lambda: running.metric("mailsonde_probe_runs_total") == 1, "the only run")
        yield running


Drawn = list[dict[str, Any]]


def _drawn(agent: AgentProcess, page: Page, **changes: object) -> Drawn:
    """Return the drawing calls of a page with this data and ``changes``, in order."""

    def with_figures(route: Route) -> None:
        answer = route.fetch()
        figures = json.dumps(FIGURES | changes)
        text = re.sub(r'(id="chart-data"[^>]*>)[^<]*', lambda found: found[1] + figures, answer.text())
        route.fulfill(response=answer, body=text)

    page.add_init_script(_RECORD)
    page.route("**/probes/once", with_figures)
    page.goto(f"{agent.address}/probes/once")
    expect(page.locator("#phases-legend li")).to_have_count(3)
    drawn: Drawn = page.evaluate("drawn")
    return drawn


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def _marks(drawn: Drawn) -> dict[float, list[float]]:
    """Return the marks of latencies, from left to right, with position and height."""
    marks = [each["points"][0] for each in drawn if each["what"] == "fill" and each["colour"] == OK]
    return dict(sorted(marks))


def _pixels_a_second(heights: list[float]) -> float:
    """Return the scale of the latency chart, from the marks at 1, 2 and 3 seconds."""
    scale = (heights[0] - heights[2]) / 2
    assert scale > 10
    assert abs((heights[0] - heights[1]) - scale) < PIXEL
    return scale


def test_each_latency_is_an_interval(agent: AgentProcess, page: Page) -> None:
    """Each latency has a mark, with a bar as long as its error in both directions."""
    drawn = _drawn(agent, page)
    marks = _marks(drawn)
    scale = _pixels_a_second(list(marks.values()))
    lines = [each["points"] for each in drawn if each["what"] == "stroke" and each["colour"] == OK]
    for (x, middle), error in zip(marks.items(), [0.5, 0.25, 1.0], strict=True):
        heights = [height for points in lines for place, height in points if place == x]
        assert abs(max(heights) - (middle + error * scale)) < PIXEL
        assert abs(min(heights) - (middle - error * scale)) < PIXEL


def test_a_run_without_a_latency_is_a_cross_at_the_top(agent: AgentProcess, page: Page) -> None:
    """A run without a measurement is a cross at the top, at its time."""
    drawn = _drawn(agent, page)
    places = list(_marks(drawn))
    (cross,) = [
        each["points"]
        for each in drawn
        if each["what"] == "stroke" and each["colour"] == FAILED and not each["dashed"]
    ]
    assert all(places[1] < x < places[2] and y < min(_marks(drawn).values()) for x, y in cross)


def test_the_deadline_is_a_dashed_line(agent: AgentProcess, page: Page) -> None:
    """A deadline near the latencies is a dashed line at its height, with a label."""
    drawn = _drawn(agent, page)
    heights = list(_marks(drawn).values())
    (line,) = [each["points"] for each in drawn if each["what"] == "stroke" and each["dashed"]]
    (left, height), (right, end) = line
    assert height == end
    assert abs(height - (heights[0] - 4 * _pixels_a_second(heights))) < PIXEL
    assert left < min(_marks(drawn)) < max(_marks(drawn)) < right
    (words,) = [each for each in drawn if "deadline" in each.get("text", "")]
    assert words["text"] == "deadline 5 s"
    assert abs(words["y"] - height) < 20


@pytest.mark.parametrize(
    ("deadline", "words"), [(300.0, "deadline 5 min, above"), (7200.0, "deadline 2 h, above")]
)
def test_a_deadline_above_the_scale_is_told(
    deadline: float, words: str, agent: AgentProcess, page: Page
) -> None:
    """A deadline far above the latencies is not drawn, but given in words above them."""
    drawn = _drawn(agent, page, deadline=deadline)
    heights = list(_marks(drawn).values())
    _pixels_a_second(heights)
    assert [each for each in drawn if each.get("dashed")] == []
    (told,) = [each for each in drawn if "deadline" in each.get("text", "")]
    assert told["text"] == words
    assert 0 < told["y"] < min(heights)


def test_phases_are_stacked(agent: AgentProcess, page: Page) -> None:
    """Each phase begins where the previous ends, in the legend's colour."""
    drawn = _drawn(agent, page)
    legend = page.locator("#phases-legend li")
    names = legend.all_inner_texts()
    assert [name.split()[0] for name in names] == ["connect", "tls", "data"]
    colours = [legend.nth(number).locator("rect").get_attribute("fill") for number in range(3)]
    seen: dict[float, list[tuple[float, float, str]]] = {}  # for each run: top, bottom and colour, as drawn
    for each in drawn:
        if each["what"] == "fill" and each["chart"] == "phases":
            for x, y, _, height in each["bars"]:
                seen.setdefault(x, []).append((y, y + height, each["colour"]))
    runs = [bars for _, bars in sorted(seen.items())]
    assert len(runs) == 4
    scale = (runs[0][0][1] - runs[0][0][0]) / 4.0  # the first run took 4 s
    assert scale > 10
    for number, bars in enumerate(runs):
        took = [FIGURES["phases"][name][number] or 0.0 for name in ("connect", "tls", "data")]
        tops = {colour: (foot - top) / scale for top, foot, colour in bars}
        assert [tops[colour] for colour in colours if colour] == pytest.approx(
            [took[0], took[0] + took[1], sum(took)], abs=PIXEL / scale
        )
        # Lower bars are drawn over higher ones, so only the tops of those are visible.
        assert [colour for _, _, colour in bars] == colours[::-1]
