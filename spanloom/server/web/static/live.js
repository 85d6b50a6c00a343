// While spans of the trace are open: reads it again, and lets running bars grow in between.

import { localiseTimes } from "./common.js";

const READ_EVERY_MS = 1000;
const GROW_EVERY_MS = 200;
const PATIENCE_MS = 3000; // without news a bar stops growing: nobody knows whether it still runs
const LATE_MS = 15_000; // what ended may still bring log lines and spans of other services

/** `on` = {update(view), grow(ms)}; update gets the trace as it is now. */
export function follow(view, on) {
  if (!view.open) return;
  let pressed = false; // rows drawn anew between press and release would swallow the click
  addEventListener("pointerdown", () => (pressed = true), true);
  for (const release of ["pointerup", "pointercancel"]) {
    addEventListener(release, () => setTimeout(() => (pressed = false)), true);
  }
  let readAt = performance.now();
  let endedAt = 0;
  setInterval(() => {
    const since = performance.now() - readAt;
    if (!document.hidden && !endedAt && since < PATIENCE_MS) on.grow(since);
  }, GROW_EVERY_MS);
  const again = async () => {
    const began = performance.now();
    if (!document.hidden) {
      try {
        const fresh = await read();
        if (fresh && !pressed) {
          readAt = performance.now();
          if (fresh.open) endedAt = 0;
          else endedAt ||= readAt;
          on.update(fresh);
        }
      } catch {
        // the server is away: the page stays as it is, and the next turn tries again
      }
    }
    // A big trace must not keep the server busy with nothing else.
    if (!endedAt || performance.now() - endedAt < LATE_MS) {
      setTimeout(again, Math.max(READ_EVERY_MS, 5 * (performance.now() - began)));
    }
  };
  setTimeout(again, READ_EVERY_MS);
}

async function read() {
  const answer = await fetch(location.pathname, { headers: { accept: "text/html" } });
  if (!answer.ok) return null;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const selector of [".trace-head .title", ".trace-head .facts", "#strays"]) {
    const made = fresh.querySelector(selector);
    if (!made) continue;
    localiseTimes(made);
    document.querySelector(selector).replaceWith(made);
  }
  return JSON.parse(fresh.getElementById("trace-data").textContent);
}
