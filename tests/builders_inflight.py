"""Announcements and heartbeats as the telemetry library sends them."""

from dataclasses import replace
from typing import Any

from spanloom import semconv
from spanloom.model import LogEvent
from tests.builders import MS, T0, log, resource, span_id


def announced(
    name: str = "execute_tool weather",
    number: int = 1,
    *,
    trace: int = 1,
    parent: int | None = None,
    start_ms: float = 0,
    at_ms: float = 1_000,
    service: str = "agent",
    instance: str = "p1",
    kind: str = "internal",
    revision: int = 1,
    attributes: dict[str, Any] | None = None,
) -> LogEvent:
    """The event `spanloom.span.open`."""
    said: dict[str, Any] = {
        semconv.SPANLOOM_SPAN_NAME: name,
        semconv.SPANLOOM_SPAN_KIND: kind,
        semconv.SPANLOOM_SPAN_START: T0 + int(start_ms * MS),
        semconv.SPANLOOM_SPAN_REVISION: revision,
        semconv.SPANLOOM_SPAN_ATTRIBUTES: attributes or {},
        semconv.SPANLOOM_SPAN_SCOPE: "tests",
    }
    if parent is not None:
        said[semconv.SPANLOOM_SPAN_PARENT_ID] = span_id(parent)
    event = log(None, trace=trace, span=number, at_ms=at_ms, attributes=said)
    return replace(
        event,
        event_name=semconv.EVENT_SPAN_OPEN,
        flags=1,
        resource=resource(service, service_instance_id=instance),
    )


def heartbeat(
    *numbers: int,
    sequence: int = 1,
    at_ms: float = 2_000,
    service: str = "agent",
    instance: str = "p1",
    last: bool = False,
) -> LogEvent:
    """The event `spanloom.process.heartbeat`, which lists the spans of these numbers."""
    said: dict[str, Any] = {
        semconv.SERVICE_INSTANCE_ID: instance,
        semconv.SPANLOOM_HEARTBEAT_SEQUENCE: sequence,
        semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS: tuple(span_id(number) for number in numbers),
    }
    if last:
        said[semconv.SPANLOOM_HEARTBEAT_LAST] = True
    event = log(None, trace=None, at_ms=at_ms, attributes=said)
    return replace(
        event,
        event_name=semconv.EVENT_PROCESS_HEARTBEAT,
        resource=resource(service, service_instance_id=instance),
    )
