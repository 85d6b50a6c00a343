"""Work that has not ended: open spans are announced, and a heartbeat says that the process lives.

    span begins ─▶ OpenSpans, a dict ─▶ open for longer than 1 s? ─▶ event spanloom.span.open
    span ends ───▶ out of it                         once a second ─▶ … spanloom.process.heartbeat

One daemon thread looks, builds the events and sends them itself, so that it goes on while the
event loop is blocked, and so that announcements do not wait behind other log records. Nothing is
queued: what could not be sent is built anew, from what is still open, the next time.
"""

import logging
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from spanloom import semconv
from spanloom.telemetry import metrics
from spanloom.telemetry.after_fork import call_in_child
from spanloom.telemetry.cleaning import clean_span
from spanloom.telemetry.exporters import create_otlp_exporter
from spanloom.telemetry.reaped import Claims, Ids
from spanloom.telemetry.redaction import cap
from spanloom.telemetry.settings import TelemetrySettings

_logger: Final = logging.getLogger(__name__)

MAX_TRACKED: Final = 50_000
"""Open spans that are followed at all; what begins beyond is not announced."""
MAX_ANNOUNCED: Final = 1_000
"""Open spans that are announced at one time, the oldest first; the heartbeat counts the others."""
REPEAT_AFTER_S: Final = 5.0
"""Shortest time between two announcements of one span whose attributes change."""
HEARTBEAT_S: Final = 1.0
LOOK_S: Final = 0.5
"""Time between two looks at what is open."""

SEND_TIMEOUT_S: Final = 1.0
"""Longest time one request may take: a backend that hangs must not hold the heartbeat up."""
_BATCH: Final = 200
_MAX_REPEATS: Final = 100
"""Announcements repeated in one look at most: 1,000 spans that change cost 200 events a second."""
_COUNT_S: Final = 5.0
"""Time between two counts of the spans for whose announcement there is no room."""
_MAX_YOUNG: Final = 100
"""Spans younger than the threshold that end the search, because spans lie in order of begin. More
than one, because a span may be given another time of begin."""
_TEXT_LIMIT: Final = 1_024
"""Longest text value in an announcement, in characters; the final span has all of it."""

_SCOPE: Final = InstrumentationScope("spanloom.telemetry.inflight")


class OpenSpans(SpanProcessor):
    """The sampled spans that have begun and not ended; each costs two dictionary operations.

    Held by weak references: a span that is forgotten without an end is not kept alive here.
    """

    def __init__(self, limit: int = MAX_TRACKED) -> None:
        self._limit = limit
        self._spans: dict[int, weakref.ref[Span]] = {}
        self.untracked = 0
        """Spans that began while the limit was reached."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Remember a span."""
        context = span.context
        if context is None or not context.trace_flags & TraceFlags.SAMPLED:
            return
        if len(self._spans) < self._limit:
            self._spans[context.span_id] = weakref.ref(span)
        else:
            self.untracked += 1

    def on_end(self, span: ReadableSpan) -> None:
        """Forget a span."""
        if span.context is not None:
            self._spans.pop(span.context.span_id, None)

    def __contains__(self, span_id: int) -> bool:
        return span_id in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[tuple[int, Span]]:
        """Walk over a copy, oldest first; spans that vanished without an end are forgotten."""
        for span_id, reference in list(self._spans.items()):  # one step under the GIL
            span = reference()
            if span is None:
                self._spans.pop(span_id, None)
            elif span.end_time is None:
                yield span_id, span

    def clear(self) -> None:
        """Forget all: in a forked child they are the parent's."""
        self._spans.clear()
        self.untracked = 0


class Journal(Protocol):
    """What also wants to know, to end the spans of this process should it die."""

    def opened(self, span: ReadableSpan) -> None:
        """Note an open span as it is now."""

    def is_alive(self, now: int) -> None:
        """Note that the process lives, in nanoseconds since the epoch."""


@dataclass(slots=True)
class _Announced:
    reference: weakref.ref[Span]
    attributes: dict[str, Any]
    """As they were in the last announcement."""
    at: float
    """Monotonic time when they were taken, in seconds."""
    revision: int = 1
    journaled: int = 0
    """Revision that the journal has."""
    sent: int = 0
    """Revision that the backend has."""

    def is_overdue(self, now: int) -> bool:
        """Whether the span has a deadline, and is open although it is over (`now` in ns)."""
        span = self.reference()
        allowed = self.attributes.get(semconv.SPANLOOM_DEADLINE_MS)
        if span is None or not isinstance(allowed, int):
            return False
        return span.end_time is None and now - (span.start_time or now) > allowed * 1_000_000


