"""Text pictures of traces held in memory."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, format_trace_id

from spanloom import semconv

_NAME_WIDTH: Final = 52
_LINE_LIMIT: Final = 200


def draw_tree(spans: Sequence[ReadableSpan], attributes: Sequence[str] = ()) -> str:
    """Names, indented, with the outcome where it is not ok and the attributes asked for."""

    def line(span: ReadableSpan, _: int) -> list[str]:
        known = span.attributes or {}
        asked = ", ".join(f"{key}={known[key]!s}" for key in attributes if key in known)
        return [span.name + _ending(span) + (f" {{{asked}}}" if asked else "")]

    return "\n".join(_draw(spans, line))


def draw_picture(spans: Sequence[ReadableSpan], logs: Sequence[ReadableLogRecord] = ()) -> str:
    """Every trace with durations, tokens, exceptions and log lines, for people to read."""
    logs_by_span: dict[int, list[ReadableLogRecord]] = {}
    for log in logs:
        logs_by_span.setdefault(log.log_record.span_id or 0, []).append(log)

    def lines(span: ReadableSpan, depth: int) -> list[str]:
        name = span.name.ljust(_NAME_WIDTH - 2 * depth)
        found = [f"{name}{_duration(span):>12}{_tokens(span)}{_ending(span)}"]
        for event in span.events:
            known = event.attributes or {}
            if kind := known.get(semconv.EXCEPTION_TYPE):
                found.append(_cut(f"  ! {kind}: {known.get(semconv.EXCEPTION_MESSAGE, '')}"))
        found += [f"  - {_log_line(log)}" for log in logs_by_span.get(span.context.span_id, ())]
        return found

    drawn: list[str] = []
    for trace_id in dict.fromkeys(span.context.trace_id for span in _in_order(spans)):
        drawn.append(f"trace {format_trace_id(trace_id)}")
        drawn += _draw([span for span in spans if span.context.trace_id == trace_id], lines)
    known_ids = {span.context.span_id for span in spans}
    outside = [
        log for span_id, found in logs_by_span.items() if span_id not in known_ids for log in found
    ]
    if outside:
        drawn += ["outside any span", *(f"  - {_log_line(log)}" for log in outside)]
    return "\n".join(drawn) if drawn else "no spans"


def _in_order(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    return sorted(spans, key=lambda span: (span.start_time or 0, span.context.span_id))


def _draw(
    spans: Sequence[ReadableSpan], lines_of: Callable[[ReadableSpan, int], list[str]]
) -> list[str]:
    """Lines of each span, indented below its parent; a span whose parent is elsewhere is a root."""
    ids = {span.context.span_id for span in spans}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in _in_order(spans):
        parent = span.parent.span_id if span.parent and span.parent.span_id in ids else None
        children.setdefault(parent, []).append(span)
    drawn: list[str] = []
    waiting = [(span, 0) for span in reversed(children.get(None, []))]
    while waiting:  # not recursion: an agent in a loop nests as deep as it likes
        span, depth = waiting.pop()
        drawn += ["  " * depth + line for line in lines_of(span, depth)]
        below = children.get(span.context.span_id, [])
        waiting += [(child, depth + 1) for child in reversed(below)]
    return drawn


def _ending(span: ReadableSpan) -> str:
    if span.end_time is None:
        return " [not ended]"
    attributes = span.attributes or {}
    outcome = attributes.get(semconv.SPANLOOM_OUTCOME)
    if outcome is None:  # a span of somebody else
        outcome = (
            semconv.OUTCOME_ERROR
            if span.status.status_code is StatusCode.ERROR
            else semconv.OUTCOME_OK
        )
    if outcome == semconv.OUTCOME_OK:
        return ""
    error_type = attributes.get(semconv.ERROR_TYPE, outcome)
    return f" [{outcome}]" if error_type == outcome else f" [{outcome}: {error_type}]"


def _duration(span: ReadableSpan) -> str:
    if span.end_time is None or span.start_time is None:
        return "…"
    return f"{(span.end_time - span.start_time) / 1e6:.1f} ms"


def _tokens(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    counts = [
        attributes.get(key)
        for key in (semconv.GEN_AI_USAGE_INPUT_TOKENS, semconv.GEN_AI_USAGE_OUTPUT_TOKENS)
    ]
    if counts == [None, None]:
        return ""
    into, out = ("?" if count is None else str(count) for count in counts)
    return f"  {into} > {out} tokens"


def _log_line(log: ReadableLogRecord) -> str:
    record = log.log_record
    attributes: dict[str, Any] = dict(record.attributes or {})
    values = "".join(f" {key}={value}" for key, value in attributes.items())
    return _cut(f"{(record.severity_text or '').lower()} {record.body!s}{values}")


def _cut(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _LINE_LIMIT else f"{line[: _LINE_LIMIT - 1]}…"
