"""Work that has not ended: what processes announce about it, and what is known of it.

log event spanloom.span.open           ─▶ SpanOpened ─┐
log event spanloom.process.heartbeat   ─▶ Heartbeat  ─┼▶ OpenSpan, ProcessState
log event spanloom.span.ended          ─▶ SpanEnded  ─┘

running ──no sign of life for 3 s──▶ stalled      (a C call may hold the interpreter's lock)
   │ └──── two heartbeats in a row no longer list the span, or the process said goodbye
   ▼                                                   │
final span                                             ▼
arrives                                              lost
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from spanloom import semconv
from spanloom.model.attributes import Attributes, AttributeValue, Scope
from spanloom.model.log import LogEvent
from spanloom.model.span import Span, SpanKind

STALLED_AFTER_NS: Final = 3_000_000_000
"""Heartbeats come once a second: three of them are missing."""
LOST_AFTER_MISSES: Final = 2
"""One heartbeat may overtake the announcement of a span, or the end of one."""

_MAX_UINT64: Final = 2**64 - 1
_KINDS: Final = {kind.name.lower(): kind for kind in SpanKind}


class OpenState(StrEnum):
    """What is known of a span that has not ended."""

    RUNNING = "running"
    STALLED = "stalled"
    """Its process is silent, and may have died."""
    LOST = "lost"
    """Its process goes on without it, or ended in order; its end was not received."""


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has not ended, as far as is known.

    `span` ends at its process's last sign of life, so that its duration is how long it is known
    to have run, on one clock. Its attributes say `spanloom.in_flight` and
    `spanloom.incomplete`, so that nobody takes it for a finished one.
    """

    span: Span
    state: OpenState
    process: str
    """Key of the process, see `process_key`."""
    revision: int
    """Number of the announcement, from 1; a later one has more attributes."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process that announced spans or sent heartbeats."""

    key: str
    time_unix_nano: int
    """Its latest sign of life, by its own clock."""
    arrived_unix_nano: int
    """When that arrived, by the store's clock."""
    sequence: int
    """Number of its latest heartbeat; 0 before the first."""
    ended: bool
    """Whether it said that this heartbeat is its last."""
    open_spans: int
    lost_spans: int
    """Open spans that its heartbeats no longer list, which count among `open_spans`."""
    most_misses: int
    """Heartbeats in a row that did not list a span, for the span missing longest."""


@dataclass(frozen=True, slots=True)
class SpanOpened:
    """An announcement: the span as it was, ending at the moment it was announced."""

    span: Span
    process: str
    revision: int
    heartbeat: int | None = None
    """Number of its process's latest heartbeat before it; None where it does not say."""


@dataclass(frozen=True, slots=True)
class SpanEnded:
    """An announced span ended, and its final one is sent by who says so, unless it is given up."""

    trace_id: str
    span_id: str
    time_unix_nano: int
    given_up: bool = False
    """Nobody sends its end: whoever still holds it open is to end it."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A process lives, and these of its announced spans are open."""

    process: str
    time_unix_nano: int
    sequence: int
    open_spans: frozenset[str]
    last: bool = False


InFlightEvent: TypeAlias = SpanOpened | Heartbeat | SpanEnded

EVENTS: Final = frozenset(
    {semconv.EVENT_SPAN_OPEN, semconv.EVENT_PROCESS_HEARTBEAT, semconv.EVENT_SPAN_ENDED}
)
"""Names of the log events that `read_event` understands."""


def open_state(process: ProcessState, misses: int, now_ns: int) -> OpenState:
    """State of a span of `process` that so many heartbeats in a row did not list."""
    if process.ended or misses >= LOST_AFTER_MISSES:
        return OpenState.LOST
    if now_ns - process.arrived_unix_nano >= STALLED_AFTER_NS:
        return OpenState.STALLED
    return OpenState.RUNNING


