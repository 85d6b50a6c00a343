// How values read on the page; the same rules as spanloom/server/text.py.

const HARMFUL = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]",
  "g",
);

function written(character) {
  const code = character.charCodeAt(0);
  if (character === "\n") return "\\n";
  if (character === "\t") return "\\t";
  const hex = code.toString(16);
  return code < 0x100 ? `\\x${hex.padStart(2, "0")}` : `\\u${hex.padStart(4, "0")}`;
}

/** Text with control and reordering characters made visible. */
export const visible = (text) => String(text).replace(HARMFUL, written);

/** The same in a single line. */
export const oneLine = (text) => visible(text).replace(/[\t\n]/g, written);

function threeDigits(value) {
  if (value >= 100) return value.toFixed(0);
  return String(Number(value.toFixed(value >= 10 ? 1 : 2)));
}

/** Nanoseconds as `4.56 ms`, `1.23 s`, `2 m 05 s`. */
export function duration(ns) {
  if (ns < 1e3) return `${threeDigits(ns)} ns`;
  if (ns < 1e6) return `${threeDigits(ns / 1e3)} µs`;
  if (ns < 1e9) return `${threeDigits(ns / 1e6)} ms`;
  const seconds = ns / 1e9;
  if (seconds < 60) return `${threeDigits(seconds)} s`;
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} m ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} m`;
}

/** A moment relative to the trace's start: `+12.3 ms`. */
export const offset = (ns) => (ns < 0 ? `−${duration(-ns)}` : `+${duration(ns)}`);

export const count = (number) => Number(number).toLocaleString("en-US");

export function cost(usd) {
  if (usd === undefined || usd === null) return "";
  if (usd === 0) return "$0";
  if (Math.abs(usd) >= 1) return `$${usd.toFixed(2)}`;
  return usd > 0 && usd < 1e-4 ? "<$0.0001" : `$${usd.toFixed(4)}`;
}

/** An element with a class, text or children, and properties; text is never parsed as markup. */
export function element(tag, className = "", content = null, properties = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (typeof content === "string") made.textContent = content;
  else if (Array.isArray(content)) made.append(...content.filter((part) => part !== null));
  else if (content) made.append(content);
  return Object.assign(made, properties);
}
