"""Span and its parts (opentelemetry-proto, trace.proto)."""

from dataclasses import dataclass, field
from enum import IntEnum

from spanloom.model.attributes import Attributes, Resource, Scope


class SpanKind(IntEnum):
    """Numbers as on the wire."""

    UNSPECIFIED = 0
    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class StatusCode(IntEnum):
    """Numbers as on the wire."""

    UNSET = 0
    OK = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Status:
    """How a span ended; `message` only ever accompanies ERROR."""

    code: StatusCode = StatusCode.UNSET
    message: str = ""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened at one moment of a span."""

    time_unix_nano: int
    name: str
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A causal relation to a span that is not the parent."""

    trace_id: str
    span_id: str
    trace_state: str = ""
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """One finished operation. `parent_span_id` is "" for a root."""

    trace_id: str
    span_id: str
    name: str
    start_time_unix_nano: int
    end_time_unix_nano: int
    parent_span_id: str = ""
    trace_state: str = ""
    flags: int = 0
    kind: SpanKind = SpanKind.UNSPECIFIED
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    events: tuple[SpanEvent, ...] = ()
    dropped_events_count: int = 0
    links: tuple[SpanLink, ...] = ()
    dropped_links_count: int = 0
    status: Status = field(default_factory=Status)
    resource: Resource = field(default_factory=Resource)
    scope: Scope = field(default_factory=Scope)

    @property
    def duration_ns(self) -> int:
        """End minus start; 0 where a clock ran backwards."""
        return max(0, self.end_time_unix_nano - self.start_time_unix_nano)

    @property
    def service_name(self) -> str:
        """The service of the span's resource."""
        return self.resource.service_name

    @property
    def is_error(self) -> bool:
        """Whether the status is ERROR."""
        return self.status.code is StatusCode.ERROR
