"""LogEvent (opentelemetry-proto, logs.proto)."""

from dataclasses import dataclass, field

from spanloom.model.attributes import Attributes, AttributeValue, Resource, Scope


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One log record; an `event_name` makes it an event. Ids are "" outside a span."""

    time_unix_nano: int
    observed_time_unix_nano: int = 0
    severity_number: int = 0
    severity_text: str = ""
    body: AttributeValue = None
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    flags: int = 0
    trace_id: str = ""
    span_id: str = ""
    event_name: str = ""
    resource: Resource = field(default_factory=Resource)
    scope: Scope = field(default_factory=Scope)

    @property
    def timestamp_ns(self) -> int:
        """The event's own time, or the time it was observed where it has none."""
        return self.time_unix_nano or self.observed_time_unix_nano
