// The panel beside the waterfall: everything that is known of one span.

import { count, duration, element, offset, oneLine, visible } from "./format.js";

const KINDS = ["unspecified", "internal", "server", "client", "producer", "consumer"];
const STATUSES = ["unset", "ok", "error"];
const LONG_VALUE = 400;
const SETTLE_MS = 90; // a held key passes many spans; only the one it stops at is fetched

/** A value of OTLP JSON (AnyValue) as text. */
export function anyValue(value) {
  if (value === undefined || value === null) return "";
  if ("stringValue" in value) return value.stringValue;
  if ("boolValue" in value) return String(value.boolValue);
  if ("intValue" in value) return String(value.intValue);
  if ("doubleValue" in value) return String(value.doubleValue);
  if ("bytesValue" in value) return `base64 ${value.bytesValue}`;
  return JSON.stringify(structured(value), null, 2);
}

function structured(value) {
  if (value === undefined) return null;
  if ("arrayValue" in value) return (value.arrayValue.values ?? []).map(structured);
  if ("kvlistValue" in value) {
    return Object.fromEntries((value.kvlistValue.values ?? []).map((one) => [one.key, structured(one.value)]));
  }
  if ("boolValue" in value) return value.boolValue;
  if ("doubleValue" in value) return value.doubleValue;
  const text = anyValue(value);
  return "intValue" in value && Number.isSafeInteger(Number(text)) ? Number(text) : text;
}

// What an agent's developer looks for first stands first.
function rank(key) {
  if (key.startsWith("gen_ai.")) return 0;
  if (key.startsWith("spanloom.")) return 1;
  if (key.startsWith("langgraph.")) return 2;
  return 3;
}

export class Details {
  /** `on` = {close(), goTo(row), highlightLog(index)}. */
  constructor(view, on) {
    this.view = view;
    this.on = on;
    this.panel = document.getElementById("details");
    this.handle = document.getElementById("details-handle");
    this.cache = new Map();
    this.row = -1;
  }

  get open() {
    return !this.panel.hidden;
  }

  close() {
    this.panel.hidden = true;
    this.handle.hidden = true;
  }

  /** Take a newer state of the same trace; what is shown of a span that was open is read again. */
  update(view) {
    const shown = this.view.rows[this.row];
    this.view = view;
    this.row = view.rows.findIndex((row) => row.id === shown?.id);
    if (!shown?.state) return;
    const now = view.rows[this.row];
    // While it runs only its end moves, which the bar shows; reading on would jump under the eyes.
    if (this.open && now && now.state !== shown.state) this.show(this.row);
  }

  async show(row) {
    this.row = row;
    this.panel.hidden = false;
    this.handle.hidden = false;
    const { id } = this.view.rows[row];
    if (!this.cache.has(id)) {
      this.panel.setAttribute("aria-busy", "true");
      await new Promise((settled) => setTimeout(settled, SETTLE_MS));
      if (this.row !== row) return;
    }
    let found;
    try {
      found = await this.#fetch(id);
    } catch (error) {
      found = { error };
    }
    if (this.row !== row) return; // the reader went on while this one was on its way
    this.panel.removeAttribute("aria-busy");
    this.panel.replaceChildren(...(found.error ? this.#failure(found.error) : this.#content(row, found)));
    this.panel.scrollTop = 0;
  }

  async #fetch(id) {
    if (this.cache.has(id)) return this.cache.get(id);
    const answer = await fetch(`/api/spanloom/traces/${this.view.traceId}/spans/${id}`);
    const document = await answer.json();
    if (!answer.ok) throw new Error(document.error);
    const group = document.trace.resourceSpans[0];
    const scoped = group.scopeSpans[0];
    const found = { span: scoped.spans[0], resource: group.resource ?? {}, scope: scoped.scope ?? {} };
    const isOpen = this.view.rows.some((row) => row.id === id && row.state);
    if (!isOpen) this.cache.set(id, found);
    return found;
  }

  #failure(error) {
    return [this.#title("Details cannot be read"), element("p", "notice bad", oneLine(error.message))];
  }

  #title(text) {
    const close = element("button", "close", "×", { title: "Close (Esc)" });
    close.setAttribute("aria-label", "Close details");
    close.addEventListener("click", () => this.on.close());
    return element("div", "details-title", [element("h2", "", text, { title: text }), close]);
  }