def process_key(event: LogEvent) -> str:
    """What tells the process that sent an in-flight event from all others.

    1. `spanloom.process.id` of the event: new with each start and fork. An instance id may be
       set by hand, and then outlives a restart or is shared by workers.
    2. `service.instance.id` of the resource.
    3. Service, host and process id.
    """
    own = event.attributes.get(semconv.SPANLOOM_PROCESS_ID)
    if isinstance(own, str) and own:
        return own
    resource = event.resource
    attributes = resource.attributes
    instance = attributes.get(semconv.SERVICE_INSTANCE_ID)
    if isinstance(instance, str) and instance:
        return instance
    named = (resource.service_name, attributes.get("host.name"), attributes.get("process.pid"))
    return "/".join("" if part is None else str(part) for part in named)


def read_event(event: LogEvent) -> InFlightEvent | None:
    """What a log event announces; None where it is another one, or says what cannot be."""
    if event.event_name == semconv.EVENT_SPAN_OPEN:
        return _opened(event)
    if event.event_name == semconv.EVENT_PROCESS_HEARTBEAT:
        return _heartbeat(event)
    if event.event_name == semconv.EVENT_SPAN_ENDED and event.trace_id and event.span_id:
        given_up = event.attributes.get(semconv.SPANLOOM_SPAN_GIVEN_UP) is True
        return SpanEnded(event.trace_id, event.span_id, event.timestamp_ns, given_up)
    return None


def _opened(event: LogEvent) -> SpanOpened | None:
    attributes = event.attributes
    name = attributes.get(semconv.SPANLOOM_SPAN_NAME)
    start = _whole(attributes.get(semconv.SPANLOOM_SPAN_START))
    if not event.trace_id or not event.span_id or not isinstance(name, str) or start is None:
        return None
    own = attributes.get(semconv.SPANLOOM_SPAN_ATTRIBUTES)
    span = Span(
        trace_id=event.trace_id,
        span_id=event.span_id,
        parent_span_id=_span_id(attributes.get(semconv.SPANLOOM_SPAN_PARENT_ID)),
        name=name,
        start_time_unix_nano=start,
        end_time_unix_nano=max(start, event.timestamp_ns),
        flags=event.flags,
        kind=_KINDS.get(_text(attributes.get(semconv.SPANLOOM_SPAN_KIND)), SpanKind.UNSPECIFIED),
        attributes=_marked(own if isinstance(own, Mapping) else {}),
        resource=event.resource,
        scope=Scope(_text(attributes.get(semconv.SPANLOOM_SPAN_SCOPE))),
    )
    revision = _whole(attributes.get(semconv.SPANLOOM_SPAN_REVISION))
    return SpanOpened(
        span,
        process_key(event),
        revision or 1,
        _whole(attributes.get(semconv.SPANLOOM_HEARTBEAT_SEQUENCE)),
    )


def _marked(attributes: Attributes) -> Attributes:
    return {
        **attributes,
        semconv.SPANLOOM_INCOMPLETE: True,
        semconv.SPANLOOM_IN_FLIGHT: True,
    }


def _heartbeat(event: LogEvent) -> Heartbeat | None:
    attributes = event.attributes
    sequence = _whole(attributes.get(semconv.SPANLOOM_HEARTBEAT_SEQUENCE))
    if sequence is None:
        return None
    listed = attributes.get(semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS)
    return Heartbeat(
        process=process_key(event),
        time_unix_nano=event.timestamp_ns,
        sequence=sequence,
        open_spans=frozenset(_span_id(one) for one in listed)
        if isinstance(listed, tuple)
        else frozenset(),
        last=attributes.get(semconv.SPANLOOM_HEARTBEAT_LAST) is True,
    )


def _text(value: AttributeValue) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: AttributeValue) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_UINT64:
        return value
    return None


def _span_id(value: AttributeValue) -> str:
    """16 hex characters, or "" for what is none."""
    if isinstance(value, str) and len(value) == 16:  # noqa: PLR2004
        try:
            return bytes.fromhex(value).hex()
        except ValueError:
            return ""
    return ""
