"""Finished spans and log records as OTLP protobuf, encoded once, as soon as they are there.

What waits to be sent is then one `bytes` and not a dozen objects, which the garbage collector would
look through again and again, and spool and exporter share it. A span takes a sixth of what it takes
with the SDK's encoder, whose messages are made of a Python object for each attribute and value.

Nearly all spans are encoded here. Those with events, links or texts that must be redacted are left
to the SDK's encoder; where both can, they give the same bytes. Wire format:
https://protobuf.dev/programming-guides/encoding/, messages: opentelemetry-proto 1.x,
`trace/v1/trace.proto` and `logs/v1/logs.proto`.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from spanloom.telemetry.cleaning import clean_log, clean_span, must_be_cleaned
from spanloom.telemetry.hashed_resource import HashedResource
from spanloom.telemetry.otlp_wire import (
    append_attributes,
    encode_value,
    field,
    fixed64,
    text_field,
    varint,
)

_NOTHING: Final = HashedResource(Resource.get_empty())
_MAX_ORIGINS: Final = 256
_WORD: Final = 1 << 64
_ids = struct.Struct(">2sQQ2sQ").pack
_HALF: Final = 64

# Tags, field number and wire type: one byte each, but for Span.flags.
_KIND: Final = {
    SpanKind.INTERNAL: b"\x30\x01",
    SpanKind.SERVER: b"\x30\x02",
    SpanKind.CLIENT: b"\x30\x03",
    SpanKind.PRODUCER: b"\x30\x04",
    SpanKind.CONSUMER: b"\x30\x05",
}
_STATUS: Final = {
    StatusCode.UNSET: b"\x7a\x00",
    StatusCode.OK: b"\x7a\x02\x18\x01",
    StatusCode.ERROR: b"\x7a\x02\x18\x02",
}
# Whether the parent is in another process is known (0x100), and whether it is (0x200).
_FLAGS_LOCAL: Final = b"\x85\x01\x00\x01\x00\x00"
_FLAGS_REMOTE: Final = b"\x85\x01\x00\x03\x00\x00"


class Origin(NamedTuple):
    """What many spans or records share, and a request or segment of the spool has once."""

    resource: Resource
    scope: InstrumentationScope | None


class Encoded(NamedTuple):
    """One finished span or log record."""

    body: bytes
    """An OTLP Span or LogRecord."""
    origin: Origin
    span_id: int
    """The span's own id; 0 for a log record."""


def encode_span_quickly(span: ReadableSpan) -> Encoded | None:
    """Encode a span in a few microseconds; None where that takes `encode_span`."""
    try:
        body = _span(span)
    except Exception:  # noqa: BLE001 - a value that is odd, or another SDK than ours was made for
        return None
    if body is None:
        return None
    return Encoded(body, Origin(span.resource, span.instrumentation_scope), span.context.span_id)


def encode_span(span: ReadableSpan) -> Encoded:
    """Encode a span, with secrets redacted and texts capped."""
    return encode_span_quickly(span) or encode_whole(clean_span(span))


def encode_whole(span: ReadableSpan) -> Encoded:
    """Encode a span, open or finished, that is clean already, with the SDK's encoder."""
    origin = Origin(span.resource, span.instrumentation_scope)
    return Encoded(_by_the_sdk(span), origin, 0 if span.context is None else span.context.span_id)


def _by_the_sdk(span: ReadableSpan) -> bytes:
    bare = ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=_NOTHING,  # would be encoded, and hashed, for each span
        attributes=span._attributes,  # noqa: SLF001 - the property's view hides what was dropped
        events=span._events,  # noqa: SLF001
        links=span._links,  # noqa: SLF001
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )
    return encode_spans([bare]).resource_spans[0].scope_spans[0].spans[0].SerializeToString()


def encode_log_quickly(record: ReadableLogRecord | ReadWriteLogRecord) -> Encoded | None:
    """Encode a log record in a few microseconds; None where that takes `encode_log`."""
    try:
        body = _record(record)
    except Exception:  # noqa: BLE001 - as for a span
        return None
    if body is None or record.resource is None:
        return None
    return Encoded(body, Origin(record.resource, record.instrumentation_scope), 0)


def encode_log(record: ReadableLogRecord) -> Encoded:
    """Encode a log record, with exception texts redacted and capped; it may be changed."""
    found = encode_log_quickly(record)
    if found is not None:
        return found
    bare = ReadableLogRecord(clean_log(record).log_record, _NOTHING)
    logs = encode_logs([bare]).resource_logs[0].scope_logs[0]
    body = logs.log_records[0].SerializeToString()
    return Encoded(body, Origin(record.resource, record.instrumentation_scope), 0)


