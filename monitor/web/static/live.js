// Keeps a page fresh: takes changed rows from the agent's events, tells how old things are, and filters.
"use strict";

const table = document.querySelector("table.probes");
const whole = table?.hasAttribute("data-whole");  // else the agent has more routes, and filters them
const head = document.querySelector("[data-live=head]");
const live = document.getElementById("live");

function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

function tellAges(within = document) {
  const now = Date.now();
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const text = age((now - at) / 1000);
    if (time.textContent !== text) time.textContent = text;
    if (!time.title) time.title = at.toLocaleString();
  }
}

// The overview

function fits(row, wanted, onlyWrong) {
  if (onlyWrong && (row.dataset.word === "ok" || row.dataset.word === "waiting")) return false;
  return row.dataset.route.toLowerCase().includes(wanted);
}

function applyFilters() {
  const form = document.querySelector(".filters");
  const wanted = (whole ? form.q.value : form.q.defaultValue).toLowerCase();
  const onlyWrong = whole ? form.wrong.checked : form.wrong.defaultChecked;
  let shown = 0;
  for (const row of [...table.tBodies[0].rows]) {
    row.hidden = !fits(row, wanted, onlyWrong);
    if (row.hidden && !whole) row.remove();
    shown += !row.hidden;
  }
  while (table.tBodies[0].rows.length > table.dataset.most) table.tBodies[0].rows[table.dataset.most].remove();
  document.getElementById("none").hidden = shown > 0;
}

function tellCounts(counts) {
  const spans = Object.entries(counts).map(([word, count]) => {
    const span = document.createElement("span");
    span.className = word;
    span.textContent = `${count} ${word}`;
    return span;
  });
  const told = document.getElementById("counts");
  const text = spans.map((span) => span.textContent).join(" ");
  if (told.dataset.text !== text) {  // else a screen reader would read the same again
    told.dataset.text = text;
    told.replaceChildren(...spans);
  }
  const wrong = ["failed", "late", "unknown"].filter((word) => counts[word]).map((word) => `${counts[word]} ${word}, `);
  document.title = `${wrong.join("")}mailsonde`;
}

const comesBefore = (a, b) =>
  a.dataset.rank - b.dataset.rank || (a.dataset.route < b.dataset.route ? -1 : a.dataset.route > b.dataset.route ? 1 : 0);

function place(row) {
  const follower = [...table.tBodies[0].rows].find((other) => comesBefore(row, other) < 0);
  table.tBodies[0].insertBefore(row, follower || null);
}

function takeRows({ rows, counts }) {
  const known = new Map([...table.tBodies[0].rows].map((row) => [row.dataset.route, row]));
  const template = document.createElement("template");
  for (const [route, html] of Object.entries(rows)) {
    template.innerHTML = html.trim();
    const fresh = template.content.firstElementChild;
    const old = known.get(route);
    const held = old && old.contains(document.activeElement);
    if (old && old.dataset.rank === fresh.dataset.rank) {
      old.replaceWith(fresh);
    } else {
      if (old) old.remove();
      place(fresh);
    }
    tellAges(fresh);
    if (held) fresh.querySelector("a").focus({ preventScroll: true });
  }
  applyFilters();
  tellCounts(counts);
}

// A probe's page

let loading = false;
let again = false;

async function reloadParts() {
  if (loading) {
    again = true;
    return;
  }
  loading = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const next = fresh.querySelector(`[data-live=${part.dataset.live}]`);
        if (next && !part.contains(document.activeElement)) part.replaceWith(next);
      }
      document.title = fresh.title;
      tellAges();
      window.drawCharts?.();
    }
  } finally {
    loading = false;
    if (again) {
      again = false;
      reloadParts();
    }
  }
}

// Both

function listen() {
  const page = table || head;
  const query = new URLSearchParams({ since: page.dataset.since });
  if (head) query.set("probe", head.dataset.probe);
  const events = new EventSource(`/events?${query}`);
  let retry;
  events.onopen = () => { live.textContent = "live"; };
  events.onmessage = (event) => {
    document.documentElement.dataset.updates = Number(document.documentElement.dataset.updates || 0) + 1;
    if (table) takeRows(JSON.parse(event.data));
    else reloadParts();
  };
  events.onerror = () => {
    live.textContent = "not live: trying again";
    if (events.readyState === EventSource.CLOSED && !retry) {  // refused: too many pages watch
      retry = setTimeout(() => location.reload(), 30000);
    }
  };
}

tellAges();
setInterval(tellAges, 1000);
if (whole) {
  const form = document.querySelector(".filters");
  form.querySelector("button").hidden = true;
  form.addEventListener("input", applyFilters);
  form.addEventListener("submit", (event) => event.preventDefault());
}
if (table || head) listen();
