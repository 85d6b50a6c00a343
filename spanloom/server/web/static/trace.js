// The page of one trace: joins waterfall, details and log lines, and owns the keyboard.

import "./common.js";
import { Details } from "./details.js";
import { count, element } from "./format.js";
import { follow } from "./live.js";
import { Logs } from "./logs.js";
import { Waterfall } from "./waterfall.js";

let view = JSON.parse(document.getElementById("trace-data").textContent);
const byId = (id) => document.getElementById(id);

const details = new Details(view, {
  close: closeDetails,
  goTo: (row) => waterfall.select(row, true),
  highlightLog: (index) => logs.reveal(index),
});
const logs = new Logs(view, {
  hover: (row) => waterfall.mark(row < 0 ? [] : [row]),
  select: (row) => row >= 0 && waterfall.select(row),
});
const waterfall = new Waterfall(view, {
  select(row, open) {
    logs.select(row);
    if (open || details.open) details.show(row);
    history.replaceState(null, "", `#${view.rows[row].id}`);
  },
  hover: (row) => logs.hover(row),
});

function closeDetails() {
  details.close();
  byId("scroller").focus();
}

// --- find and errors ----------------------------------------------------------------------------

const find = byId("find");
let haystacks = [];

function search() {
  const needle = find.value.trim().toLowerCase();
  if (!needle) {
    waterfall.setMatches(null);
    byId("find-count").textContent = "";
    return;
  }
  const matches = new Set();
  haystacks.forEach((text, row) => text.includes(needle) && matches.add(row));
  waterfall.setMatches(matches);
  byId("find-count").textContent = matches.size ? `${count(matches.size)} found, ↵ for the next` : "nothing found";
}

const nextMatch = (step) => waterfall.matches?.size && waterfall.next((row) => waterfall.matches.has(row), { step });
const nextError = () => waterfall.next((row) => view.rows[row].error !== undefined, { open: true });

find.addEventListener("input", search);
find.addEventListener("keydown", (event) => {
  if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
  if (event.key === "Escape") byId("scroller").focus();
});
byId("next-error").addEventListener("click", nextError);
byId("collapse").addEventListener("click", () => waterfall.collapseAll());
byId("expand").addEventListener("click", () => waterfall.expandAll());
byId("zoom-out").addEventListener("click", () => waterfall.zoom(0, view.duration));
byId("reload").addEventListener("click", () => location.reload());

// --- keyboard -----------------------------------------------------------------------------------

const KEYS = {
  j: () => waterfall.move(1),
  k: () => waterfall.move(-1),
  ArrowDown: () => waterfall.move(1),
  ArrowUp: () => waterfall.move(-1),
  PageDown: () => waterfall.move(20),
  PageUp: () => waterfall.move(-20),
  Home: () => waterfall.move(-view.rows.length),
  End: () => waterfall.move(view.rows.length),
  h: () => waterfall.current >= 0 && waterfall.fold(waterfall.current),
  l: () => waterfall.current >= 0 && waterfall.unfold(waterfall.current),
  ArrowLeft: () => waterfall.current >= 0 && waterfall.fold(waterfall.current),
  ArrowRight: () => waterfall.current >= 0 && waterfall.unfold(waterfall.current),
  Enter: () => waterfall.current >= 0 && details.show(waterfall.current),
  Escape: closeDetails,
  "/": () => find.focus(),
  n: () => nextMatch(1),
  N: () => nextMatch(-1),
  e: nextError,
  r: () => location.reload(),
  0: () => waterfall.zoom(0, view.duration),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, button, a, summary") && event.key !== "Escape") return;
  if (event.target.closest(".details, .logs-lines") && /^(Page|Arrow|Home|End)/.test(event.key)) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// --- panes that can be resized ------------------------------------------------------------------

function resizable(handle, property, measure) {
  const kept = Number(localStorage.getItem(property));
  if (kept) document.body.style.setProperty(property, `${kept}px`);
  handle.addEventListener("pointerdown", (down) => {
    handle.setPointerCapture(down.pointerId);
    const move = (event) => {
      const size = Math.round(measure(event));
      document.body.style.setProperty(property, `${size}px`);
      localStorage.setItem(property, String(size));
    };
    handle.addEventListener("pointermove", move);
    handle.addEventListener("pointerup", () => handle.removeEventListener("pointermove", move), { once: true });
  });
}

resizable(byId("details-handle"), "--details-width", (event) =>
  Math.min(Math.max(innerWidth - event.clientX, 260), innerWidth * 0.7),
);
resizable(byId("logs-handle"), "--logs-height", (event) =>
  Math.min(Math.max(innerHeight - event.clientY, 60), innerHeight * 0.7),
);

// --- start --------------------------------------------------------------------------------------

function describe() {
  haystacks = view.rows.map((row) =>
    `${row.name} ${view.services[row.service].name} ${row.category} ${row.outcome ?? ""} ${row.state ?? ""} ${row.id}`.toLowerCase(),
  );
  byId("legend").replaceChildren(
    ...view.services.map((service) => element("span", `service c${service.colour}`, service.name)),
  );
  byId("next-error").hidden = !view.rows.some((row) => row.error !== undefined);
  document.body.classList.toggle("no-logs", !view.logs.length);
}

describe();
follow(view, {
  update(fresh) {
    view = fresh;
    describe();
    logs.update(view);
    details.update(view);
    waterfall.update(view);
    if (find.value.trim()) search();
  },
  grow: (ms) => waterfall.grow(ms),
});
if (view.find) {
  find.value = view.find;
  search();
}
function openLinked() {
  const wanted = view.rows.findIndex((row) => row.id === location.hash.slice(1));
  if (wanted >= 0) waterfall.select(wanted, true);
}
openLinked();
// A link to another span of the trace that is shown does not load the page again.
addEventListener("hashchange", openLinked);
byId("scroller").focus({ preventScroll: true });
