"""A span's part of its row: everything that has no column, as an OTLP Span message."""

from collections.abc import Iterator
from typing import TypeAlias

from opentelemetry.proto.trace.v1 import trace_pb2

from spanloom.model import Attributes, Resource, Scope, Span, SpanKind, Status, StatusCode
from spanloom.otlp.decode import read_events, read_links
from spanloom.otlp.encode import write_span_details
from spanloom.otlp.values import INT64_MAX, read_attributes

SpanRow: TypeAlias = tuple[bytes, bytes | None, str, int, int, int, int, int, int, bytes]
"""A row of `trace_spans.sql` or `one_span.sql`."""


def capped(number: int) -> int:
    """A number as an SQLite column can hold it; OTLP times have one bit more."""
    return max(-INT64_MAX, min(number, INT64_MAX))


def encode_details(span: Span) -> bytes:
    """The message for the `details` column."""
    message = trace_pb2.Span()
    write_span_details(message, span)
    if span.start_time_unix_nano > INT64_MAX:
        message.start_time_unix_nano = span.start_time_unix_nano
    if span.end_time_unix_nano > INT64_MAX:
        message.end_time_unix_nano = span.end_time_unix_nano
    return message.SerializeToString()


def decode_span(
    trace_id: str,
    row: SpanRow,
    resource: Resource,
    scope: Scope,
) -> Span:
    """The span of a row."""
    span_id, parent, name, kind, start, end, status, _, _, details = row
    message = trace_pb2.Span.FromString(details)
    return Span(
        trace_id=trace_id,
        span_id=span_id.hex(),
        name=name,
        start_time_unix_nano=message.start_time_unix_nano or start,
        end_time_unix_nano=message.end_time_unix_nano or end,
        parent_span_id=parent.hex() if parent else "",
        trace_state=message.trace_state,
        flags=message.flags,
        kind=SpanKind(kind),
        attributes=read_attributes(message.attributes),
        dropped_attributes_count=message.dropped_attributes_count,
        events=read_events(message),
        dropped_events_count=message.dropped_events_count,
        links=read_links(message),
        dropped_links_count=message.dropped_links_count,
        status=Status(StatusCode(status), message.status.message),
        resource=resource,
        scope=scope,
    )


def own_attributes(details: bytes) -> Iterator[Attributes]:
    """Attributes of an encoded span, of its events and of its links."""
    message = trace_pb2.Span.FromString(details)
    yield read_attributes(message.attributes)
    for event in message.events:
        yield read_attributes(event.attributes)
    for link in message.links:
        yield read_attributes(link.attributes)
