"""A trace as a tree of text, from the model to lines; nothing is read or printed here.

POST /chat  api                     1.24 s  ████████████████████  1,234→456   $0.0012
└─ invoke_workflow agent  api       1.20 s  ███████████████████   1,234→456   $0.0012
   ├─ invoke_node route  api         120 ms  ██                      80→12
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from spanloom import semconv
from spanloom.cli.safe_text import clean, to_json
from spanloom.cli.units import local_time
from spanloom.model import (
    Attributes,
    AttributeValue,
    LogEvent,
    OpenState,
    Span,
    Trace,
    TreeNode,
    Usage,
)
from spanloom.server.jaeger_json import plain_value
from spanloom.server.text import cost, duration, severity_name

BAR_CELLS = 20
_DEEPEST = 30
"""Deeper spans are not indented further: a chain of thousands must stay readable."""
_INDENT_SHARE = 9
"""On a terminal a level of three cells at most for each so many cells of width."""
_VALUE_LIMIT = 2_000
_NARROWEST_NAME = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
OPEN_STYLES = {
    OpenState.RUNNING: "cyan",
    OpenState.STALLED: "yellow",
    OpenState.LOST: "bold yellow",
}
_ERROR, _WARN = 17, 13  # severity_number, logs data model


@dataclass(frozen=True, slots=True)
class Details:
    """What is shown beside the spans themselves."""

    logs: Sequence[LogEvent] = ()
    attributes: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    prefix: str
    below: str
    """The prefix of lines that belong to the span and stand under it."""
    node: TreeNode


@dataclass(frozen=True, slots=True)
class _Frame:
    """The trace's extent, found once: asking the trace looks at every span."""

    start_ns: int
    duration_ns: int
    open_states: Mapping[str, OpenState]
    """Of the spans that have not ended, by id."""


