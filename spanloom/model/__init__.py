"""What Spanloom knows about telemetry: frozen values, standard library only.

Identifiers are lowercase hex text (32 characters for a trace, 16 for a span), times are
integers in nanoseconds since the Unix epoch, durations integers in nanoseconds. Field names
and meaning follow opentelemetry-proto (trace.proto, logs.proto, metrics.proto v1).
"""

from spanloom.model.attributes import Attributes, AttributeValue, EntityRef, Resource, Scope
from spanloom.model.inflight import (
    Heartbeat,
    OpenSpan,
    OpenState,
    ProcessState,
    SpanEnded,
    SpanOpened,
)
from spanloom.model.log import LogEvent
from spanloom.model.metric import Exemplar, Histogram, MetricKind, MetricPoint, MetricQuery
from spanloom.model.query import Operation, TraceQuery
from spanloom.model.span import Span, SpanEvent, SpanKind, SpanLink, Status, StatusCode
from spanloom.model.trace import Trace, TraceSummary, TreeNode, Usage

__all__ = [
    "AttributeValue",
    "Attributes",
    "EntityRef",
    "Exemplar",
    "Heartbeat",
    "Histogram",
    "LogEvent",
    "MetricKind",
    "MetricPoint",
    "MetricQuery",
    "OpenSpan",
    "OpenState",
    "Operation",
    "ProcessState",
    "Resource",
    "Scope",
    "Span",
    "SpanEnded",
    "SpanEvent",
    "SpanKind",
    "SpanLink",
    "SpanOpened",
    "Status",
    "StatusCode",
    "Trace",
    "TraceQuery",
    "TraceSummary",
    "TreeNode",
    "Usage",
]
