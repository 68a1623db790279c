// Draws a probe's page: latencies with their errors and the deadline, and the phases of each run.
"use strict";

const PHASES = ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#997700", "#6699cc", "#999933", "#888888", "#44aa99", "#882255"];
const charts = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds === 0) return "0";
  if (seconds < 0.9995) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 5999.5) return twoUnits(Math.round(seconds), "min", "s");
  return twoUnits(Math.round(seconds / 60), "h", "min");
}

function twoUnits(small, largeUnit, smallUnit) {
  const rest = small % 60;
  const large = `${(small - rest) / 60} ${largeUnit}`;
  return rest ? `${large} ${rest} ${smallUnit}` : large;
}

function instants(scale, ticks) {
  const range = scale.max - scale.min;
  const parts = { hour: "2-digit", minute: "2-digit" };
  if (range < 1800) parts.second = "2-digit";
  if (range > 86400) Object.assign(parts, { month: "short", day: "numeric" });
  const format = new Intl.DateTimeFormat(undefined, { ...parts, hourCycle: "h23" });
  return ticks.map((tick) => format.format(new Date(tick * 1000)));
}

function axes() {
  const stroke = colour("quiet");
  const grid = { stroke: colour("line"), width: 1 };
  const font = "12px system-ui, sans-serif";
  return [
    { stroke, grid, ticks: grid, font, space: 90, size: 34, values: (chart, ticks) => instants(chart.scales.x, ticks) },
    { stroke, grid, ticks: grid, font, size: 70, values: (chart, ticks) => ticks.map(duration) },
  ];
}

// A latency is an interval, so draw it as one, with a mark in the middle.
function intervals(data) {
  return (chart) => {
    const { ctx } = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(chart.bbox.left, chart.bbox.top, chart.bbox.width, chart.bbox.height);
    ctx.clip();
    data.at.forEach((at, index) => {
      const x = chart.valToPos(at, "x", true);
      const seconds = data.seconds[index];
      const bad = data.word[index] === "failed" || data.word[index] === "unknown";
      ctx.strokeStyle = ctx.fillStyle = colour(data.word[index]);
      ctx.lineWidth = 1.5 * devicePixelRatio;
      if (seconds != null) {
        const error = data.uncertainty[index] || 0;
        const low = chart.valToPos(Math.max(0, seconds - error), "y", true);
        const high = chart.valToPos(seconds + error, "y", true);
        ctx.beginPath();
        ctx.moveTo(x, low);
        ctx.lineTo(x, high);
        for (const end of [low, high]) {
          ctx.moveTo(x - 3 * devicePixelRatio, end);
          ctx.lineTo(x + 3 * devicePixelRatio, end);
        }
        ctx.stroke();
        ctx.beginPath();
        ctx.arc(x, chart.valToPos(seconds, "y", true), 2.5 * devicePixelRatio, 0, 2 * Math.PI);
        ctx.fill();
      } else if (bad) {  // nothing measured: a cross at the top
        const size = 4 * devicePixelRatio;
        const y = chart.bbox.top + 2 * size;
        ctx.beginPath();
        ctx.moveTo(x - size, y - size);
        ctx.lineTo(x + size, y + size);
        ctx.moveTo(x - size, y + size);
        ctx.lineTo(x + size, y - size);
        ctx.stroke();
      }
    });
    ctx.restore();
    drawDeadline(chart, data);
  };
}

// The dashed line with its label; a deadline above the scale has its label above the chart.
function drawDeadline(chart, data) {
  const { ctx } = chart;
  const { left, top, width } = chart.bbox;
  const isAbove = data.deadline > chart.scales.y.max;
  const y = isAbove ? top - 20 * devicePixelRatio : chart.valToPos(data.deadline, "y", true);
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour(isAbove ? "quiet" : "failed");
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
  if (!isAbove) {
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(left + width, y);
    ctx.stroke();
  }
  ctx.textAlign = "left";
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  const words = `deadline ${duration(data.deadline)}${isAbove ? ", above" : ""}`;
  ctx.fillText(words, left + 6 * devicePixelRatio, y + 14 * devicePixelRatio);
  ctx.restore();
}

function scaleOfLatency(data) {
  const reached = data.seconds.map((seconds, index) => (seconds == null ? 0 : seconds + (data.uncertainty[index] || 0)));
  const most = Math.max(...reached, 0.001);
  // Shows the deadline unless it would flatten the latencies.
  return [0, data.deadline < 8 * most ? Math.max(most, data.deadline) * 1.1 : most * 1.15];
}

function drawLatency(data) {
  const options = {
    scales: { x: { time: true, range: spread(data) }, y: { range: scaleOfLatency(data) } },
    series: [{}, { paths: () => null, points: { show: false } }],
    hooks: { draw: [intervals(data)] },
    padding: [24, null, null, null],
  };
  draw("latency", options, [data.at, data.seconds]);
  const known = data.seconds.filter((seconds) => seconds != null).sort((a, b) => a - b);
  const middle = known.length ? `; median ${duration(known[known.length >> 1])}, longest ${duration(known.at(-1))}` : "";
  document.getElementById("latency").setAttribute("aria-label", `Chart of the last ${data.at.length} runs${middle}`);
}

function spread(data) {
  const [first, last] = [data.at[0], data.at.at(-1)];
  const margin = Math.max(1, (last - first) * 0.02);
  return [first - margin, last + margin];
}

function drawPhases(data) {
  const names = Object.keys(data.phases);
  const sums = [];
  let below = data.at.map(() => 0);
  for (const name of names) {
    below = below.map((sum, index) => sum + (data.phases[name][index] || 0));
    sums.push(below);
  }
  const bars = uPlot.paths.bars({ size: [0.7, 24], gap: 1 });
  const series = names.map((name, index) => ({
    fill: PHASES[index % PHASES.length], width: 0, paths: bars, points: { show: false },
  }));
  const top = Math.max(0.001, ...(sums.at(-1) || [0]));
  const options = {
    scales: { x: { time: true, range: spread(data) }, y: { range: [0, top * 1.1] } },
    series: [{}, ...series.reverse()],  // the highest sum first: the lower ones cover it
  };
  draw("phases", options, [data.at, ...sums.reverse()]);
  tellPhases(names, data);
}

function tellPhases(names, data) {
  const items = names.map((name, index) => {
    const item = document.createElement("li");
    const patch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    patch.setAttribute("viewBox", "0 0 1 1");
    const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of [["width", 1], ["height", 1], ["fill", PHASES[index % PHASES.length]]]) square.setAttribute(key, value);
    patch.append(square);
    item.append(patch, `${name} ${duration(data.phases[name].findLast((seconds) => seconds != null))}`);
    return item;
  });
  document.getElementById("phases-legend").replaceChildren(...items);
}

function draw(id, options, data) {
  const box = document.getElementById(id);
  const whole = {
    ...options, width: box.clientWidth, height: 240, axes: axes(), legend: { show: false }, cursor: { drag: { x: false } },
  };
  charts.push(new uPlot(whole, data, box));
}

function drawCharts() {
  for (const chart of charts.splice(0)) chart.destroy();
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  for (const box of document.querySelectorAll(".chart")) box.parentElement.hidden = !data.at.length;
  if (!data.at.length) return;
  drawLatency(data);
  drawPhases(data);
}

window.drawCharts = drawCharts;
drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
let resizing;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(drawCharts, 150);
});