def trace_lines(trace: Trace, details: Details, width: int | None) -> list[Text]:
    """The whole trace, fitted into `width` cells, or as wide as it is where that is None."""
    deepest = _DEEPEST if width is None else min(_DEEPEST, width // _INDENT_SHARE)
    rows = list(_rows(trace.roots(), deepest))
    usage = _subtree_usage([row.node for row in rows])
    names = [_name(row) for row in rows]
    states = {one.span.span_id: one.state for one in trace.open_spans}
    frame = _Frame(trace.start_time_unix_nano, trace.duration_ns, states)
    columns = [_columns(row.node, frame, usage[row.node.span.span_id]) for row in rows]
    cells = [max(column.cell_len for column in kind) for kind in zip(*columns, strict=True)]
    name_cells = max(name.cell_len for name in names)
    if width is not None:
        fixed = sum(cells) + 2 * len(cells)
        name_cells = max(min(name_cells, width - fixed), _NARROWEST_NAME)
    logs: dict[str, list[LogEvent]] = defaultdict(list)
    for record in details.logs:
        logs[record.span_id].append(record)
    lines = [_headline(trace), Text()]
    for row, name, parts in zip(rows, names, columns, strict=True):
        name.truncate(name_cells, overflow="ellipsis", pad=True)
        line = name
        for part, column_cells in zip(parts, cells, strict=True):
            line.append("  ")
            line.append_text(part)
            line.append(" " * (column_cells - part.cell_len))
        line.rstrip()
        lines.append(line)
        lines.extend(_under(row, logs.pop(row.node.span.span_id, ()), details))
    left = [record for records in logs.values() for record in records]
    if left:
        lines += [Text(), Text("Log lines of the trace outside these spans:", style="bold")]
        lines += [_log_line("  ", record) for record in sorted(left, key=_log_time)]
    return lines


def _headline(trace: Trace) -> Text:
    summary = trace.summary()
    parts = [
        local_time(summary.start_time_unix_nano),
        duration(summary.duration_ns),
        _count(summary.span_count, "span"),
    ]
    if summary.open_span_count:
        parts.append(f"{summary.open_span_count:,} in flight")
    if summary.error_count:
        parts.append(_count(summary.error_count, "error"))
    if summary.usage.total_tokens:
        tokens = summary.usage
        parts.append(f"{tokens.input_tokens:,} tokens in, {tokens.output_tokens:,} out")
    if summary.usage.cost_usd is not None:
        parts.append(cost(summary.usage.cost_usd))
    line = Text.assemble((f"trace {clean(trace.trace_id)}", "bold"))
    line.append("  " + "  ".join(parts))
    return line


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _rows(roots: Sequence[TreeNode], deepest: int) -> Iterator[_Row]:
    # A stack, not recursion: broken producers send chains of thousands of spans.
    stack = [_Row("", "", root) for root in reversed(roots)]
    depths = [0] * len(stack)
    while stack:
        row, depth = stack.pop(), depths.pop()
        yield row
        for index, child in enumerate(reversed(row.node.children)):
            if depth >= deepest:
                prefix, below = f"{row.below}╌ ", row.below
            else:
                prefix = row.below + ("└─ " if index == 0 else "├─ ")
                below = row.below + ("   " if index == 0 else "│  ")
            stack.append(_Row(prefix, below, child))
            depths.append(depth + 1)


def _subtree_usage(nodes: Sequence[TreeNode]) -> Mapping[str, Usage]:
    # Children stand after their parents, so one pass from the end sums every subtree.
    usage: dict[str, Usage] = {}
    for node in reversed(nodes):
        total = Usage.of_span(node.span)
        for child in node.children:
            total += usage[child.span.span_id]
        usage[node.span.span_id] = total
    return usage


def _name(row: _Row) -> Text:
    span = row.node.span
    return Text.assemble(
        (row.prefix, "dim"),
        (clean(span.name) or "(no name)", "red" if span.is_error else "bold"),
        "  ",
        (clean(span.service_name), "cyan"),
    )


def _columns(node: TreeNode, frame: _Frame, usage: Usage) -> list[Text]:
    span = node.span
    is_llm = bool(Usage.of_span(span).total_tokens)
    style = "" if is_llm else "dim"  # sums stand back behind the requests they are made of
    tokens = f"{usage.input_tokens:,}→{usage.output_tokens:,}" if usage.total_tokens else ""
    state = frame.open_states.get(span.span_id)
    # What has not ended lasts at least so long.
    length = duration(span.duration_ns) + ("" if state is None else "+")
    colour = "red" if span.is_error else "green" if state is None else OPEN_STYLES[state]
    return [
        Text(length.rjust(8)),
        Text(_bar(span, frame, is_open=state is not None), style=colour),
        Text(tokens, style=style),
        Text(cost(usage.cost_usd), style=style),
        ending(span) if state is None else Text(state.value, style=OPEN_STYLES[state]),
    ]


def _bar(span: Span, frame: _Frame, *, is_open: bool) -> str:
    """Where in the trace the span lies, in eighths of a cell at its end; open ones are shaded."""
    whole = frame.duration_ns
    if not whole:
        return "▏".ljust(BAR_CELLS)
    offset = span.start_time_unix_nano - frame.start_ns
    start = min(BAR_CELLS * offset // whole, BAR_CELLS - 1)
    eighths = max(1, round(8 * BAR_CELLS * (offset + span.duration_ns) / whole) - 8 * start)
    eighths = min(eighths, 8 * (BAR_CELLS - start))
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    if is_open:
        bar = "▒" * len(bar)
    return (" " * start + bar).ljust(BAR_CELLS)


def ending(span: Span) -> Text:
    """How a span ended, in a few words; nothing where it ended well."""
    words = []
    outcome = span.attributes.get(semconv.SPANLOOM_OUTCOME)
    if span.is_error:
        words.append("ERROR")
    error_type = span.attributes.get(semconv.ERROR_TYPE)
    if isinstance(error_type, str) and error_type:
        words.append(clean(error_type))
    elif isinstance(outcome, str) and outcome not in {semconv.OUTCOME_OK, semconv.OUTCOME_ERROR}:
        words.append(clean(outcome))
    if span.attributes.get(semconv.SPANLOOM_INCOMPLETE) is True:
        words.append("incomplete")
    return Text(" ".join(words), style="bold red" if span.is_error else "yellow")


def _under(row: _Row, logs: Sequence[LogEvent], details: Details) -> Iterator[Text]:
    span = row.node.span
    below = row.below + ("│ " if row.node.children else "  ")
    if span.status.message:
        yield Text.assemble((below, "dim"), (_shorten(clean(span.status.message)), "red"))
    if details.attributes:
        yield from _attribute_lines(below, span.attributes)
        for event in span.events:
            offset = duration(max(0, event.time_unix_nano - span.start_time_unix_nano))
            yield Text.assemble(
                (below, "dim"), (f"event {clean(event.name)}", "magenta"), f"  at {offset}"
            )
            yield from _attribute_lines(below + "  ", event.attributes)
        for link in span.links:
            yield Text.assemble(
                (below, "dim"),
                ("link", "magenta"),
                f"  trace {clean(link.trace_id)} span {clean(link.span_id)}",
            )
            yield from _attribute_lines(below + "  ", link.attributes)
    for record in logs:
        yield _log_line(below, record)


def _attribute_lines(below: str, attributes: Attributes) -> Iterator[Text]:
    for key, value in sorted(attributes.items()):
        yield Text.assemble(
            (below, "dim"), (clean(key), "blue"), " = ", _shorten(value_text(value))
        )


def _log_line(below: str, record: LogEvent) -> Text:
    number = record.severity_number
    style = "red" if number >= _ERROR else "yellow" if number >= _WARN else "dim"
    level = clean(record.severity_text) or severity_name(number)
    body = "" if record.body is None else value_text(record.body)
    line = Text.assemble(
        (below, "dim"),
        (local_time(record.timestamp_ns, date=False), "dim"),
        " ",
        (level.upper().ljust(5), style),
        " ",
        " ".join(filter(None, (clean(record.event_name), _shorten(body)))),
    )
    for key, value in sorted(record.attributes.items()):
        line.append(f" {clean(key)}=", style="blue")
        line.append(_shorten(value_text(value)))
    return line


def _log_time(record: LogEvent) -> int:
    return record.timestamp_ns


def value_text(value: AttributeValue) -> str:
    """An attribute's value on one safe line: text as it is, everything else as JSON."""
    if isinstance(value, str):
        return clean(value)
    return clean(to_json(plain_value(value)))


def _shorten(text: str) -> str:
    if len(text) <= _VALUE_LIMIT:
        return text
    return f"{text[:_VALUE_LIMIT]}… ({len(text):,} characters, all with --json)"