_Due = tuple[_Announced, Span]


class InFlight(SpanProcessor):
    """Announces open spans and sends the heartbeat.

    `create_exporter` makes an exporter that takes at most `SEND_TIMEOUT_S` for a request; None
    sends nothing, which leaves the journal. `after_s` is how long a span has to be open. `claims`
    are needed where a reaper runs behind the Collector.
    """

    def __init__(
        self,
        create_exporter: Callable[[], LogRecordExporter | None],
        resource: Callable[[], Resource],
        *,
        after_s: float = 1.0,
        journal: Journal | None = None,
        claims: Claims | None = None,
    ) -> None:
        self._create_exporter = create_exporter
        self._resource = resource
        self._after_ns = int(after_s * 1e9)
        self._period_s = min(LOOK_S, after_s / 2)
        self._journal = journal
        self._claims = claims
        if claims is not None:
            claims.tell = self._tell
        self._open = OpenSpans()
        # The SDK calls these for every span.
        self.on_start = self._open.on_start  # type: ignore[method-assign]
        # What ended in a journal is sent by whoever finds it: the reaper must know at once.
        self.on_end = (  # type: ignore[method-assign]
            self._open.on_end if claims is None or journal is None else self._end_and_tell
        )
        self._begin()
        call_in_child(self._begin_in_child)

    def _begin(self) -> None:
        self._announced: dict[int, _Announced] = {}
        self._unannounced = 0
        self._next_count = 0.0
        self._process = secrets.token_hex(8)
        self._sequence = 0
        self._next_heartbeat = 0.0
        self._exporter_lock = threading.Lock()
        self._exporter: LogRecordExporter | None = None
        self._has_exporter = False
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="spanloom-inflight")
        self._thread.start()

    def _begin_in_child(self) -> None:
        # What was open belongs to the parent; its connections must not be shared.
        if not self._stopping.is_set():
            self._open.clear()
            if self._claims is not None:
                self._claims.reset()
            self._begin()

    def _end_and_tell(self, span: ReadableSpan) -> None:
        self._open.on_end(span)
        if span.context is not None and span.context.span_id in self._announced:
            self._wake.set()

    def _run(self) -> None:
        stopping, wake = self._stopping, self._wake
        while not stopping.is_set():
            wake.wait(self._period_s)
            wake.clear()
            if stopping.is_set():
                return
            try:
                self.look()
            except Exception:  # telemetry never breaks the application
                _logger.debug("open spans were not announced", exc_info=True)

    def look(self) -> None:
        """Announce what is due and send the heartbeat if it is time."""
        now = time.monotonic()
        if self._claims is not None:
            self._claims.is_alive()
            self._tell_what_ended(self._claims)
        due = [*self._repeats(now), *self._new(now)]
        self._measure()
        if self._journal is not None:
            for entry, span in due:
                if entry.journaled < entry.revision:
                    entry.journaled = entry.revision
                    self._journal.opened(span)
        beats = now >= self._next_heartbeat
        if beats:
            # In step with the clock, but without a burst after the process was suspended.
            self._next_heartbeat = max(self._next_heartbeat + HEARTBEAT_S, now)
            if self._journal is not None:
                self._journal.is_alive(time.time_ns())
        if due or beats:
            self._send(due, self._heartbeat() if beats else None)

    def _repeats(self, now: float) -> list[_Due]:
        """Announced spans that changed, or whose announcement did not get through."""
        due: list[_Due] = []
        room = _MAX_REPEATS
        for span_id, entry in list(self._announced.items()):
            span = entry.reference()
            if span is None or span_id not in self._open:
                del self._announced[span_id]
                continue
            if room and now - entry.at >= REPEAT_AFTER_S:
                entry.at = now
                attributes = _attributes(span)
                if attributes != entry.attributes:
                    entry.attributes = attributes
                    entry.revision += 1
                    room -= 1
            if entry.sent < entry.revision:
                due.append((entry, span))
        return due

    def _new(self, now: float) -> list[_Due]:
        """Spans that have been open for long enough, as far as there is room for them."""
        due: list[_Due] = []
        if len(self._announced) >= MAX_ANNOUNCED and now < self._next_count:
            return due  # nothing can be announced, and walking over many spans is not free
        self._next_count = now + _COUNT_S
        young = unannounced = 0
        wall = time.time_ns()
        for span_id, span in self._open:
            if span_id in self._announced:
                continue
            if wall - (span.start_time or 0) < self._after_ns:
                young += 1
                if young > _MAX_YOUNG:
                    break
            elif len(self._announced) < MAX_ANNOUNCED:
                entry = _Announced(weakref.ref(span), _attributes(span), now)
                self._announced[span_id] = entry
                due.append((entry, span))
            else:
                unannounced += 1
        self._unannounced = unannounced
        return due

    def _measure(self) -> None:
        """Show how much is open, and for how long."""
        _, oldest = next(iter(self._open), (0, None))
        now = time.time_ns()
        metrics.show_open_spans(
            count=len(self._open),
            overdue=sum(entry.is_overdue(now) for entry in list(self._announced.values())),
            oldest=None if oldest is None else (oldest.start_time or 0) / 1e9,
        )

    def _tell_what_ended(self, claims: Claims) -> None:
        """Tell the reaper of lost spans that ended, and, for a journal, of all that did."""
        self._tell(self._ended_of(claims.lost()), given_up=True)
        if self._journal is not None:
            self._tell(self._ended_of(claims.held()), given_up=False)

    def _ended_of(self, spans: Ids) -> Ids:
        return {one: spans[one] for one in spans if one not in self._open}

    def _tell(self, spans: Ids, given_up: bool) -> bool:
        """Send the event `spanloom.span.ended` for spans; whether it was acknowledged."""
        ids = iter(spans.items())
        while batch := dict(islice(ids, _BATCH)):
            records = [_ended(span_id, trace_id, given_up) for span_id, trace_id in batch.items()]
            if not self._export(records):
                return False
            if self._claims is not None:
                self._claims.forget(batch)
        return True

    def _export(self, records: Iterable[LogRecord]) -> bool:
        with self._exporter_lock:
            if not self._has_exporter:
                self._exporter = self._create_exporter()
                self._has_exporter = True
            if self._exporter is None:
                return True
            resource = self._resource()
            with suppress_instrumentation():
                result = self._exporter.export(
                    [ReadableLogRecord(record, resource, _SCOPE) for record in records]
                )
        return result is LogRecordExportResult.SUCCESS

    def _heartbeat(self, *, last: bool = False) -> LogRecord:
        self._sequence += 1
        resource = self._resource().attributes
        listed = [
            span_id
            for span_id, entry in self._announced.items()
            if entry.sent and span_id in self._open
        ]
        if self._claims is not None:
            # Or the reaper would take them for ended in order, before it is told otherwise.
            listed += self._claims.lost().keys() - set(listed)
        attributes: dict[str, Any] = {
            semconv.SPANLOOM_PROCESS_ID: self._process,
            semconv.SERVICE_INSTANCE_ID: resource.get(semconv.SERVICE_INSTANCE_ID, ""),
            semconv.SPANLOOM_HEARTBEAT_SEQUENCE: self._sequence,
            semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS: [*map(trace.format_span_id, listed)],
        }
        left_out = self._unannounced + self._open.untracked
        if left_out:
            attributes[semconv.SPANLOOM_HEARTBEAT_UNANNOUNCED] = left_out
        if last:
            attributes[semconv.SPANLOOM_HEARTBEAT_LAST] = True
        return _event(semconv.EVENT_PROCESS_HEARTBEAT, Context(), attributes)

    def _send(self, due: list[_Due], heartbeat: LogRecord | None) -> None:
        claims = self._claims
        ended: set[int] = set()
        if claims is not None and heartbeat is not None:
            # As the reaper reads it: ended is what it does not list, but for what comes with it.
            ended = claims.held().keys() - _listed_in(heartbeat)
            ended -= {span.context.span_id for _, span in due if span.context is not None}
        first = [] if heartbeat is None else [heartbeat]
        entries = iter(due)
        while (batch := list(islice(entries, _BATCH))) or first:
            if claims is not None:
                claims.announced(
                    {
                        span.context.span_id: span.context.trace_id
                        for _, span in batch
                        if span.context
                    }
                )
            announced = (self._announcement(entry, span) for entry, span in batch)
            if not self._export([*first, *announced]):
                return  # the rest as well stays unsent, and due
            first = []
            for entry, _ in batch:
                entry.sent = entry.revision
            if claims is not None:
                claims.forget(ended)
                claims.is_alive()
                ended = set()

    def _announcement(self, entry: _Announced, span: Span) -> LogRecord:
        copy = clean_span(
            ReadableSpan(span.name, attributes=entry.attributes, resource=Resource.get_empty())
        )
        attributes: dict[str, Any] = {
            semconv.SPANLOOM_SPAN_NAME: cap(copy.name, _TEXT_LIMIT),
            semconv.SPANLOOM_SPAN_KIND: span.kind.name.lower(),
            semconv.SPANLOOM_SPAN_START: span.start_time,
            semconv.SPANLOOM_SPAN_REVISION: entry.revision,
            semconv.SPANLOOM_PROCESS_ID: self._process,
            semconv.SPANLOOM_HEARTBEAT_SEQUENCE: self._sequence,
            semconv.SPANLOOM_SPAN_ATTRIBUTES: {
                key: cap(value, _TEXT_LIMIT) if isinstance(value, str) else value
                for key, value in (copy.attributes or {}).items()
            },
        }
        if span.parent is not None:
            attributes[semconv.SPANLOOM_SPAN_PARENT_ID] = trace.format_span_id(span.parent.span_id)
        if span.instrumentation_scope is not None:
            attributes[semconv.SPANLOOM_SPAN_SCOPE] = span.instrumentation_scope.name
        context = trace.set_span_in_context(NonRecordingSpan(span.get_span_context()), Context())
        return _event(semconv.EVENT_SPAN_OPEN, context, attributes)

    def shutdown(self) -> None:
        """Stop, after a last heartbeat that says so."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        self._thread.join(2 * SEND_TIMEOUT_S)
        if self._thread.is_alive():
            return
        metrics.show_open_spans(count=0, overdue=0, oldest=None)
        try:
            if self._claims is not None:
                self._tell_what_ended(self._claims)
            self._send([], self._heartbeat(last=True))
            if self._exporter is not None:
                self._exporter.shutdown()  # type: ignore[no-untyped-call]
        except Exception:  # telemetry never breaks the application
            _logger.debug("the last heartbeat was not sent", exc_info=True)


def announce_open_spans(
    provider: TracerProvider,
    settings: TelemetrySettings,
    journal: Journal | None,
    claims: Claims | None = None,
) -> None:
    """Install `InFlight` on a provider, unless the settings leave it nothing to do."""

    def create_exporter() -> LogRecordExporter | None:
        exporter: LogRecordExporter | None = create_otlp_exporter(
            "logs", settings, timeout=SEND_TIMEOUT_S
        )
        return exporter

    if settings.enabled and settings.inflight and (journal is not None or create_exporter()):
        provider.add_span_processor(
            InFlight(
                create_exporter,
                lambda: provider.resource,
                after_s=settings.inflight_after_s,
                journal=journal,
                claims=claims,
            )
        )


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return a copy, which is one step under the GIL while the owner may be writing.

    Captured content stays on the span: announcements are logs, which others may read.
    """
    attributes: Any = span.attributes
    copy = {} if attributes is None else dict(attributes.copy())
    for name in semconv.CONTENT_ATTRIBUTES & copy.keys():
        del copy[name]
    return copy


def _listed_in(heartbeat: LogRecord) -> set[int]:
    listed: Any = (heartbeat.attributes or {})[semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS]
    return {int(span_id, 16) for span_id in listed}


def _ended(span_id: int, trace_id: int, given_up: bool) -> LogRecord:
    span = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False))
    attributes = {semconv.SPANLOOM_SPAN_GIVEN_UP: True} if given_up else {}
    return _event(semconv.EVENT_SPAN_ENDED, trace.set_span_in_context(span, Context()), attributes)


def _event(name: str, context: Context, attributes: dict[str, Any]) -> LogRecord:
    now = time.time_ns()
    return LogRecord(
        timestamp=now,
        observed_timestamp=now,
        # An empty context would be taken for none given, and replaced by the current one.
        context=context or trace.set_span_in_context(trace.INVALID_SPAN, Context()),
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        attributes=attributes,
        event_name=name,
    )
