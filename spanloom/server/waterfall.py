"""A trace as the page draws it: one row per span, parents before children.

    row 0  POST /chat           depth 0, size 4     size = rows of the sub-tree, itself included,
    row 1  ├ invoke_workflow    depth 1, size 3     so that collapsing row i hides i+1 … i+size-1
    row 2  │ ├ retrieval docs   depth 2, size 1
    row 3  │ └ chat small       depth 2, size 1

Pure: no web module, so the drawing can be tested without a browser.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from spanloom import semconv
from spanloom.model import LogEvent, OpenState, Span, Trace, TreeNode, Usage
from spanloom.server.jaeger_json import plain_value
from spanloom.server.text import one_line, severity_name, visible

PALETTE_SIZE: Final = 12
"""Colours in app.css, `.c0` to `.c11`."""
_MAX_EVENT_MARKS: Final = 50  # more marks on one bar are a blur
_MAX_BODY: Final = 4_000  # characters of a log line the page carries; the API has the rest

_CATEGORIES: Final = {
    **dict.fromkeys(semconv.LLM_OPERATIONS, "llm"),
    semconv.OP_EXECUTE_TOOL: "tool",
    semconv.OP_RETRIEVAL: "retrieval",
    semconv.OP_RERANK: "rerank",
    semconv.OP_EMBEDDINGS: "embeddings",
    semconv.OP_INVOKE_AGENT: "agent",
    semconv.OP_INVOKE_WORKFLOW: "workflow",
    semconv.OP_INVOKE_NODE: "node",
}

Json = dict[str, Any]


def colours(services: Iterable[str]) -> dict[str, int]:
    """A colour for each service: always the same one, unless two of a trace would share it."""
    assigned: dict[str, int] = {}
    taken: set[int] = set()
    for service in sorted(set(services)):
        colour = zlib.crc32(service.encode("utf-8", "surrogatepass")) % PALETTE_SIZE
        for _ in range(PALETTE_SIZE):
            if colour not in taken:
                break
            colour = (colour + 1) % PALETTE_SIZE
        assigned[service] = colour
        taken.add(colour)
    return assigned


def trace_view(trace: Trace, logs: Sequence[LogEvent]) -> Json:
    """Everything the page's script needs to draw; times are nanoseconds after the trace's start.

    Offsets and durations are numbers: they stay exact in JavaScript up to 104 days. A row of a
    span that has not ended has a `state`, and is as long as it is known to have run.
    """
    start = trace.start_time_unix_nano
    palette = colours(span.service_name for span in trace.all_spans)
    services = list(palette)
    index = {service: number for number, service in enumerate(services)}
    states = {one.span.span_id: one.state for one in trace.open_spans}
    rows: list[Json] = []
    for root in trace.roots():
        rows.extend(_rows(root, start, index, states, first=len(rows)))
    row_of = {row["id"]: number for number, row in enumerate(rows)}
    return {
        "traceId": trace.trace_id,
        "start": str(start),
        "duration": trace.duration_ns,
        "services": [
            {"name": one_line(service), "colour": palette[service]} for service in services
        ],
        "open": len(trace.open_spans),
        "rows": rows,
        "logs": [_log(event, start, row_of, index) for event in logs],
    }


def stray_count(view: Json) -> int:
    """Tops whose parent was named but is not stored, the trace's first top left out.

    The first one is the usual entry of a request: its parent is the caller, traced elsewhere.
    """
    return sum(1 for row in view["rows"][1:] if row.get("orphan"))


def _rows(
    root: TreeNode, start: int, services: dict[str, int], states: dict[str, OpenState], first: int
) -> list[Json]:
    walked = list(root.walk())
    sizes = [1] * len(walked)
    usages = [Usage.of_span(node.span) for _, node in walked]
    parents = _parents([depth for depth, _ in walked])
    # Children come after their parent, so one backward pass sums whole sub-trees.
    for number in range(len(walked) - 1, 0, -1):
        parent = parents[number]
        sizes[parent] += sizes[number]
        usages[parent] += usages[number]
    rows = []
    for number, (depth, node) in enumerate(walked):
        row = _row(node.span, start, services, usages[number])
        state = states.get(node.span.span_id)
        if state is not None:
            row["state"] = state.value
        elif node.span.attributes.get(semconv.SPANLOOM_INCOMPLETE) is True:
            row["incomplete"] = True
        row["depth"] = depth
        row["size"] = sizes[number]
        row["parent"] = parents[number] + first if number else -1
        rows.append(row)
    if root.span.parent_span_id:
        rows[0]["orphan"] = root.span.parent_span_id
    return rows


def _parents(depths: list[int]) -> list[int]:
    path: list[int] = []
    parents = []
    for number, depth in enumerate(depths):
        del path[depth:]
        parents.append(path[-1] if path else -1)
        path.append(number)
    return parents


def _row(span: Span, start: int, services: dict[str, int], usage: Usage) -> Json:
    row: Json = {
        "id": span.span_id,
        "name": one_line(span.name),
        "service": services[span.service_name],
        "category": category(span),
        "offset": span.start_time_unix_nano - start,
        "duration": span.duration_ns,
    }
    if span.is_error:
        row["error"] = one_line(span.status.message) or "status ERROR"
    outcome = span.attributes.get(semconv.SPANLOOM_OUTCOME)
    if isinstance(outcome, str) and outcome not in ("", semconv.OUTCOME_OK):
        row["outcome"] = one_line(outcome)
    if usage.total_tokens:
        row["input"], row["output"] = usage.input_tokens, usage.output_tokens
    if usage.cost_usd is not None:
        row["cost"] = usage.cost_usd
    if span.events:
        row["events"] = [event.time_unix_nano - start for event in span.events[:_MAX_EVENT_MARKS]]
    return row


def category(span: Span) -> str:
    """What a span is, as far as its attributes tell: `llm`, `tool`, …, `http`, or `` (other)."""
    operation = span.attributes.get(semconv.GEN_AI_OPERATION_NAME)
    if isinstance(operation, str) and operation in _CATEGORIES:
        return _CATEGORIES[operation]
    if semconv.HTTP_REQUEST_METHOD in span.attributes or "http.method" in span.attributes:
        return "http"
    if "db.system.name" in span.attributes or "db.system" in span.attributes:
        return "db"
    return ""


def _log(event: LogEvent, start: int, row_of: dict[str, int], services: dict[str, int]) -> Json:
    line: Json = {
        "offset": event.timestamp_ns - start,
        "severity": event.severity_number,
        "level": severity_name(event.severity_number) or one_line(event.severity_text),
        "body": visible(_body(event))[:_MAX_BODY],
        "row": row_of.get(event.span_id, -1),
        "service": services.get(event.resource.service_name, -1),
    }
    attributes = {key: plain_value(value) for key, value in event.attributes.items()}
    if attributes:
        line["attributes"] = attributes
    if event.event_name:
        line["event"] = one_line(event.event_name)
    if event.scope.name:
        line["logger"] = one_line(event.scope.name)
    return line


def _body(event: LogEvent) -> str:
    if isinstance(event.body, str):
        return event.body
    if event.body is None:
        return event.event_name
    return json.dumps(plain_value(event.body), ensure_ascii=False)
