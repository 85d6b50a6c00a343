"""Values of the model into OTLP messages and OTLP JSON: the exact inverse of `decode`.

Items are grouped by resource and scope as OTLP asks for; within a group they keep their order.
"""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

from spanloom.model import LogEvent, MetricPoint, Resource, Scope, Span, StatusCode
from spanloom.otlp import json_codec
from spanloom.otlp.metrics import metric_key, write_metric_identity, write_point
from spanloom.otlp.values import clean, write_attributes, write_resource, write_scope, write_value


class _Item(Protocol):
    @property
    def resource(self) -> Resource: ...
    @property
    def scope(self) -> Scope: ...


_I = TypeVar("_I", bound=_Item)


def traces_to_json(spans: Iterable[Span]) -> dict[str, Any]:
    """OTLP JSON TracesData."""
    return json_codec.to_json(traces_to_message(spans))


def logs_to_json(events: Iterable[LogEvent]) -> dict[str, Any]:
    """OTLP JSON LogsData."""
    return json_codec.to_json(logs_to_message(events))


def metrics_to_json(points: Iterable[MetricPoint]) -> dict[str, Any]:
    """OTLP JSON MetricsData."""
    return json_codec.to_json(metrics_to_message(points))


def traces_to_message(spans: Iterable[Span]) -> TracesData:
    """Protobuf TracesData, on the wire the same as ExportTraceServiceRequest."""
    message = TracesData()
    for resource, scopes in _grouped(spans):
        group = message.resource_spans.add()
        write_resource_header(group, resource)
        for scope, members in scopes:
            scoped = group.scope_spans.add()
            write_scope_header(scoped, scope)
            for span in members:
                _write_span(scoped.spans.add(), span)
    return message


def logs_to_message(events: Iterable[LogEvent]) -> LogsData:
    """Protobuf LogsData, on the wire the same as ExportLogsServiceRequest."""
    message = LogsData()
    for resource, scopes in _grouped(events):
        group = message.resource_logs.add()
        write_resource_header(group, resource)
        for scope, members in scopes:
            scoped = group.scope_logs.add()
            write_scope_header(scoped, scope)
            for event in members:
                write_log(scoped.log_records.add(), event)
    return message


def metrics_to_message(points: Iterable[MetricPoint]) -> MetricsData:
    """Protobuf MetricsData; the points of one metric stand under one Metric."""
    message = MetricsData()
    for resource, scopes in _grouped(points):
        group = message.resource_metrics.add()
        write_resource_header(group, resource)
        for scope, members in scopes:
            scoped = group.scope_metrics.add()
            write_scope_header(scoped, scope)
            metrics: dict[bytes, Metric] = {}
            for point in members:
                key = metric_key(point)
                if key not in metrics:
                    metrics[key] = scoped.metrics.add()
                    write_metric_identity(metrics[key], point)
                write_point(metrics[key], point)
    return message


def write_resource_header(
    target: ResourceSpans | ResourceLogs | ResourceMetrics, resource: Resource
) -> None:
    """Resource and schema URL of an empty group."""
    write_resource(target.resource, resource)
    target.schema_url = clean(resource.schema_url)


def write_scope_header(target: ScopeSpans | ScopeLogs | ScopeMetrics, scope: Scope) -> None:
    """Scope and schema URL of an empty group."""
    write_scope(target.scope, scope)
    target.schema_url = clean(scope.schema_url)


def resource_key(resource: Resource) -> bytes:
    """A resource as the bytes of a ResourceSpans without spans: equal bytes, equal resource."""
    header = ResourceSpans()
    write_resource_header(header, resource)
    return header.SerializeToString()


def scope_key(scope: Scope) -> bytes:
    """A scope as the bytes of a ScopeSpans without spans: equal bytes, equal scope."""
    header = ScopeSpans()
    write_scope_header(header, scope)
    return header.SerializeToString()


def _grouped(items: Iterable[_I]) -> list[tuple[Resource, list[tuple[Scope, list[_I]]]]]:
    # Decoded items share their resource object, so most keys are found by identity. The
    # objects are kept alive by `items`, which makes their ids unique while this runs.
    kept = list(items)
    keys: dict[int, bytes] = {}
    groups: dict[bytes, tuple[Resource, dict[bytes, tuple[Scope, list[_I]]]]] = {}
    for item in kept:
        resource, scope = item.resource, item.scope
        outer = keys.get(id(resource))
        if outer is None:
            outer = keys[id(resource)] = resource_key(resource)
        inner = keys.get(id(scope))
        if inner is None:
            inner = keys[id(scope)] = scope_key(scope)
        _, scopes = groups.setdefault(outer, (resource, {}))
        scopes.setdefault(inner, (scope, []))[1].append(item)
    return [(resource, list(scopes.values())) for resource, scopes in groups.values()]


def _write_span(target: trace_pb2.Span, span: Span) -> None:
    target.trace_id = bytes.fromhex(span.trace_id)
    target.span_id = bytes.fromhex(span.span_id)
    target.parent_span_id = bytes.fromhex(span.parent_span_id)
    target.name = clean(span.name)
    # The enums are open on the wire, so that plain numbers are right here.
    target.kind = span.kind.value  # type: ignore[assignment]
    target.start_time_unix_nano = span.start_time_unix_nano
    target.end_time_unix_nano = span.end_time_unix_nano
    if span.status.code is not StatusCode.UNSET:
        target.status.code = span.status.code.value  # type: ignore[assignment]
    write_span_details(target, span)


def write_span_details(target: trace_pb2.Span, span: Span) -> None:
    """Everything of a span but ids, name, kind, times, status code, resource and scope."""
    target.trace_state = clean(span.trace_state)
    target.flags = span.flags
    write_attributes(target.attributes, span.attributes)
    target.dropped_attributes_count = span.dropped_attributes_count
    for event in span.events:
        entry = target.events.add(
            time_unix_nano=event.time_unix_nano,
            name=clean(event.name),
            dropped_attributes_count=event.dropped_attributes_count,
        )
        write_attributes(entry.attributes, event.attributes)
    target.dropped_events_count = span.dropped_events_count
    for link in span.links:
        relation = target.links.add(
            trace_id=bytes.fromhex(link.trace_id),
            span_id=bytes.fromhex(link.span_id),
            trace_state=clean(link.trace_state),
            dropped_attributes_count=link.dropped_attributes_count,
            flags=link.flags,
        )
        write_attributes(relation.attributes, link.attributes)
    target.dropped_links_count = span.dropped_links_count
    if span.status.message:
        target.status.message = clean(span.status.message)


def write_log(target: LogRecord, event: LogEvent) -> None:
    """Fill an empty LogRecord."""
    target.time_unix_nano = event.time_unix_nano
    target.observed_time_unix_nano = event.observed_time_unix_nano
    target.severity_number = event.severity_number  # type: ignore[assignment]
    target.severity_text = clean(event.severity_text)
    if event.body is not None:
        write_value(target.body, event.body)
    write_attributes(target.attributes, event.attributes)
    target.dropped_attributes_count = event.dropped_attributes_count
    target.flags = event.flags
    target.trace_id = bytes.fromhex(event.trace_id)
    target.span_id = bytes.fromhex(event.span_id)
    target.event_name = clean(event.event_name)
