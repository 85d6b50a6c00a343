"""Short ways to write telemetry down in tests: small numbers in, whole values out.

    trace_of(
        span("POST /chat", 1, duration_ms=100),
        span("chat gpt", 2, parent=1, start_ms=10, tokens=(12, 5)),
    )

Ids are numbers (trace 7 is `00…07`), times milliseconds after T0, the service `agent`.
"""

from dataclasses import replace
from typing import Any, Final

from spanloom import semconv
from spanloom.model import (
    LogEvent,
    MetricKind,
    MetricPoint,
    Resource,
    Scope,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Trace,
)

T0: Final = 1_790_000_000_000_000_000
"""2026-09-21T14:13:20Z in nanoseconds."""
MS: Final = 1_000_000
SCOPE: Final = Scope("tests", "1.0")


def trace_id(number: int) -> str:
    """32 hex characters."""
    return f"{number:032x}"


def span_id(number: int) -> str:
    """16 hex characters."""
    return f"{number:016x}"


def resource(service: str = "agent", **attributes: Any) -> Resource:
    """A resource; `_` in names stands for `.`."""
    return Resource({semconv.SERVICE_NAME: service, **_dotted(attributes)})


def span(
    name: str = "work",
    number: int = 1,
    *,
    trace: int = 1,
    parent: int | None = None,
    start_ms: float = 0,
    duration_ms: float = 10,
    service: str = "agent",
    kind: SpanKind = SpanKind.INTERNAL,
    error: str | None = None,
    tokens: tuple[int, int] | None = None,
    cost: float | None = None,
    attributes: dict[str, Any] | None = None,
    **fields: Any,
) -> Span:
    """A span; `tokens` make it an LLM span, `error` is its status message."""
    start = T0 + int(start_ms * MS)
    usage: dict[str, Any] = {}
    if tokens is not None:
        usage = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_CHAT,
            semconv.GEN_AI_USAGE_INPUT_TOKENS: tokens[0],
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: tokens[1],
        }
    if cost is not None:
        usage[semconv.SPANLOOM_COST_USD] = cost
    built = Span(
        trace_id=trace_id(trace),
        span_id=span_id(number),
        parent_span_id="" if parent is None else span_id(parent),
        name=name,
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(duration_ms * MS),
        kind=kind,
        attributes=usage | (attributes or {}),
        status=Status() if error is None else Status(StatusCode.ERROR, error),
        resource=resource(service),
        scope=SCOPE,
    )
    return replace(built, **fields)


def trace_of(*spans: Span) -> Trace:
    """A trace as a store returns it: in order of start."""
    ordered = sorted(spans, key=lambda s: (s.start_time_unix_nano, s.span_id))
    return Trace(spans[0].trace_id, tuple(ordered))


def log(
    body: Any = "hello",
    *,
    trace: int | None = 1,
    span: int | None = None,
    at_ms: float = 0,
    service: str = "agent",
    attributes: dict[str, Any] | None = None,
    **fields: Any,
) -> LogEvent:
    """A log record of severity INFO."""
    built = LogEvent(
        time_unix_nano=T0 + int(at_ms * MS),
        severity_number=9,
        severity_text="INFO",
        body=body,
        attributes=attributes or {},
        trace_id="" if trace is None else trace_id(trace),
        span_id="" if span is None else span_id(span),
        resource=resource(service),
        scope=SCOPE,
    )
    return replace(built, **fields)


def point(
    name: str = "requests",
    value: float = 1,
    *,
    at_ms: float = 0,
    service: str = "agent",
    attributes: dict[str, Any] | None = None,
    **fields: Any,
) -> MetricPoint:
    """A data point of a gauge."""
    built = MetricPoint(
        name=name,
        kind=MetricKind.GAUGE,
        time_unix_nano=T0 + int(at_ms * MS),
        value=value,
        attributes=attributes or {},
        resource=resource(service),
        scope=SCOPE,
    )
    return replace(built, **fields)


def _dotted(names: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in names.items()}