  #content(row, { span, resource, scope }) {
    const line = this.view.rows[row];
    const service = this.view.services[line.service];
    const status = STATUSES[span.status?.code ?? 0];
    const parts = [
      this.#title(line.name),
      element("p", "details-sub", [
        element("span", `service c${service.colour}`, service.name),
        element("span", "muted", KINDS[span.kind ?? 0]),
        element("span", `badge ${status === "error" ? "bad" : ""}`, `status ${status}`),
        line.outcome && line.outcome !== "error" ? element("span", `badge outcome${line.error === undefined ? "" : " bad"}`, line.outcome.replaceAll("_", " ")) : null,
      ]),
      element("dl", "facts small", [
        fact("Duration", duration(line.duration)),
        fact("Starts", offset(line.offset)),
        fact("Ends", offset(line.offset + line.duration)),
        line.input === undefined ? null : fact("Tokens in / out", `${count(line.input)} / ${count(line.output)}`),
      ]),
    ];
    if (span.status?.message) parts.push(element("pre", "status-message", visible(span.status.message)));
    parts.push(
      section("Attributes", span.attributes, this.#table(span.attributes, true)),
      section("Events", span.events, this.#events(span.events)),
      section("Links", span.links, this.#links(span.links)),
      this.#logLines(row),
      section("Resource", resource.attributes, this.#table(resource.attributes), false),
      this.#scope(scope),
      this.#identity(span),
    );
    return parts.filter((part) => part !== null);
  }

  #table(attributes = [], searchable = false) {
    const sorted = [...attributes].sort(
      (a, b) => rank(a.key) - rank(b.key) || (a.key < b.key ? -1 : 1),
    );
    const rows = sorted.map(({ key, value }) => {
      const text = anyValue(value);
      const cell = element("td", "", [shortened(text)]);
      const tools = element("span", "tools");
      const copy = element("button", "", "copy", { title: "Copy the value" });
      copy.dataset.copy = text;
      tools.append(copy);
      if (searchable && text.length <= 200 && !/["\n\\]/.test(text)) {
        const query = new URLSearchParams({ tags: `${key}="${text}"`, lookback: "all" });
        tools.append(element("a", "", "find", { href: `/?${query}`, title: "Traces with this value" }));
      }
      cell.append(tools);
      return element("tr", rank(key) < 3 ? "ours" : "", [element("th", "", oneLine(key)), cell]);
    });
    return element("table", "attributes", element("tbody", "", rows));
  }

  #events(events = []) {
    const start = BigInt(this.view.start);
    return element(
      "div",
      "events",
      events.map((event) => {
        const values = new Map((event.attributes ?? []).map(({ key, value }) => [key, anyValue(value)]));
        const parts = [
          element("h4", values.has("exception.type") ? "bad-text" : "", [
            element("span", "offset", offset(Number(BigInt(event.timeUnixNano ?? 0) - start))),
            element("span", "", oneLine(event.name ?? "")),
          ]),
        ];
        if (values.has("exception.type") || values.has("exception.message")) {
          const kind = values.get("exception.type") ?? "";
          parts.push(element("p", "exception", visible(`${kind}: ${values.get("exception.message") ?? ""}`)));
        }
        const stack = values.get("exception.stacktrace");
        if (stack) parts.push(element("details", "", [element("summary", "", "Stack trace"), element("pre", "", visible(stack))]));
        const others = (event.attributes ?? []).filter(({ key }) => !/^exception\.(type|message|stacktrace)$/.test(key));
        if (others.length) parts.push(this.#table(others));
        return element("div", "event-item", parts);
      }),
    );
  }

  #links(links = []) {
    return element(
      "ul",
      "links",
      links.map((link) => {
        const here = this.view.rows.findIndex((row) => row.id === link.spanId);
        const target = element("a", "", `${link.traceId} · ${link.spanId}`, {
          href: `/trace/${link.traceId}#${link.spanId}`,
        });
        if (link.traceId === this.view.traceId && here >= 0) {
          target.textContent = `in this trace: ${this.view.rows[here].name}`;
          target.addEventListener("click", (event) => {
            event.preventDefault();
            this.on.goTo(here);
          });
        }
        return element("li", "", [target, link.attributes?.length ? this.#table(link.attributes) : null]);
      }),
    );
  }

  #logLines(row) {
    const lines = this.view.logs.map((line, index) => [line, index]).filter(([line]) => line.row === row);
    if (!lines.length) return null;
    const list = element(
      "ol",
      "log-list",
      lines.map(([line, index]) => {
        const item = element("li", `level-${level(line.severity)}`, [
          element("span", "offset", offset(line.offset)),
          element("span", "log-level", line.level),
          element("span", "log-body", oneLine(line.body)),
        ]);
        item.addEventListener("click", () => this.on.highlightLog(index));
        return item;
      }),
    );
    return section("Log lines", lines, list);
  }

  #scope(scope) {
    if (!scope.name && !scope.attributes?.length) return null;
    const name = element("p", "mono", visible(`${scope.name ?? ""} ${scope.version ?? ""}`));
    return section("Scope", [scope], element("div", "", [name, this.#table(scope.attributes)]), false);
  }

  #identity(span) {
    const ids = [
      ["trace id", span.traceId],
      ["span id", span.spanId],
      ["parent span id", span.parentSpanId],
      ["trace state", span.traceState],
      ["flags", span.flags === undefined ? "" : `0x${Number(span.flags).toString(16)}`],
      ["start", span.startTimeUnixNano && `${span.startTimeUnixNano} ns`],
      ["end", span.endTimeUnixNano && `${span.endTimeUnixNano} ns`],
      ["dropped attributes", span.droppedAttributesCount],
      ["dropped events", span.droppedEventsCount],
      ["dropped links", span.droppedLinksCount],
    ];
    const rows = ids
      .filter(([, value]) => value)
      .map(([key, value]) => ({ key, value: { stringValue: String(value) } }));
    const table = element("table", "attributes", element("tbody", "", rows.map(({ key, value }) => element("tr", "", [
      element("th", "", key),
      element("td", "mono", visible(value.stringValue)),
    ]))));
    return section("Identity", rows, table, false);
  }
}

export function level(severity) {
  if (severity >= 17) return "error";
  if (severity >= 13) return "warn";
  return severity > 0 && severity < 9 ? "debug" : "info";
}

function fact(name, value) {
  return element("div", "", [element("dt", "", name), element("dd", "", value)]);
}

function section(title, items, content, open = true) {
  if (!items?.length) return null;
  const amount = element("span", "muted", items.length > 1 ? ` ${count(items.length)}` : "");
  return element("details", "section", [element("summary", "", [title, amount]), content], { open });
}

function shortened(text) {
  const shown = visible(text);
  if (shown.length <= LONG_VALUE && !shown.includes("\n")) return element("span", "value", shown);
  const full = element("pre", "value", shown);
  if (shown.length <= LONG_VALUE) return full;
  full.classList.add("long");
  const more = element("button", "more", `all ${count(text.length)} characters`);
  more.addEventListener("click", () => {
    full.classList.remove("long");
    more.remove();
  });
  return element("div", "", [full, more]);
}
