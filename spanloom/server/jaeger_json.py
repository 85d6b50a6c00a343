"""Traces in the JSON that the Jaeger UI and Grafana read (Jaeger: internal/uimodel).

The mapping from OTLP follows the OpenTelemetry specification, "OpenTelemetry to Jaeger
Transformation", as Jaeger itself applies it. Times and durations are microseconds.

Spans that have not ended are shown too, as long as they are known to have run, marked by the tags
`spanloom.in_flight` and `spanloom.incomplete` and a warning. Neither the Jaeger UI nor Grafana
keeps what it was shown, and the store never holds an open span beside the finished one, so a
span id has one version at any time: it grows from look to look until its end takes its place.
"""

import base64
import math
from typing import Any, Final

import orjson

from spanloom.model import (
    Attributes,
    AttributeValue,
    Resource,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    StatusCode,
    Trace,
)
from spanloom.semconv import SERVICE_NAME, SPANLOOM_IN_FLIGHT, SPANLOOM_INCOMPLETE

_MAX_SAFE_INTEGER: Final = 2**53 - 1  # beyond it JavaScript rounds, so Jaeger sends text
_NS_PER_US: Final = 1_000

Json = dict[str, Any]


def trace_json(trace: Trace) -> Json:
    """`{traceID, spans, processes, warnings}`."""
    processes = _Processes()
    spans = [span_json(span, processes.key(span.resource)) for span in trace.all_spans]
    return {
        "traceID": trace.trace_id,
        "spans": spans,
        "processes": processes.by_key,
        "warnings": None,
    }


def span_json(span: Span, process_id: str) -> Json:
    """One span; `process_id` is its key in the trace's `processes`."""
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "flags": span.flags & 0xFF,  # OTLP's upper bits say whether the parent is remote
        "operationName": span.name,
        "references": _references(span),
        "startTime": span.start_time_unix_nano // _NS_PER_US,
        "duration": span.duration_ns // _NS_PER_US,
        "tags": _span_tags(span),
        "logs": [_log(event) for event in span.events],
        "processID": process_id,
        "warnings": _warnings(span),
    }


class _Processes:
    """Numbers the resources of a trace p1, p2, …; equal ones share a number."""

    def __init__(self) -> None:
        self.by_key: dict[str, Json] = {}
        self._keys: dict[bytes, str] = {}
        # The store hands out one object for many spans, so most look-ups end here. The resource
        # is kept beside its key because an id is only unique while its object lives.
        self._seen: dict[int, tuple[Resource, str]] = {}

    def key(self, resource: Resource) -> str:
        seen = self._seen.get(id(resource))
        if seen is not None:
            return seen[1]
        tags = [_tag(k, v) for k, v in resource.attributes.items() if k != SERVICE_NAME]
        process = {"serviceName": resource.service_name, "tags": tags}
        identity = orjson.dumps(process)
        key = self._keys.setdefault(identity, f"p{len(self._keys) + 1}")
        self.by_key.setdefault(key, process)
        self._seen[id(resource)] = (resource, key)
        return key


def _references(span: Span) -> list[Json]:
    references: list[Json] = []
    if span.parent_span_id:
        references.append(_reference("CHILD_OF", span.trace_id, span.parent_span_id))
    references.extend(
        _reference(_link_type(link), link.trace_id, link.span_id) for link in span.links
    )
    return references


def _link_type(link: SpanLink) -> str:
    # The OpenTracing shim marks links that were child-of references.
    if link.attributes.get("opentracing.ref_type") == "child_of":
        return "CHILD_OF"
    return "FOLLOWS_FROM"


def _reference(ref_type: str, trace_id: str, span_id: str) -> Json:
    return {"refType": ref_type, "traceID": trace_id, "spanID": span_id}


def _span_tags(span: Span) -> list[Json]:
    tags = _tags(span.attributes)
    if span.scope.name:
        tags.append(_tag("otel.scope.name", span.scope.name))
    if span.scope.version:
        tags.append(_tag("otel.scope.version", span.scope.version))
    if span.kind is not SpanKind.UNSPECIFIED:
        tags.append(_tag("span.kind", span.kind.name.lower()))
    if span.status.code is not StatusCode.UNSET:
        tags.append(_tag("otel.status_code", span.status.code.name))
    if span.is_error and "error" not in span.attributes:
        tags.append(_tag("error", value=True))
    if span.status.message:
        tags.append(_tag("otel.status_description", span.status.message))
    if span.trace_state:
        tags.append(_tag("w3c.tracestate", span.trace_state))
    tags.extend(
        _tag(f"otel.dropped_{what}_count", count)
        for what, count in (
            ("attributes", span.dropped_attributes_count),
            ("events", span.dropped_events_count),
            ("links", span.dropped_links_count),
        )
        if count
    )
    return tags


def _log(event: SpanEvent) -> Json:
    fields = _tags(event.attributes)
    if event.name and "event" not in event.attributes:
        fields.insert(0, _tag("event", event.name))
    if event.dropped_attributes_count:
        fields.append(_tag("otel.event.dropped_attributes_count", event.dropped_attributes_count))
    return {"timestamp": event.time_unix_nano // _NS_PER_US, "fields": fields}


def _warnings(span: Span) -> list[str] | None:
    warnings: list[str] = []
    if span.attributes.get(SPANLOOM_IN_FLIGHT) is True:
        warnings.append("This span has not ended: it is shown until its last sign of life.")
    elif span.attributes.get(SPANLOOM_INCOMPLETE) is True:
        warnings.append(
            "This span's end was never received: its process died or lost it, and the end shown "
            "is the last sign of life."
        )
    if span.end_time_unix_nano < span.start_time_unix_nano:
        warnings.append("This span ended before it started: a clock ran backwards.")
    return warnings or None


def _tags(attributes: Attributes) -> list[Json]:
    return [_tag(key, value) for key, value in attributes.items()]


def _tag(key: str, value: AttributeValue) -> Json:
    kind, plain = _typed(value)
    return {"key": key, "type": kind, "value": plain}


def _typed(value: AttributeValue) -> tuple[str, str | bool | int | float]:
    typed: tuple[str, str | bool | int | float]
    match value:
        case bool():
            typed = "bool", value
        case int():
            typed = "int64", value if abs(value) <= _MAX_SAFE_INTEGER else str(value)
        case float():
            typed = "float64", value if math.isfinite(value) else str(value)
        case bytes():
            typed = "binary", base64.b64encode(value).decode()
        case str():
            typed = "string", value
        case None:
            typed = "string", ""
        case _:
            typed = "string", orjson.dumps(plain_value(value)).decode()
    return typed


def plain_value(value: AttributeValue) -> Any:
    """The value as JSON can say it: tuples as lists, bytes as base64, NaN and infinity as text."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return str(value)
        case tuple() | list():
            return [plain_value(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return {key: plain_value(item) for key, item in value.items()}
