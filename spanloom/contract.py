"""The storage contract: what every store and every source promises.

One suite (`tests/store/contract_suite.py`) proves each implementation.

Common to both sides:

- All methods are blocking and safe to call from several threads at once.
- An unknown trace id, service or metric is not an error: the answer is None or empty.
- A trace id is 32 lowercase hex characters; anything else raises QueryError.
- After close() every call raises StoreClosedError.

Spans that have not ended are known from the log events `spanloom.span.open` and
`spanloom.process.heartbeat`. A Writer keeps these as states instead of records: the latest
announcement of each open span until its end arrives, incomplete ends included, and the latest
heartbeat of each process. They survive what spans survive, and never stand beside a finished
span of the same id. Searches find them like finished ones, as long as they are known to have run.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from spanloom.model import (
    LogEvent,
    MetricPoint,
    MetricQuery,
    OpenSpan,
    Operation,
    ProcessState,
    Span,
    Trace,
    TraceQuery,
    TraceSummary,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one OTLP request carried; any part may be empty."""

    spans: Sequence[Span] = ()
    logs: Sequence[LogEvent] = ()
    metrics: Sequence[MetricPoint] = ()
    delivered: Sequence[int] = ()
    """Ids of `Outgoing` that the other side has, or will never take."""

    def __len__(self) -> int:
        return len(self.spans) + len(self.logs) + len(self.metrics)


@runtime_checkable
class Reader(Protocol):
    """Reading. What a Writer has acknowledged is seen by the next call."""

    def get_trace(self, trace_id: str) -> Trace | None:
        """All spans of one trace, open ones too, or None where not one is stored."""

    def get_span(self, trace_id: str, span_id: str) -> Span | None:
        """One span, without reading the rest of its trace; None for any id that is not stored.

        An open one is marked `spanloom.in_flight`, see `OpenSpan`.
        """

    def find_traces(self, query: TraceQuery) -> list[Trace]:
        """Whole traces that match, newest first (for APIs that return spans)."""

    def find_summaries(self, query: TraceQuery) -> list[TraceSummary]:
        """The same traces in the same order, one line each, without reading every attribute."""

    def trace_logs(self, trace_id: str, limit: int = 10_000) -> list[LogEvent]:
        """Log records that name this trace, oldest first, `spanloom.*` events left out."""

    def services(self) -> list[str]:
        """Names of all services that have spans, sorted."""

    def operations(self, service: str) -> list[Operation]:
        """Distinct span names and kinds of a service, sorted by name, then kind."""

    def metric_points(self, query: MetricQuery) -> list[MetricPoint]:
        """Points of one metric, oldest first."""

    def metric_names(self, service: str | None = None) -> list[str]:
        """Names of all metrics that have points, sorted."""

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""


@runtime_checkable
class InFlight(Protocol):
    """Reading what has not ended, process by process, as the reaper does."""

    def processes(self) -> list[ProcessState]:
        """Every process that announced spans or sent heartbeats lately, by key."""

    def open_spans(self, process: str, *, min_misses: int = 0, limit: int = 1000) -> list[OpenSpan]:
        """Open spans of a process that its latest `min_misses` heartbeats did not list."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A span on its way to another backend: an OTLP TracesData message with nothing else in it.

    It is the same bytes however often it is sent, and messages joined end to end are one message.
    """

    id: int
    message: bytes


@runtime_checkable
class Outbox(Protocol):
    """Spans that a store without ends (`no_ends`) is to hand on, until they are `delivered`."""

    def outgoing(self, limit: int, max_bytes: int) -> list[Outgoing]:
        """The oldest, one at least if there is any, and no more than fit both limits."""


@runtime_checkable
class Writer(Protocol):
    """Writing.

    - submit() never blocks on the disk: it queues, or raises StoreFullError at once when the
      bounded queue is full. Nothing of a refused batch is stored.
    - The future resolves once the batch survives kill -9 of this process. It fails with
      StoreFullError (disk full, try again later) or another StoreError; then nothing of the
      batch is stored and the writer stays usable.
    - Writing is idempotent, because OTLP clients retry: the same span or log record twice is
      stored once. Where two spans share trace and span id the later arrival wins, except that
      one marked `spanloom.incomplete` never replaces one that is not.
    """

    def submit(self, batch: Batch) -> "Future[None]":
        """Queue a batch; see the class for what the future promises."""

    def close(self) -> None:
        """Store what is queued, then free everything. Closing twice is allowed."""
