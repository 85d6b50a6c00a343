"""Batches into rows, inside the writer's transaction."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from spanloom import semconv
from spanloom.contract import Batch
from spanloom.errors import StoreFullError
from spanloom.model import Heartbeat, LogEvent, MetricPoint, Span, SpanEnded, SpanOpened, Usage
from spanloom.model.inflight import EVENTS, read_event
from spanloom.otlp.encode import traces_to_message, write_log
from spanloom.otlp.metrics import write_point
from spanloom.otlp.values import clean
from spanloom.store import tags
from spanloom.store.inflight import OpenSpanTable
from spanloom.store.interning import (
    InternedOperation,
    InternedResource,
    InternedScope,
    Interning,
    digest,
)
from spanloom.store.references import References
from spanloom.store.spans import capped, encode_details

BLOCK_BITS: Final = 10
"""A block is 2**10 spans: at 10 M spans 10,000 blocks, each probed in microseconds."""

MAX_OUTBOX: Final = 100_000
"""Spans that may wait to be handed on."""
_MAX_CACHED_TRACES: Final = 20_000
_ARRIVAL_STEP_MS: Final = 1000
_MAX_TOKENS: Final = 10**12
"""Far over any model's context, so that a foreign number cannot make sums overflow."""

_INSERT_SPAN: Final = (
    "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (trace, span_id) DO NOTHING"
)


@dataclass(slots=True)
class _Row:
    """A span on its way into the table."""

    trace: int
    span_id: bytes
    parent: bytes | None
    operation: InternedOperation
    resource: InternedResource
    scope: InternedScope
    start: int
    end: int
    status: int
    incomplete: bool
    usage: tuple[int | None, int | None, float | None]
    details: bytes
    hashes: set[int]
    """Tags of the span alone; those of operation, resource and scope come on top."""

    def values(self, row_id: int) -> tuple[object, ...]:
        return (
            row_id,
            self.trace,
            self.span_id,
            self.parent,
            self.operation.id,
            self.resource.id,
            self.scope.id,
            self.start,
            self.end,
            self.status,
            self.incomplete,
            *self.usage,
            self.details,
        )


_Key: TypeAlias = tuple[int, bytes]
_Values = TypeVar("_Values", bound=tuple[object, ...])


@dataclass(slots=True)
class _Block:
    """What the rows of one block add to it."""

    starts: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    hashes: set[int] = field(default_factory=set)
    shared: set[tuple[int, frozenset[int], frozenset[int]]] = field(default_factory=set)

    def all_hashes(self) -> set[int]:
        for operation, resource, scope in self.shared:
            self.hashes.add(operation)
            self.hashes |= resource
            self.hashes |= scope
        return self.hashes


