// Keeps a page up to date: applies changed rows from the agent's events, shows ages, and filters.
"use strict";

const table = document.querySelector("table.probes");
const whole = table?.hasAttribute("data-whole");  // otherwise the agent has more routes and filters them itself
const head = document.querySelector("[data-live=head]");
const live = document.getElementById("live");
const SOON = 3000;  // ms before a page without an answer tries again
const AGAIN = 30000;  // ms before a refused page tries again, and between a hidden page's updates of its title

function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

const exactly = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function tellAges(within = document) {
  const now = Date.now();
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const text = "exact" in time.dataset ? exactly.format(at) : age((now - at) / 1000);
    if (time.textContent !== text) time.textContent = text;
    if (!time.title) time.title = exactly.format(at);
  }
}

// The overview

function fits(row, wanted, onlyWrong) {
  if (onlyWrong && (row.dataset.word === "ok" || row.dataset.word === "waiting")) return false;
  return row.dataset.route.toLowerCase().includes(wanted);
}

function applyFilters() {
  const form = document.querySelector(".filters");
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    row.hidden = whole && !fits(row, form.q.value.toLowerCase(), form.wrong.checked);
    shown += !row.hidden;
  }
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
  if (told.dataset.text !== text) {  // otherwise a screen reader would read the same text again
    told.dataset.text = text;
    told.replaceChildren(...spans);
  }
  const wrong = ["failed", "late", "unknown"].filter((word) => counts[word]).map((word) => `${counts[word]} ${word}, `);
  tellTitle(`${wrong.join("")}mailsonde`);
}

const comesBefore = (a, b) =>
  a.dataset.rank - b.dataset.rank || (a.dataset.route < b.dataset.route ? -1 : a.dataset.route > b.dataset.route ? 1 : 0);

function place(row) {
  const follower = [...table.tBodies[0].rows].find((other) => comesBefore(row, other) < 0);
  table.tBodies[0].insertBefore(row, follower || null);
}

// Takes changed rows, and removes rows of routes that are no longer on this page.
async function takeRows({ rows, routes, counts }) {
  const known = new Map([...table.tBodies[0].rows].map((row) => [row.dataset.route, row]));
  const template = document.createElement("template");
  template.innerHTML = Object.values(rows).join("");
  tellAges(template.content);
  for (const fresh of [...template.content.children]) {
    const row = known.get(fresh.dataset.route) || fresh;
    const moves = row === fresh || row.dataset.rank !== fresh.dataset.rank;
    const held = row.contains(document.activeElement);
    takeCells(row, fresh);
    if (moves) place(row);
    if (held) row.querySelector("a").focus({ preventScroll: true });
  }
  const listed = new Set(routes);
  for (const row of [...table.tBodies[0].rows]) if (!listed.has(row.dataset.route)) row.remove();
  if (table.tBodies[0].rows.length < listed.size) await reloadRows();
  applyFilters();
  tellCounts(counts);
}

// Another route left the page while the page did not listen, so an unchanged route entered it.
async function reloadRows() {
  const fresh = await fetched();
  if (!fresh) return;
  tellAges(fresh);
  table.tBodies[0].replaceWith(fresh.querySelector("table.probes").tBodies[0]);
}

// Replaces only the cells that differ: replacing the row costs the browser 50 % more.
function takeCells(row, fresh) {
  Object.assign(row.dataset, fresh.dataset);
  [...fresh.cells].forEach((cell, index) => {
    if (!row.cells[index].isEqualNode(cell)) row.cells[index].replaceWith(cell);
  });
}

// A probe's page

let loading = false;
let again = false;
let held = false;

async function reloadParts() {
  if (loading) {
    again = true;
    return;
  }
  loading = true;
  const fresh = await fetched();
  loading = false;
  if (fresh) {
    takeParts(fresh);
    tellTitle(fresh.title);
  }
  if (events.readyState === EventSource.OPEN) {
    live.textContent = fresh ? "live" : "not live: trying again";
    if (!fresh) setTimeout(reloadParts, SOON);
  }
  if (again) {
    again = false;
    reloadParts();
  }
}

function takeParts(fresh) {
  const selection = getSelection();
  held = false;
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = fresh.querySelector(`[data-live=${part.dataset.live}]`);
    if (!selection.isCollapsed && selection.getRangeAt(0).intersectsNode(part)) held = true;
    else if (next) replacePart(part, next);
  }
  tellAges();
  window.drawCharts?.();
}

// Keeps the focus on the same link or, if that is gone, on the region around it.
function replacePart(part, next) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  part.replaceWith(next);
  if (!focused) return;
  const same = [...next.querySelectorAll("a")].find((link) => link.href === focused.href);
  (same || next.closest("[tabindex]"))?.focus({ preventScroll: true });
}

// Both

let since = (table || head)?.dataset.since;
let title = document.title;
let events;
let waiting;

function tellTitle(text) {
  document.title = title = text;
}

// Returns a fresh copy of this page, or null if the agent does not answer.
async function fetched() {
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
  } catch {
    return null;
  }
}

function listen() {
  const query = new URLSearchParams(table && !whole ? location.search : "");  // the filters of the page
  query.set("since", since);
  if (head) query.set("probe", head.dataset.probe);
  events = new EventSource(`/events?${query}`);
  events.onopen = () => {
    live.textContent = "live";
    document.title = title;
  };
  events.onmessage = (event) => {
    since = event.lastEventId;
    document.documentElement.dataset.updates = Number(document.documentElement.dataset.updates || 0) + 1;
    if (table) takeRows(JSON.parse(event.data));
    else reloadParts();
  };
  events.onerror = () => {
    live.textContent = "not live: trying again";
    // Refused because too many pages are open: the browser does not retry by itself.
    if (events.readyState === EventSource.CLOSED) waiting = setTimeout(listen, AGAIN);
  };
}

// A hidden page does not listen: a browser opens only six connections to a site, so a seventh page would
// not load. But people still read its title.
function listenWhileShown() {
  events?.close();
  clearTimeout(waiting);  // also clears an interval
  if (document.hidden) {
    live.textContent = "paused";
    waiting = setInterval(lookForTitle, AGAIN);
  } else {
    listen();
  }
}

async function lookForTitle() {
  const fresh = await fetched();
  if (!document.hidden) return;
  if (fresh) tellTitle(fresh.title);
  else document.title = "no answer, mailsonde";
}

tellAges();
setInterval(tellAges, 1000);
if (whole) {
  const form = document.querySelector(".filters");
  form.querySelector("button").hidden = true;
  form.addEventListener("input", applyFilters);
  form.addEventListener("submit", (event) => event.preventDefault());
}
if (head) {
  document.addEventListener("selectionchange", () => {
    if (held && getSelection().isCollapsed) reloadParts();
  });
}
if (table || head) {
  document.addEventListener("visibilitychange", listenWhileShown);
  listenWhileShown();
}
