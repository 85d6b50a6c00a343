"""OTLP requests into values of the model.

    bytes ── decode_traces(body, content_type) ──▶ message ── traces_from_message ──▶ Decoded

A body that cannot be read at all raises; a single item that cannot be taken is left out and
counted, because OTLP answers it with a partial success and the client must not send it again.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1 import trace_pb2

from spanloom.errors import MalformedPayloadError, UnsupportedEncodingError
from spanloom.model import (
    LogEvent,
    MetricPoint,
    Resource,
    Scope,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)
from spanloom.otlp import json_codec
from spanloom.otlp.metrics import read_points
from spanloom.otlp.values import read_attributes, read_resource, read_scope, read_value

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8
_NO_TRACE_ID: Final = bytes(_TRACE_ID_BYTES)
_NO_SPAN_ID: Final = bytes(_SPAN_ID_BYTES)
_KINDS: Final = {kind.value: kind for kind in SpanKind}
_CODES: Final = {code.value: code for code in StatusCode}
_UNSET: Final = Status()

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Decoded(Generic[_T]):
    """The items of one request that can be stored, and how many cannot, with the reason.

    `rejected` and `message` are meant for OTLP's partial success; 0 and "" say all is well.
    """

    items: tuple[_T, ...]
    rejected: int = 0
    message: str = ""


def decode_traces(body: bytes, content_type: str) -> Decoded[Span]:
    """Spans of an ExportTraceServiceRequest (or TracesData), protobuf or OTLP JSON.

    Raises:
        MalformedPayloadError: the body is not OTLP in the encoding its Content-Type names.
        UnsupportedEncodingError: the Content-Type is not one OTLP defines.
    """
    return traces_from_message(_parse(body, content_type, ExportTraceServiceRequest()))


def decode_logs(body: bytes, content_type: str) -> Decoded[LogEvent]:
    """Log records of an ExportLogsServiceRequest; raises as `decode_traces` does."""
    return logs_from_message(_parse(body, content_type, ExportLogsServiceRequest()))


def decode_metrics(body: bytes, content_type: str) -> Decoded[MetricPoint]:
    """Data points of an ExportMetricsServiceRequest; raises as `decode_traces` does."""
    return metrics_from_message(_parse(body, content_type, ExportMetricsServiceRequest()))


def _parse(body: bytes, content_type: str, message: _M) -> _M:
    match content_type.partition(";")[0].strip().lower():
        case "application/x-protobuf":
            try:
                message.ParseFromString(body)
            except DecodeError as error:
                raise MalformedPayloadError(
                    f"The body is not a protobuf {message.DESCRIPTOR.name}; check that the "
                    "exporter's endpoint is the one of this signal and that a compressed body "
                    "names its Content-Encoding."
                ) from error
            return message
        case "application/json":
            return json_codec.from_json(body, message)
        case other:
            raise UnsupportedEncodingError(
                f"Content-Type {other!r} is not OTLP; send {PROTOBUF} or {JSON}."
            )


def traces_from_message(
    message: ExportTraceServiceRequest | trace_pb2.TracesData,
) -> Decoded[Span]:
    """Spans of a message object. Spans without valid trace and span id are rejected."""
    spans: list[Span] = []
    refused: Counter[str] = Counter()
    for group in message.resource_spans:
        resource = read_resource(group.resource, group.schema_url)
        for scoped in group.scope_spans:
            scope = read_scope(scoped.scope, scoped.schema_url)
            for span in scoped.spans:
                fault = _fault(span)
                if fault:
                    refused[fault] += 1
                else:
                    spans.append(_span(span, resource, scope))
    return _decoded(spans, refused)


def _fault(span: trace_pb2.Span) -> str:
    if not _is_id(span.trace_id, _NO_TRACE_ID):
        return "trace_id must be 16 bytes (32 hex characters in JSON), not all zero"
    if not _is_id(span.span_id, _NO_SPAN_ID):
        return "span_id must be 8 bytes (16 hex characters in JSON), not all zero"
    if len(span.parent_span_id) not in (0, _SPAN_ID_BYTES):
        return "parent_span_id must be empty or 8 bytes (16 hex characters in JSON)"
    return ""


def _is_id(value: bytes, zero: bytes) -> bool:
    return len(value) == len(zero) and value != zero


def _span(span: trace_pb2.Span, resource: Resource, scope: Scope) -> Span:
    parent = span.parent_span_id
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        name=span.name,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        # Some exporters write a root's parent as zeros.
        parent_span_id="" if parent == _NO_SPAN_ID else parent.hex(),
        trace_state=span.trace_state,
        flags=span.flags,
        kind=_KINDS.get(span.kind, SpanKind.UNSPECIFIED),
        attributes=read_attributes(span.attributes),
        dropped_attributes_count=span.dropped_attributes_count,
        events=read_events(span),
        dropped_events_count=span.dropped_events_count,
        links=read_links(span),
        dropped_links_count=span.dropped_links_count,
        status=read_status(span.status) if span.HasField("status") else _UNSET,
        resource=resource,
        scope=scope,
    )


def read_events(span: trace_pb2.Span) -> tuple[SpanEvent, ...]:
    """Events in the order they were sent."""
    return tuple(
        [
            SpanEvent(
                time_unix_nano=event.time_unix_nano,
                name=event.name,
                attributes=read_attributes(event.attributes),
                dropped_attributes_count=event.dropped_attributes_count,
            )
            for event in span.events
        ]
    )


def read_links(span: trace_pb2.Span) -> tuple[SpanLink, ...]:
    """Links in the order they were sent, whatever their ids look like."""
    return tuple(
        [
            SpanLink(
                trace_id=link.trace_id.hex(),
                span_id=link.span_id.hex(),
                trace_state=link.trace_state,
                attributes=read_attributes(link.attributes),
                dropped_attributes_count=link.dropped_attributes_count,
                flags=link.flags,
            )
            for link in span.links
        ]
    )


def read_status(status: trace_pb2.Status) -> Status:
    """A status; a code this version does not know counts as unset."""
    return Status(_CODES.get(status.code, StatusCode.UNSET), status.message)


def logs_from_message(message: ExportLogsServiceRequest | LogsData) -> Decoded[LogEvent]:
    """Log records of a message object. None is rejected: an invalid id counts as absent."""
    events: list[LogEvent] = []
    for group in message.resource_logs:
        resource = read_resource(group.resource, group.schema_url)
        for scoped in group.scope_logs:
            scope = read_scope(scoped.scope, scoped.schema_url)
            events.extend(read_log(record, resource, scope) for record in scoped.log_records)
    return Decoded(tuple(events))


def read_log(record: LogRecord, resource: Resource, scope: Scope) -> LogEvent:
    """One log record. Its span id needs a trace id beside it (logs.proto)."""
    in_trace = _is_id(record.trace_id, _NO_TRACE_ID)
    in_span = in_trace and _is_id(record.span_id, _NO_SPAN_ID)
    return LogEvent(
        time_unix_nano=record.time_unix_nano,
        observed_time_unix_nano=record.observed_time_unix_nano,
        severity_number=record.severity_number,
        severity_text=record.severity_text,
        body=read_value(record.body),
        attributes=read_attributes(record.attributes),
        dropped_attributes_count=record.dropped_attributes_count,
        flags=record.flags,
        trace_id=record.trace_id.hex() if in_trace else "",
        span_id=record.span_id.hex() if in_span else "",
        event_name=record.event_name,
        resource=resource,
        scope=scope,
    )


def metrics_from_message(
    message: ExportMetricsServiceRequest | MetricsData,
) -> Decoded[MetricPoint]:
    """Data points of a message object, one value each. Points nobody can read are rejected."""
    points: list[MetricPoint] = []
    refused: Counter[str] = Counter()
    for group in message.resource_metrics:
        resource = read_resource(group.resource, group.schema_url)
        for scoped in group.scope_metrics:
            scope = read_scope(scoped.scope, scoped.schema_url)
            for metric in scoped.metrics:
                points.extend(read_points(metric, resource, scope, refused))
    return _decoded(points, refused)


def _decoded(items: list[_T], refused: Counter[str]) -> Decoded[_T]:
    message = "; ".join(f"{count} × {fault}" for fault, count in refused.most_common())
    return Decoded(tuple(items), refused.total(), message)
