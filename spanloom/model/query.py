"""What can be asked of a store."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from spanloom.model.span import SpanKind


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """Which traces: those with at least one span that meets every condition at once.

    `tags` match on span, event, link, resource and scope attributes, each value compared as
    text; `error=true` matches an ERROR status, `span.kind=server` the kind. `start_ns` and
    `end_ns` bound the span's start: start_ns <= start < end_ns. Durations are inclusive.
    Newest first by the trace's latest matching span start; at most `limit` traces.
    """

    service: str | None = None
    operation: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    start_ns: int | None = None
    end_ns: int | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Operation:
    """A span name that occurred in a service, with its kind."""

    name: str
    kind: SpanKind
