// Draws the page's panels from its data, roughly as Grafana would.
"use strict";

const NAMED = { green: "#73bf69", orange: "#ff9830", red: "#f2495c", yellow: "#fade2a", blue: "#5794f2", purple: "#b877d9", text: "#d8d9da" };
const LINES = ["#73bf69", "#fade2a", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#ffcb7d", "#ca95e5", "#c0d8ff"];
const QUIET = "#9aa0a8";

const named = (colour) => NAMED[colour] || NAMED[String(colour).split("-").at(-1)] || colour || NAMED.text;

function seconds(value) {
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${+(value * 1e6).toPrecision(3)} µs`;
  if (size < 1) return `${+(value * 1e3).toPrecision(3)} ms`;
  if (size < 120) return `${+value.toPrecision(3)} s`;
  if (size < 7200) return `${+(value / 60).toPrecision(3)} min`;
  if (size < 172800) return `${+(value / 3600).toPrecision(3)} hours`;
  return `${+(value / 86400).toPrecision(3)} days`;
}

function shown(value, unit, texts, decimals) {
  if (value == null || Number.isNaN(value)) return "–";
  if (typeof value === "string") return value;
  if (texts && texts[value]) return texts[value].text;
  if (unit === "s") return seconds(value);
  if (unit === "d") return seconds(value * 86400);
  if (unit === "percentunit") return `${+(value * 100).toPrecision(3)} %`;
  if (unit === "bytes") return `${+(value / 2 ** 20).toPrecision(3)} MiB`;
  if (unit === "cps") return `${+value.toPrecision(3)} c/s`;
  if (unit === "bool") return value ? "True" : "False";
  if (decimals != null && Math.abs(value) < 1000) return value.toFixed(decimals);
  return Math.abs(value) >= 1000 ? `${+(value / 1000).toPrecision(3)} K` : `${+value.toPrecision(3)}`;
}

function colourOf(value, panel, texts = panel.texts) {
  if (texts && texts[value]?.color) return named(texts[value].color);
  let colour = panel.steps.length ? panel.steps[0].color : "green";
  for (const step of panel.steps) if (step.value != null && value >= step.value) colour = step.color;
  return named(colour);
}

function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "text", "line"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const last = (series) => series.values.filter((value) => value != null && !Number.isNaN(value)).at(-1);

function legend(box, entries) {
  for (const [name, colour] of entries) {
    const patch = element("svg", { viewBox: "0 0 1 1" }, element("rect", { width: 1, height: 1, fill: colour }));
    box.append(element("li", {}, patch, name));
  }
}

// All series on one time axis, as uPlot requires.
function aligned(data) {
  const at = [...new Set(data.flatMap((series) => series.at))].sort((a, b) => a - b);
  const place = new Map(at.map((moment, index) => [moment, index]));
  const columns = data.map((series) => {
    const column = at.map(() => null);
    series.at.forEach((moment, index) => { column[place.get(moment)] = Number.isNaN(series.values[index]) ? null : series.values[index]; });
    return column;
  });
  return [at, columns];
}

function timeseries(panel, body, list) {
  const [at, columns] = aligned(panel.data);
  const colours = panel.data.map((_, index) => LINES[index % LINES.length]);
  legend(list, panel.data.map((each, index) => [each.name, colours[index]]));  // takes space from the chart
  let drawn = columns;
  if (panel.stacked) {
    let below = at.map(() => 0);
    drawn = columns.map((column) => (below = below.map((sum, index) => sum + (column[index] || 0))));
  }
  const series = drawn.map((_, index) => ({
    stroke: colours[index], width: 1.5, points: { show: at.length < 3 }, spanGaps: true,
    fill: panel.stacked ? colours[index] : `${colours[index]}1c`,
  }));
  const axis = { stroke: QUIET, grid: { stroke: "#24282e", width: 1 }, ticks: { stroke: "#24282e" }, font: "11px system-ui, sans-serif" };
  const top = Math.max(0, ...drawn.flat().filter((value) => value != null));
  const bottom = Math.min(0, ...drawn.flat().filter((value) => value != null));
  const options = {
    width: body.clientWidth, height: body.clientHeight, legend: { show: false }, cursor: { show: false },
    scales: { x: { time: true }, y: { range: [bottom, top * 1.1 || 1] } },
    axes: [
      { ...axis, space: 80, values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toISOString().slice(11, 19)), size: 24 },
      { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => shown(tick, panel.unit)) },
    ],
    series: [{}, ...(panel.stacked ? series.reverse() : series)],
  };
  new uPlot(options, [at, ...(panel.stacked ? drawn.reverse() : drawn)], body);
}

function stat(panel, body) {
  const box = element("div", { class: "stat" });
  for (const series of panel.data) {
    const value = last(series);
    const number = element("b", {}, shown(value, panel.unit, panel.texts, panel.decimals));
    number.style.color = colourOf(value, panel);
    box.append(element("div", {}, number, panel.data.length > 1 ? series.name : ""));
  }
  body.append(box);
}

function bargauge(panel, body) {
  const most = panel.max ?? Math.max(...panel.data.map(last), 0) ?? 1;
  const box = element("div", { class: "bars" });
  for (const series of panel.data) {
    const value = last(series);
    const width = Math.max(0, Math.min(1, value / (most || 1))) * 100;
    const bar = element("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none" }, element("rect", { width, height: 1, fill: colourOf(value, panel) }));
    box.append(element("div", {}, element("span", {}, series.name), bar, element("b", {}, shown(value, panel.unit))));
  }
  body.append(box);
}

function stateTimeline(panel, body, list) {
  const [width, height] = [body.clientWidth, body.clientHeight];
  const svg = element("svg", { class: "whole" });
  const [at] = aligned(panel.data);
  const [from, to] = [at[0], at.at(-1) + 1];
  const left = 250;
  const x = (moment) => left + (moment - from) / (to - from) * (width - left);
  const row = Math.min(26, height / panel.data.length);
  const seen = new Map();
  panel.data.forEach((series, index) => {
    svg.append(element("text", { x: 0, y: index * row + row * 0.65 }, series.name.slice(0, 38)));
    series.at.forEach((moment, place) => {
      const colour = colourOf(series.values[place], panel);
      seen.set(shown(series.values[place], panel.unit, panel.texts), colour);
      const end = series.at[place + 1] ?? to;
      svg.append(element("rect", { x: x(moment), y: index * row + 2, width: Math.max(0.5, x(end) - x(moment) + 0.3), height: row - 4, fill: colour, opacity: 0.75 }));
    });
  });
  body.append(svg);
  legend(list, [...seen]);
}

function heatmap(panel, body) {
  const bound = (series) => (series.name === "+Inf" ? Infinity : Number(series.name));
  const sorted = [...panel.data].sort((a, b) => bound(a) - bound(b));
  const [at, columns] = aligned(sorted);
  const cells = columns.map((column, index) => column.map((value, place) => Math.max(0, (value || 0) - (index ? columns[index - 1][place] || 0 : 0))));
  const most = Math.max(...cells.flat(), 1e-9);
  const [width, height, left] = [body.clientWidth, body.clientHeight - 16, 60];
  const svg = element("svg", { class: "whole" });
  const [w, h] = [(width - left) / at.length, height / cells.length];
  cells.forEach((row, index) => {
    const y = height - (index + 1) * h;
    const name = sorted[index].name === "+Inf" ? "more" : seconds(bound(sorted[index]));
    if (h > 11 || index % 2 === 0) svg.append(element("text", { x: 0, y: y + h * 0.8 }, name));
    row.forEach((value, place) => {
      if (value > 0.001) svg.append(element("rect", { x: left + place * w, y, width: w - 0.5, height: h - 1, fill: NAMED.orange, opacity: 0.15 + 0.85 * Math.sqrt(value / most) }));
    });
  });
  for (const place of [0, Math.floor(at.length / 2), at.length - 1]) {
    const text = new Date(at[place] * 1000).toISOString().slice(11, 19);
    svg.append(element("text", { x: Math.min(left + place * w, width - 52), y: height + 13 }, text));
  }
  body.append(svg);
}

function table(panel, body) {
  const { columns, rows } = panel.data;
  const head = element("tr", {}, ...columns.map((column) => element("th", {}, column)));
  const lines = rows.map((row) => element("tr", {}, ...row.map((value, index) => {
    const column = columns[index];
    const texts = panel.columnTexts[column];
    const cell = element("td", {}, shown(value, panel.units[column] || panel.unit, texts, panel.columnDecimals[column]));
    if (texts && texts[value]?.color) cell.style.color = named(texts[value].color);
    return cell;
  })));
  body.append(element("table", { class: "data" }, element("thead", {}, head), element("tbody", {}, ...lines)));
}

const DRAWN = { timeseries, stat, bargauge, "state-timeline": stateTimeline, heatmap, table };

const boards = JSON.parse(document.getElementById("data").textContent);
boards.forEach((board, number) => {
  const boxes = document.querySelectorAll(".board")[number].querySelectorAll(".panel");
  board.panels.forEach((panel, index) => {
    const [body, list] = [boxes[index].querySelector(".body"), boxes[index].querySelector(".legend")];
    const empty = panel.type === "table" ? !panel.data.rows.length : !panel.data.length;
    if (empty) body.append(element("p", { class: "none" }, "no data"));
    else DRAWN[panel.type]?.(panel, body, list);
  });
});
document.documentElement.dataset.drawn = "yes";