def request(items: Iterable[Encoded]) -> bytes:
    """Assemble an OTLP ExportTraceServiceRequest of spans, or ExportLogsServiceRequest of records.

    Both have the same fields: ResourceX 1 { resource 1, ScopeX 2 { scope 1, x 2, schema_url 3 },
    schema_url 3 }.
    """
    resources: dict[tuple[bytes, bytes], dict[tuple[bytes, bytes], list[bytes]]] = {}
    for body, origin, _ in items:
        _, resource, scope = _envelope(origin)
        inside = resources.setdefault(resource, {}).setdefault(scope, [])
        inside.append(field(b"\x12", body))
    return b"".join(
        field(
            b"\x0a",
            resource
            + b"".join(
                field(b"\x12", scope + b"".join(inside) + scope_end)
                for (scope, scope_end), inside in scopes.items()
            )
            + resource_end,
        )
        for (resource, resource_end), scopes in resources.items()
    )


class _Envelope(NamedTuple):
    """Fields of ResourceX and ScopeX before and behind what is repeated in them."""

    origin: Origin
    resource: tuple[bytes, bytes]
    scope: tuple[bytes, bytes]


def without_spans(origin: Origin) -> ResourceSpans:
    """Make the message that says what spans, or records, belong to, and has none."""
    empty = ReadableSpan(
        "",
        context=SpanContext(1, 1, is_remote=False),
        resource=origin.resource,
        instrumentation_scope=origin.scope,
    )
    (message,) = encode_spans([empty]).resource_spans
    message.scope_spans[0].ClearField("spans")
    return message


_envelopes: dict[tuple[int, int], _Envelope] = {}


def _envelope(origin: Origin) -> _Envelope:
    key = (id(origin.resource), id(origin.scope))
    envelope = _envelopes.get(key)
    if envelope is None:
        if len(_envelopes) >= _MAX_ORIGINS:
            _envelopes.clear()
        spans = without_spans(origin)
        scope = spans.scope_spans[0]
        # Keeps the objects alive, so that their ids stay theirs.
        envelope = _envelopes[key] = _Envelope(
            origin,
            (
                field(b"\x0a", spans.resource.SerializeToString()),
                text_field(b"\x1a", spans.schema_url),
            ),
            (
                field(b"\x0a", scope.scope.SerializeToString()),
                text_field(b"\x1a", scope.schema_url),
            ),
        )
    return envelope


def _span(span: Any) -> bytes | None:
    """Encode an OTLP Span; None where it has what is rare or must be cleaned."""
    attributes = span._attributes  # noqa: SLF001 - the public ones copy, or are views in Python
    values = attributes._dict if attributes is not None else {}  # noqa: SLF001
    description = span.status.description
    if (
        description is not None
        or span._events  # noqa: SLF001
        or span._links  # noqa: SLF001
        or span.dropped_events
        or span.dropped_links
        or must_be_cleaned(values)
    ):
        return None
    start, end = span.start_time, span.end_time
    if not (start and end):
        return None
    context, parent = span.context, span.parent
    trace_id = context.trace_id
    parts = [
        _ids(
            *(b"\x0a\x10", trace_id >> _HALF, trace_id & _WORD - 1),
            *(b"\x12\x08", context.span_id),
        )
    ]
    if context.trace_state:
        state = ",".join([f"{key}={value}" for key, value in context.trace_state.items()])
        parts.append(field(b"\x1a", state.encode()))
    if parent is not None:
        parts.append(b"\x22\x08" + parent.span_id.to_bytes(8, "big"))
    name = span.name.encode()
    if name:
        parts.append(b"\x2a" + varint(len(name)) + name)
    times = b"\x39" + fixed64(start) + b"\x41" + fixed64(end)
    parts.append(_KIND[span.kind] + times)
    if values:
        append_attributes(parts, b"\x4a", values)
    if attributes is not None and attributes.dropped:
        parts.append(b"\x50" + varint(attributes.dropped))
    is_remote = parent is not None and parent.is_remote
    parts.append(_STATUS[span.status.status_code] + (_FLAGS_REMOTE if is_remote else _FLAGS_LOCAL))
    return b"".join(parts)


def _record(record: Any) -> bytes | None:
    """Encode an OTLP LogRecord; None where it must be cleaned."""
    log = record.log_record
    values: Mapping[str, Any] = log.attributes or {}
    if type(values) is BoundedAttributes:
        values = values._dict  # noqa: SLF001 - its own methods are Python, and lock
    if must_be_cleaned(values):
        return None
    parts = []
    if log.timestamp:
        parts.append(b"\x09" + fixed64(log.timestamp))
    if log.severity_number is not None and log.severity_number.value:
        parts.append(b"\x10" + varint(log.severity_number.value))
    parts.append(text_field(b"\x1a", log.severity_text or ""))
    parts.append(field(b"\x2a", encode_value(log.body)))
    append_attributes(parts, b"\x32", values)
    if record.dropped_attributes:
        parts.append(b"\x38" + varint(record.dropped_attributes))
    if log.trace_flags:
        parts.append(b"\x45" + int(log.trace_flags).to_bytes(4, "little"))
    if log.trace_id:
        parts.append(b"\x4a\x10" + log.trace_id.to_bytes(16, "big"))
    if log.span_id:
        parts.append(b"\x52\x08" + log.span_id.to_bytes(8, "big"))
    if log.observed_timestamp:
        parts.append(b"\x59" + fixed64(log.observed_timestamp))
    parts.append(text_field(b"\x62", log.event_name or ""))
    return b"".join(parts)
