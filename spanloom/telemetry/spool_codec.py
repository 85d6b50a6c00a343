"""From OTLP protobuf, as the spool keeps it, back to the SDK's objects.

Who needs them: exporters of another kind than OTLP's own, and whoever ends the open spans of a dead
process. Encoded once more these give the same bytes.
"""

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from spanloom.telemetry.counted import counted_attributes, counted_items
from spanloom.telemetry.otlp_encoding import Origin, without_spans
from spanloom.telemetry.tracecontext import StrictTraceState

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_IS_REMOTE: Final = trace_pb2.SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def encode_origin(origin: Origin) -> bytes:
    """Encode as an OTLP ResourceSpans without spans."""
    return without_spans(origin).SerializeToString()


def decode_origin(body: bytes) -> Origin:
    """Decode what `encode_origin` gave."""
    message = trace_pb2.ResourceSpans.FromString(body)
    resource = Resource(_attributes(message.resource.attributes), message.schema_url or None)
    (scope_spans,) = message.scope_spans
    scope = scope_spans.scope
    if not scope.name and not scope.version:
        return Origin(resource, None)
    return Origin(
        resource,
        InstrumentationScope(
            scope.name,
            scope.version or None,
            scope_spans.schema_url or None,
            _attributes(scope.attributes),
        ),
    )


def decode_span(body: bytes, origin: Origin) -> ReadableSpan:
    """Decode an OTLP Span."""
    span = trace_pb2.Span.FromString(body)
    trace_id = int.from_bytes(span.trace_id)
    state = StrictTraceState.from_header([span.trace_state] if span.trace_state else [])
    parent = int.from_bytes(span.parent_span_id)
    code = StatusCode(span.status.code)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(
            trace_id,
            int.from_bytes(span.span_id),
            is_remote=False,
            trace_flags=_SAMPLED,
            trace_state=state,
        ),
        parent=SpanContext(trace_id, parent, bool(span.flags & _IS_REMOTE), _SAMPLED)
        if parent
        else None,
        resource=origin.resource,
        instrumentation_scope=origin.scope,
        attributes=_bounded(span.attributes, span.dropped_attributes_count),
        events=counted_items(
            [
                Event(
                    one.name,
                    _bounded(one.attributes, one.dropped_attributes_count),
                    one.time_unix_nano,
                )
                for one in span.events
            ],
            span.dropped_events_count,
        ),
        links=counted_items([_link(one) for one in span.links], span.dropped_links_count),
        kind=SpanKind(max(0, span.kind - 1)),
        status=Status(code, span.status.message or None if code is StatusCode.ERROR else None),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano or None,
    )


def decode_log(body: bytes, origin: Origin) -> ReadableLogRecord:
    """Decode an OTLP LogRecord."""
    record = logs_pb2.LogRecord.FromString(body)
    context = SpanContext(
        int.from_bytes(record.trace_id),
        int.from_bytes(record.span_id),
        is_remote=False,
        trace_flags=TraceFlags(record.flags & 0xFF),
    )
    return ReadableLogRecord(
        LogRecord(
            timestamp=record.time_unix_nano or None,
            observed_timestamp=record.observed_time_unix_nano,
            context=trace.set_span_in_context(NonRecordingSpan(context), Context()),
            severity_text=record.severity_text or None,
            severity_number=SeverityNumber(record.severity_number)
            if record.severity_number
            else None,
            body=_value(record.body),
            attributes=_bounded(record.attributes, record.dropped_attributes_count),
            event_name=record.event_name or None,
        ),
        origin.resource,
        origin.scope,
    )


def _link(link: trace_pb2.Span.Link) -> Link:
    return Link(
        SpanContext(
            int.from_bytes(link.trace_id),
            int.from_bytes(link.span_id),
            bool(link.flags & _IS_REMOTE),
        ),
        _bounded(link.attributes, link.dropped_attributes_count),
    )


def _bounded(items: Any, dropped: int) -> BoundedAttributes:
    return counted_attributes(_attributes(items), dropped)


def _attributes(items: Any) -> Mapping[str, Any]:
    return {item.key: _value(item.value) for item in items}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
    return getattr(value, kind)
