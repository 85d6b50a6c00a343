// The rows of a trace. Only those in view exist as elements, so 10,000 spans scroll freely.

import { cost, count, duration, element } from "./format.js";

const ROW_HEIGHT = 28; // as --row in app.css
const OVERSCAN = 12;
const INDENT = 16;
const MAX_INDENT = 18; // levels; deeper ones would leave no room for the name
const TICK_ROOM = 95; // pixels a label needs
// "invoke_node x" and "POST /x" say what they are by their names.
const CHIPS = new Set(["llm", "tool", "retrieval", "rerank", "embeddings", "agent", "workflow", "db"]);
const STATES = {
  running: "Has not ended; its process is alive.",
  stalled: "Has not ended; its process has been silent for 3 s or more, and may have died.",
  lost: "Its process went on without it, or ended in order; its end was not received.",
};

export class Waterfall {
  /** `on` = {select(row, open), hover(row)}; a row is an index into view.rows. */
  constructor(view, on) {
    this.view = view;
    this.rows = view.rows;
    this.on = on;
    this.collapsed = new Set();
    this.matches = null;
    this.current = -1;
    this.marked = new Set();
    this.range = [0, Math.max(view.duration, 1)];
    this.scroller = document.getElementById("scroller");
    this.canvas = document.getElementById("canvas");
    this.axis = document.getElementById("axis");
    this.#columns();
    this.scroller.addEventListener("scroll", () => this.#schedule(), { passive: true });
    new ResizeObserver(() => this.render(true)).observe(this.scroller);
    this.#listen();
    this.#refold();
  }

  #columns() {
    const panel = document.getElementById("waterfall");
    panel.classList.toggle("no-tokens", !this.rows.some((row) => row.input !== undefined));
    panel.classList.toggle("no-cost", !this.rows.some((row) => row.cost !== undefined));
  }

  // --- a trace that goes on --------------------------------------------------------------------

  /** Draw a newer state of the same trace; what is folded and selected stays so. */
  update(view) {
    const folded = new Set([...this.collapsed].map((row) => this.rows[row].id));
    const selected = this.rows[this.current]?.id;
    const isWhole = this.#isWhole();
    this.view = view;
    this.rows = view.rows;
    this.collapsed = new Set();
    this.current = -1;
    this.marked.clear();
    this.rows.forEach((row, index) => {
      if (folded.has(row.id) && row.size > 1) this.collapsed.add(index);
      if (row.id === selected) this.current = index;
    });
    if (isWhole) this.range = [0, Math.max(view.duration, 1)];
    this.#columns();
    this.#refold();
  }

  /** Let running bars be `ms` milliseconds longer than when they were read. */
  grow(ms) {
    const isWhole = this.#isWhole();
    for (const row of this.rows) {
      if (row.state !== "running") continue;
      row.read ??= row.duration;
      row.duration = row.read + ms * 1e6;
      this.view.duration = Math.max(this.view.duration, row.offset + row.duration);
    }
    if (isWhole) this.range = [0, Math.max(this.view.duration, 1)];
    // In place: elements made anew would take a click away from under the pointer.
    for (const [index, line] of this.drawn) {
      const row = this.rows[index];
      this.#place(line.querySelector(".bar"), row);
      if (row.state) line.querySelector(".length").textContent = `${duration(row.duration)}+`;
    }
    if (isWhole) this.#renderAxis();
  }