class Ingest:
    """Writes batches. Each call must run in a transaction; after a rollback call `forget`."""

    def __init__(self, connection: sqlite3.Connection, *, no_ends: bool = False) -> None:
        self._connection = connection
        self._references = References(connection)
        self._interning = Interning(connection, self._references)
        self._open_spans = OpenSpanTable(connection, self._references, no_ends=no_ends)
        self._no_ends = no_ends
        self._traces: dict[bytes, tuple[int, int]] = {}
        self._next_span = 0
        self._open_block: tuple[int, set[int]] = (-1, set())
        self.forget()

    def forget(self) -> None:
        """Drop whatever is remembered of the tables and read it again when needed."""
        self._interning.forget()
        self._open_spans.forget()
        self._traces.clear()
        self._open_block = (-1, set())
        (last,) = self._connection.execute("SELECT max(id) FROM spans").fetchone()
        self._next_span = (last or 0) + 1

    def apply(self, batch: Batch, now_ms: int) -> None:
        """Store a batch that arrived at `now_ms` (milliseconds since the Unix epoch)."""
        self._interning.start_batch()
        if batch.spans:
            spans = self._post(batch.spans) if self._no_ends else batch.spans
            if spans:
                self._add_spans(spans, now_ms)
        if batch.delivered:
            self._forget_delivered(batch.delivered)
        if batch.logs:
            self._note_in_flight(batch.logs, now_ms)
            self._add_logs(
                [event for event in batch.logs if event.event_name not in EVENTS], now_ms
            )
        if batch.metrics:
            self._add_points(batch.metrics, now_ms)

    def _add_spans(self, spans: Sequence[Span], now_ms: int) -> None:
        rows = [self._row(span, now_ms) for span in spans]
        # Nearly always all rows are new, and one statement finds that out while inserting.
        self._connection.execute("SAVEPOINT new_spans")
        inserted = self._insert(rows)
        if inserted < len(rows):
            self._connection.execute("ROLLBACK TO new_spans")
            rows = self._superseding(rows)
            self._insert(rows)
        self._connection.execute("RELEASE new_spans")
        self._open_spans.ended((row.trace, row.span_id) for row in rows)
        self._add_to_blocks(rows)
        self._count_operations(Counter(row.operation.id for row in rows))
        self._references.add_rows((row.resource.id, row.scope.id) for row in rows)
        self._count("spans", len(rows))
        self._next_span += len(rows)

    def _post(self, spans: Sequence[Span]) -> list[Span]:
        """Put spans into the outbox; those that were not in it before, ever."""
        new = [span for span in spans if not self._is_stored(span)]
        (waiting,) = self._connection.execute(
            "SELECT count FROM row_counts WHERE name = 'outbox'"
        ).fetchone()
        if waiting + len(new) > MAX_OUTBOX:
            raise StoreFullError(
                f"{waiting} ended spans wait for the Collector, the outbox takes {MAX_OUTBOX}; "
                "the others stay open until it has taken some."
            )
        self._connection.executemany(
            "INSERT INTO outbox (message) VALUES (?)",
            [(traces_to_message([span]).SerializeToString(deterministic=True),) for span in new],
        )
        self._count("outbox", len(new))
        return new

    def _is_stored(self, span: Span) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM spans JOIN traces ON traces.id = spans.trace "
            "WHERE traces.trace_id = ? AND spans.span_id = ?",
            (bytes.fromhex(span.trace_id), bytes.fromhex(span.span_id)),
        ).fetchone()
        return found is not None

    def _forget_delivered(self, ids: Sequence[int]) -> None:
        deleted = self._connection.executemany(
            "DELETE FROM outbox WHERE id = ?", [(one,) for one in ids]
        ).rowcount
        self._count("outbox", -deleted)

    def _row(self, span: Span, now_ms: int) -> _Row:
        resource = self._interning.resource(span.resource)
        scope = self._interning.scope(span.scope)
        name = clean(span.name)
        kind = span.kind.value
        return _Row(
            trace=self._trace(bytes.fromhex(span.trace_id), now_ms),
            span_id=bytes.fromhex(span.span_id),
            parent=bytes.fromhex(span.parent_span_id) or None,
            operation=self._interning.operation(resource.service, name, kind),
            resource=resource,
            scope=scope,
            start=capped(span.start_time_unix_nano),
            end=capped(span.end_time_unix_nano),
            status=span.status.code.value,
            incomplete=span.attributes.get(semconv.SPANLOOM_INCOMPLETE) is True,
            usage=_usage(span),
            details=encode_details(span),
            hashes=tags.span_hashes(span),
        )

    def _trace(self, trace_id: bytes, now_ms: int) -> int:
        known = self._traces.get(trace_id)
        if known is None:
            known = self._connection.execute(
                "SELECT id, arrived_ms FROM traces WHERE trace_id = ?", (trace_id,)
            ).fetchone()
        if known is None:
            number = self._connection.execute(
                "INSERT INTO traces (trace_id, arrived_ms) VALUES (?, ?)", (trace_id, now_ms)
            ).lastrowid
            assert number is not None
            self._count("traces", 1)
            known = (number, now_ms)
        elif now_ms - known[1] >= _ARRIVAL_STEP_MS:
            self._connection.execute(
                "UPDATE traces SET arrived_ms = ? WHERE id = ?", (now_ms, known[0])
            )
            known = (known[0], now_ms)
        if len(self._traces) >= _MAX_CACHED_TRACES:
            self._traces.clear()
        self._traces[trace_id] = known
        return known[0]

    def _insert(self, rows: Sequence[_Row]) -> int:
        first = self._next_span
        return self._connection.executemany(
            _INSERT_SPAN, [row.values(first + index) for index, row in enumerate(rows)]
        ).rowcount

    def _superseding(self, rows: Sequence[_Row]) -> list[_Row]:
        """The rows that are to stand; older ones they take the place of are deleted.

        The later arrival wins, but an incomplete span never replaces one that is complete.
        """
        latest: dict[_Key, _Row] = {}
        for row in rows:
            rival = latest.get((row.trace, row.span_id))
            if rival is None or rival.incomplete or not row.incomplete:
                latest[row.trace, row.span_id] = row
        standing: list[_Row] = []
        for (trace, span_id), row in latest.items():
            old = self._connection.execute(
                "SELECT id, operation, resource, scope, incomplete FROM spans "
                "WHERE trace = ? AND span_id = ?",
                (trace, span_id),
            ).fetchone()
            if old is not None:
                old_id, operation, resource, scope, old_incomplete = old
                if row.incomplete and not old_incomplete:
                    continue
                self._connection.execute("DELETE FROM spans WHERE id = ?", (old_id,))
                self._count_operations({operation: -1})
                self._references.add_rows([(resource, scope)], sign=-1)
                self._count("spans", -1)
            standing.append(row)
        return standing

    def _add_to_blocks(self, rows: Sequence[_Row]) -> None:
        blocks: dict[int, _Block] = {}
        for index, row in enumerate(rows):
            block = blocks.setdefault((self._next_span + index) >> BLOCK_BITS, _Block())
            block.starts.append(row.start)
            block.durations.append(max(0, row.end - row.start))
            block.hashes |= row.hashes
            block.shared.add((row.operation.hash, row.resource.hashes, row.scope.hashes))
        for number, block in blocks.items():
            self._connection.execute(
                "INSERT INTO blocks VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "min_start = min(min_start, excluded.min_start), "
                "max_start = max(max_start, excluded.max_start), "
                "min_duration = min(min_duration, excluded.min_duration), "
                "max_duration = max(max_duration, excluded.max_duration)",
                (
                    number,
                    min(block.starts),
                    max(block.starts),
                    min(block.durations),
                    max(block.durations),
                ),
            )
            if self._open_block[0] != number:
                self._open_block = (number, set())
            stored = self._open_block[1]
            hashes = block.all_hashes()
            # Sorted, so that they go into the index in its own order.
            self._connection.executemany(
                "INSERT INTO block_tags VALUES (?, ?) ON CONFLICT DO NOTHING",
                [(number, tag) for tag in sorted(hashes - stored)],
            )
            stored |= hashes

    def _note_in_flight(self, events: Sequence[LogEvent], now_ms: int) -> None:
        # In a list, so that the scopes made here keep their identity while it is asked for.
        notes = [read_event(event) for event in events if event.event_name in EVENTS]
        left: set[int] = set()
        for note in notes:
            if isinstance(note, Heartbeat):
                left |= self._open_spans.beat(note, now_ms)
            elif isinstance(note, SpanOpened) and self._open_spans.has_room():
                row = self._row(note.span, now_ms)
                self._open_spans.opened(row, note, now_ms)
                left.add(row.trace)
            elif isinstance(note, SpanEnded) and self._no_ends:  # elsewhere the end itself comes
                trace = self._trace(bytes.fromhex(note.trace_id), now_ms)
                key = (trace, bytes.fromhex(note.span_id))
                if note.given_up:
                    self._open_spans.given_up(key, capped(note.time_unix_nano))
                else:
                    self._open_spans.ended([key])
                left.add(trace)
        self._interning.start_batch()
        if self._no_ends:
            self._drop_empty(left)

    def _drop_empty(self, traces: Iterable[int]) -> None:
        """Delete those of the traces that have no span left: in time that would be all."""
        for trace in traces:
            gone = self._connection.execute(
                "DELETE FROM traces WHERE id = ?1 "
                "AND NOT EXISTS (SELECT 1 FROM open_spans WHERE trace = ?1) "
                "AND NOT EXISTS (SELECT 1 FROM spans WHERE trace = ?1) RETURNING trace_id",
                (trace,),
            ).fetchall()
            for (trace_id,) in gone:
                self._traces.pop(trace_id, None)
            self._count("traces", -len(gone))

    def _add_logs(self, events: Sequence[LogEvent], now_ms: int) -> None:
        rows = []
        for event in events:
            resource = self._interning.resource(event.resource)
            scope = self._interning.scope(event.scope)
            record = LogRecord()
            write_log(record, event)
            message = record.SerializeToString()
            rows.append(
                (
                    bytes.fromhex(event.trace_id) or None,
                    capped(event.timestamp_ns),
                    now_ms,
                    event.event_name.startswith(semconv.SPANLOOM_EVENT_PREFIX),
                    resource.id,
                    scope.id,
                    digest(
                        resource.id.to_bytes(8, "little"), scope.id.to_bytes(8, "little"), message
                    ),
                    message,
                )
            )
        new = self._insert_new(
            "INSERT INTO logs (trace_id, time, arrived_ms, internal, resource, scope, digest, "
            "message) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )
        self._references.add_rows((row[4], row[5]) for row in new)
        self._count("logs", len(new))

    def _add_points(self, points: Sequence[MetricPoint], now_ms: int) -> None:
        rows = []
        for point in points:
            metric = Metric()
            write_point(metric, point)
            message = metric.SerializeToString()
            rows.append(
                (
                    self._interning.metric(point),
                    capped(point.time_unix_nano),
                    now_ms,
                    digest(message, size=8),
                    message,
                )
            )
        new = self._insert_new(
            "INSERT INTO metric_points (metric, time, arrived_ms, digest, message) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )
        self._references.add_points(row[0] for row in new)
        self._count("metric_points", len(new))

    def _insert_new(self, statement: str, rows: Sequence[_Values]) -> list[_Values]:
        """Insert rows, each of which may be there already; those that were not."""
        return [row for row in rows if self._connection.execute(statement, row).rowcount]

    def _count_operations(self, changes: "Counter[int] | dict[int, int]") -> None:
        self._connection.executemany(
            "UPDATE operations SET span_count = span_count + ? WHERE id = ?",
            [(change, operation) for operation, change in changes.items()],
        )

    def _count(self, name: str, change: int) -> None:
        if change:
            self._connection.execute(
                "UPDATE row_counts SET count = count + ? WHERE name = ?", (change, name)
            )


def _usage(span: Span) -> tuple[int | None, int | None, float | None]:
    usage = Usage.of_span(span)
    return (
        min(usage.input_tokens, _MAX_TOKENS) or None,
        min(usage.output_tokens, _MAX_TOKENS) or None,
        usage.cost_usd,
    )
