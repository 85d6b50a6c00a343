// The log lines of the whole trace, below its spans.

import { level } from "./details.js";
import { count, element, offset, oneLine, visible } from "./format.js";

export class Logs {
  /** `on` = {hover(row), select(row)}; a row is an index into view.rows, -1 for none. */
  constructor(view, on) {
    this.view = view;
    this.on = on;
    this.lines = document.getElementById("logs-lines");
    this.find = document.getElementById("logs-find");
    this.lowest = document.getElementById("logs-level");
    this.below = document.getElementById("logs-below");
    this.selected = -1;
    this.#build();
    this.#listen();
    for (const control of [this.find, this.lowest, this.below]) {
      control.addEventListener("input", () => this.#filter());
    }
    this.#filter();
  }

  #build() {
    this.elements = this.view.logs.map((line, index) => this.#line(line, index));
    this.haystacks = this.view.logs.map((line) =>
      `${line.body} ${line.level} ${JSON.stringify(line.attributes ?? {})}`.toLowerCase(),
    );
    if (!this.elements.length) {
      this.lines.append(element("p", "muted nothing", "No log line names this trace."));
    } else if (this.view.logsCut) {
      this.elements.push(element("p", "notice", `Only the first ${count(this.view.logs.length)} lines are shown.`));
    }
    this.lines.append(...this.elements);
  }

  /** Show a newer state of the same trace. */
  update(view) {
    const unchanged = view.logs.length === this.view.logs.length && view.rows.length === this.view.rows.length;
    const selected = this.view.rows[this.selected]?.id;
    this.view = view;
    this.selected = view.rows.findIndex((row) => row.id === selected);
    if (unchanged) return;
    const { scrollTop } = this.lines;
    this.lines.replaceChildren();
    this.#build();
    this.#filter();
    this.lines.scrollTop = scrollTop;
  }

  #listen() {
    this.lines.addEventListener("pointerover", (event) => {
      const line = event.target.closest(".log");
      this.on.hover(line ? this.view.logs[Number(line.dataset.log)].row : -1);
    });
    this.lines.addEventListener("pointerleave", () => this.on.hover(-1));
    this.lines.addEventListener("click", (event) => {
      const summary = event.target.closest(".log-line");
      if (!summary || String(getSelection())) return;
      const index = Number(summary.parentElement.dataset.log);
      this.#toggle(index);
      this.on.select(this.view.logs[index].row);
    });
  }

  #line(line, index) {
    const service = this.view.services[line.service];
    const where = line.row >= 0 ? this.view.rows[line.row].name : "";
    const summary = element("div", "log-line", [
      element("span", "offset", offset(line.offset)),
      element("span", "log-level", line.level),
      element("span", "swatch", null, { title: service?.name ?? "" }),
      element("span", "log-body", oneLine(line.body)),
      element("span", "log-keys", inline(line.attributes)),
      element("span", "log-span", where, { title: where }),
    ]);
    const made = element("div", `log level-${level(line.severity)} c${service?.colour ?? "-none"}`, summary);
    made.dataset.log = index;
    return made;
  }

  #toggle(index) {
    const made = this.elements[index];
    const open = made.querySelector(".log-full");
    if (open) {
      open.remove();
      return;
    }
    const line = this.view.logs[index];
    const facts = { ...(line.logger ? { logger: line.logger } : {}), ...(line.event ? { event: line.event } : {}), ...line.attributes };
    const rows = Object.entries(facts).map(([key, value]) =>
      element("tr", "", [
        element("th", "", oneLine(key)),
        element("td", "", element("pre", "value", visible(plain(value)))),
      ]),
    );
    made.append(
      element("div", "log-full", [
        element("pre", "log-text", visible(line.body)),
        rows.length ? element("table", "attributes", element("tbody", "", rows)) : null,
      ]),
    );
  }

  /** Show which lines belong to a span, and scroll to the first. */
  select(row) {
    this.selected = row;
    let first = null;
    this.view.logs.forEach((line, index) => {
      const own = line.row === row && row >= 0;
      this.elements[index].classList.toggle("own", own);
      if (own && first === null) first = this.elements[index];
    });
    if (this.below.checked) this.#filter();
    else if (first) this.#scrollTo(first);
  }

  reveal(index) {
    this.#scrollTo(this.elements[index]);
    if (!this.elements[index].querySelector(".log-full")) this.#toggle(index);
  }

  hover(row) {
    this.view.logs.forEach((line, index) => {
      this.elements[index].classList.toggle("hovered", row >= 0 && line.row === row);
    });
  }

  #scrollTo(line) {
    const box = this.lines.getBoundingClientRect();
    const place = line.getBoundingClientRect();
    if (place.top < box.top || place.bottom > box.bottom) {
      this.lines.scrollTop += place.top - box.top - box.height / 3;
    }
  }

  #filter() {
    const needle = this.find.value.trim().toLowerCase();
    const lowest = Number(this.lowest.value);
    const rows = this.view.rows;
    const [from, to] =
      this.below.checked && this.selected >= 0 ? [this.selected, this.selected + rows[this.selected].size] : [-1, Infinity];
    let shown = 0;
    this.view.logs.forEach((line, index) => {
      const fits = line.row >= from && line.row < to && line.severity >= lowest && this.haystacks[index].includes(needle);
      this.elements[index].hidden = !fits;
      shown += fits;
    });
    const total = this.view.logs.length;
    document.getElementById("logs-count").textContent = shown === total ? count(total) : `${count(shown)} of ${count(total)}`;
  }
}

function plain(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function inline(attributes = {}) {
  return Object.entries(attributes)
    .filter(([key]) => !/^(code|exception)\./.test(key))
    .slice(0, 6)
    .map(([key, value]) => element("span", "pair", [element("i", "", `${oneLine(key)}=`), oneLine(plain(value)).slice(0, 80)]));
}