  #isWhole() {
    return this.range[0] === 0 && this.range[1] >= Math.max(this.view.duration, 1);
  }

  #listen() {
    const rowOf = (event) => {
      const found = event.target.closest(".row[data-row]");
      return found ? Number(found.dataset.row) : -1;
    };
    this.canvas.addEventListener("click", (event) => {
      const row = rowOf(event);
      if (row < 0) return;
      if (event.target.closest(".fold")) this.toggle(row);
      else this.select(row, true);
    });
    this.canvas.addEventListener("pointerover", (event) => this.on.hover(rowOf(event)));
    this.canvas.addEventListener("pointerleave", () => this.on.hover(-1));
    this.axis.addEventListener("pointerdown", (event) => this.#drag(event));
    this.axis.addEventListener("dblclick", () => this.zoom(0, this.view.duration));
  }

  // --- folding ---------------------------------------------------------------------------------

  #refold() {
    this.shown = [];
    this.place = new Map();
    for (let row = 0; row < this.rows.length; ) {
      this.place.set(row, this.shown.length);
      this.shown.push(row);
      row += this.collapsed.has(row) ? this.rows[row].size : 1;
    }
    this.canvas.style.height = `${this.shown.length * ROW_HEIGHT}px`;
    this.render(true);
  }

  toggle(row) {
    if (this.rows[row].size === 1) return;
    if (!this.collapsed.delete(row)) this.collapsed.add(row);
    this.#refold();
  }

  fold(row) {
    if (this.rows[row].size > 1 && !this.collapsed.has(row)) this.toggle(row);
    else this.select(this.rows[row].parent);
  }

  unfold(row) {
    if (this.collapsed.has(row)) this.toggle(row);
    else if (this.rows[row].size > 1) this.select(row + 1);
  }

  /** Show the two upper levels only. */
  collapseAll() {
    this.rows.forEach((row, index) => row.size > 1 && row.depth > 0 && this.collapsed.add(index));
    this.#refold();
  }

  expandAll() {
    this.collapsed.clear();
    this.#refold();
  }

  // --- selection and marks ----------------------------------------------------------------------

  /** Make a row the current one; `open` asks for its details. */
  select(row, open = false) {
    if (row < 0 || row >= this.rows.length) return;
    for (let above = this.rows[row].parent; above >= 0; above = this.rows[above].parent) {
      this.collapsed.delete(above);
    }
    this.current = row;
    if (!this.place.has(row)) this.#refold();
    this.#reveal(row);
    this.render(true);
    this.on.select(row, open);
  }

  move(step) {
    const at = this.current < 0 ? (step > 0 ? -1 : 0) : this.place.get(this.current);
    const next = Math.min(Math.max((at ?? 0) + step, 0), this.shown.length - 1);
    this.select(this.shown[next]);
  }

  /** Select the next row that passes `test`, folded ones included, round the end. */
  next(test, { step = 1, open = false } = {}) {
    const total = this.rows.length;
    for (let tried = 1; tried <= total; tried += 1) {
      const row = (((this.current + step * tried) % total) + total) % total;
      if (test(row)) return this.select(row, open);
    }
    return undefined;
  }

  setMatches(matches) {
    this.matches = matches;
    this.render(true);
  }

  /** Rows to point at, for the log lines under the pointer. */
  mark(rows) {
    this.marked = new Set(rows);
    this.render(true);
  }

  #reveal(row) {
    const top = this.place.get(row) * ROW_HEIGHT;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + ROW_HEIGHT > scrollTop + clientHeight) {
      this.scroller.scrollTop = top + ROW_HEIGHT - clientHeight;
    }
  }

  // --- time ------------------------------------------------------------------------------------

  zoom(from, to) {
    const whole = Math.max(this.view.duration, 1);
    const start = Math.max(0, Math.min(from, to));
    const end = Math.min(whole, Math.max(from, to));
    this.range = end - start < 1 ? [0, whole] : [start, end];
    document.getElementById("zoom-out").hidden = this.range[0] === 0 && this.range[1] === whole;
    this.render(true);
  }

  #drag(down) {
    const box = this.axis.getBoundingClientRect();
    const [from, to] = this.range;
    const moment = (event) => {
      const part = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      return from + part * (to - from);
    };
    const first = moment(down);
    const selection = element("span", "selection");
    this.axis.append(selection);
    this.axis.setPointerCapture(down.pointerId);
    const draw = (event) => {
      const [left, right] = [first, moment(event)].sort((a, b) => a - b);
      selection.style.left = `${((left - from) / (to - from)) * 100}%`;
      selection.style.width = `${((right - left) / (to - from)) * 100}%`;
    };
    const finish = (event) => {
      this.axis.removeEventListener("pointermove", draw);
      selection.remove();
      const last = moment(event);
      // A click, or a hand that trembled, is not a range.
      if (Math.abs(last - first) / (to - from) > 0.01) this.zoom(first, last);
    };
    this.axis.addEventListener("pointermove", draw);
    this.axis.addEventListener("pointerup", finish, { once: true });
  }

  #ticks() {
    const [from, to] = this.range;
    const rough = (to - from) / Math.max(this.axis.clientWidth / TICK_ROOM, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.9);
    const ticks = [];
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at);
    return { ticks, step };
  }

  #renderAxis() {
    const [from, to] = this.range;
    const { ticks, step } = this.#ticks();
    const width = this.axis.clientWidth;
    const x = (at) => ((at - from) / (to - from)) * width;
    const labels = ticks
      .filter((at) => x(at) < width - 40)
      .map((at) => {
        const label = element("span", "tick", at === 0 ? "0" : duration(at));
        label.style.left = `${x(at)}px`;
        return label;
      });
    this.axis.replaceChildren(...labels);
    this.canvas.style.setProperty("--grid-step", `${(step / (to - from)) * width}px`);
    this.canvas.style.setProperty("--grid-offset", `${x(ticks[0] ?? 0)}px`);
  }

  // --- drawing ---------------------------------------------------------------------------------

  #schedule() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.render();
    });
  }

  render(force = false) {
    if (!this.shown) return;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW_HEIGHT) - OVERSCAN);
    const room = Math.ceil(this.scroller.clientHeight / ROW_HEIGHT) + 2 * OVERSCAN;
    const last = Math.min(this.shown.length, first + room);
    if (!force && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    if (force) this.#renderAxis();
    this.drawn = new Map();
    for (let at = first; at < last; at += 1) this.drawn.set(this.shown[at], this.#row(this.shown[at], at));
    this.canvas.replaceChildren(...this.drawn.values());
    this.scroller.setAttribute("aria-activedescendant", this.current < 0 ? "" : `row-${this.current}`);
  }

  #row(index, at) {
    const row = this.rows[index];
    const service = this.view.services[row.service];
    const line = element("div", `row c${service.colour}`, [
      this.#name(row, index, service),
      this.#tokens(row),
      element("span", `cell cost${row.category === "llm" ? "" : " sum"}`, cost(row.cost)),
      element("span", "cell length", duration(row.duration) + (row.state ? "+" : "")),
      this.#bar(row),
    ]);
    line.id = `row-${index}`;
    line.dataset.row = index;
    line.style.top = `${at * ROW_HEIGHT}px`;
    line.setAttribute("role", "treeitem");
    line.setAttribute("aria-level", row.depth + 1);
    line.setAttribute("aria-selected", index === this.current);
    if (row.size > 1) line.setAttribute("aria-expanded", !this.collapsed.has(index));
    line.classList.toggle("current", index === this.current);
    line.classList.toggle("error", row.error !== undefined);
    if (row.state) line.classList.add("open", row.state);
    line.classList.toggle("marked", this.marked.has(index));
    line.classList.toggle("dimmed", this.matches !== null && !this.matches.has(index));
    return line;
  }

  #name(row, index, service) {
    const parts = [];
    if (row.size > 1) {
      const folded = this.collapsed.has(index);
      parts.push(element("button", "fold", folded ? "▸" : "▾", { tabIndex: -1, title: folded ? "Expand" : "Collapse" }));
    } else {
      parts.push(element("span", "fold leaf"));
    }
    parts.push(element("span", "swatch", null, { title: service.name }));
    if (row.error !== undefined) parts.push(element("span", "mark", "!", { title: row.error }));
    parts.push(element("span", "label", row.name, { title: `${service.name} · ${row.name}` }));
    if (CHIPS.has(row.category)) parts.push(element("span", `chip ${row.category}`, row.category));
    // The red mark says "error" already.
    if (row.outcome && row.outcome !== "error") {
      parts.push(element("span", `badge outcome${row.error === undefined ? "" : " bad"}`, row.outcome.replaceAll("_", " ")));
    }
    if (row.state) parts.push(element("span", `badge open ${row.state}`, row.state, { title: STATES[row.state] }));
    if (row.incomplete) parts.push(element("span", "badge bad", "incomplete"));
    if (row.orphan) parts.push(element("span", "badge", "called from outside", { title: `Its parent, span ${row.orphan}, was not sent here: the caller is traced elsewhere, or that span was lost` }));
    if (row.size > 1 && this.collapsed.has(index)) parts.push(element("span", "folded", `+${count(row.size - 1)}`));
    const above = row.parent >= 0 ? this.rows[row.parent].service : -1;
    // A service's name is worth the room where it changes; the swatch tells the rest.
    if (row.service !== above) parts.push(element("span", "of-service", service.name));
    const cell = element("span", "cell name", parts);
    const level = Math.min(row.depth, MAX_INDENT);
    cell.style.paddingLeft = `${level * INDENT}px`;
    cell.style.setProperty("--guides", `${level * INDENT}px`);
    return cell;
  }

  #tokens(row) {
    if (row.input === undefined) return element("span", "cell tokens");
    const own = row.category === "llm";
    return element("span", own ? "cell tokens" : "cell tokens sum", `${count(row.input)} / ${count(row.output)}`, {
      title: `${count(row.input)} in, ${count(row.output)} out${own ? "" : ": sum of the LLM spans below"}`,
    });
  }

  #bar(row) {
    const [from, to] = this.range;
    const percent = (ns) => ((ns - from) / (to - from)) * 100;
    const length = row.state ? `${row.state} ${duration(row.duration)}` : duration(row.duration);
    const bar = element("span", "bar", null, { title: `${length}, starts ${duration(row.offset)} after the trace` });
    const cell = element("span", "cell line", bar);
    this.#place(bar, row);
    for (const moment of row.events ?? []) {
      const mark = element("span", "event");
      mark.style.left = `${percent(moment)}%`;
      if (moment >= from && moment <= to) cell.append(mark);
    }
    return cell;
  }

  #place(bar, row) {
    const [from, to] = this.range;
    const percent = (ns) => ((ns - from) / (to - from)) * 100;
    const left = Math.max(percent(row.offset), -1);
    const right = Math.min(percent(row.offset + row.duration), 101);
    bar.hidden = right < 0 || left > 100; // outside of the zoomed range
    bar.style.left = `${left}%`;
    bar.style.width = `${Math.max(right - left, 0)}%`;
  }
}
