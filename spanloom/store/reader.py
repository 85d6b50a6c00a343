"""The Reader side of the SQLite store."""

import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from spanloom.errors import QueryError
from spanloom.model import (
    LogEvent,
    MetricPoint,
    MetricQuery,
    OpenSpan,
    Operation,
    ProcessState,
    Resource,
    Scope,
    Span,
    SpanKind,
    Trace,
    TraceQuery,
    TraceSummary,
    Usage,
)
from spanloom.model.inflight import LOST_AFTER_MISSES, open_state
from spanloom.otlp.decode import read_log
from spanloom.otlp.metrics import read_points
from spanloom.otlp.values import clean, read_resource, read_scope
from spanloom.store import schema, sql, tags
from spanloom.store.pool import ReaderPool
from spanloom.store.search import last_moment, matching_traces
from spanloom.store.spans import SpanRow, capped, decode_span

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_MAX_CACHED: Final = 10_000


class SqliteReader:
    """Reads a store file; implements `contract.Reader`."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self.path = path
        self._clock = clock
        self._pool = ReaderPool(path)
        # Rows of these tables never change and their ids are never used twice.
        self._resources: dict[int, Resource] = {}
        self._scopes: dict[int, Scope] = {}
        self._tags: dict[tuple[str, int], tags.TagPairs] = {}

    def get_trace(self, trace_id: str) -> Trace | None:
        """See `contract.Reader`."""
        key = _trace_key(trace_id)
        with self._pool.snapshot() as connection:
            row = connection.execute("SELECT id FROM traces WHERE trace_id = ?", (key,)).fetchone()
            trace = self._trace(connection, row[0], trace_id) if row else None
            return trace if trace is not None and trace.all_spans else None

    def get_span(self, trace_id: str, span_id: str) -> Span | None:
        """See `contract.Reader`."""
        key = _trace_key(trace_id)
        if not _SPAN_ID.fullmatch(span_id):
            return None
        with self._pool.snapshot() as connection:
            wanted = {"trace_id": key, "span_id": bytes.fromhex(span_id)}
            row = connection.execute(sql.statement("one_span"), wanted).fetchone()
            row = row or connection.execute(sql.statement("one_open_span"), wanted).fetchone()
            return self._span(connection, trace_id, row) if row else None

    def find_traces(self, query: TraceQuery) -> list[Trace]:
        """See `contract.Reader`."""
        with self._pool.snapshot() as connection:
            traces = []
            for row_id in matching_traces(connection, query, self._shared_tags):
                (key,) = connection.execute(
                    "SELECT trace_id FROM traces WHERE id = ?", (row_id,)
                ).fetchone()
                traces.append(self._trace(connection, row_id, key.hex()))
            return traces

    def find_summaries(self, query: TraceQuery) -> list[TraceSummary]:
        """See `contract.Reader`."""
        with self._pool.snapshot() as connection:
            return [
                _summary(connection, row_id)
                for row_id in matching_traces(connection, query, self._shared_tags)
            ]

    def trace_logs(self, trace_id: str, limit: int = 10_000) -> list[LogEvent]:
        """See `contract.Reader`."""
        parameters = {"trace_id": _trace_key(trace_id), "limit": capped(max(0, limit))}
        with self._pool.snapshot() as connection:
            rows = connection.execute(sql.statement("trace_logs"), parameters).fetchall()
            return [
                read_log(
                    LogRecord.FromString(message),
                    self._resource(connection, resource),
                    self._scope(connection, scope),
                )
                for resource, scope, message in rows
            ]

    def services(self) -> list[str]:
        """See `contract.Reader`."""
        return [name for (name,) in self._rows("services")]

    def operations(self, service: str) -> list[Operation]:
        """See `contract.Reader`."""
        return [
            Operation(name, SpanKind(kind))
            for name, kind in self._rows("operations", service=clean(service))
        ]

    def metric_points(self, query: MetricQuery) -> list[MetricPoint]:
        """See `contract.Reader`."""
        parameters = {
            "name": clean(query.name),
            "service": None if query.service is None else clean(query.service),
            "since": capped(query.start_ns or 0),
            "until": last_moment(query.end_ns),
            "limit": capped(max(0, query.limit)),
        }
        with self._pool.snapshot() as connection:
            points: list[MetricPoint] = []
            for resource, scope, metric, point in connection.execute(
                sql.statement("metric_points"), parameters
            ).fetchall():
                points.extend(
                    read_points(
                        # Two messages in a row are one: the metric, then its point.
                        Metric.FromString(metric + point),
                        self._resource(connection, resource),
                        self._scope(connection, scope),
                    )
                )
            return points

    def metric_names(self, service: str | None = None) -> list[str]:
        """See `contract.Reader`."""
        return [
            name
            for (name,) in self._rows(
                "metric_names", service=None if service is None else clean(service)
            )
        ]

    def processes(self) -> list[ProcessState]:
        """See `contract.InFlight`."""
        with self._pool.snapshot() as connection:
            return sorted(self._processes(connection).values(), key=lambda process: process.key)

    def open_spans(self, process: str, *, min_misses: int = 0, limit: int = 1000) -> list[OpenSpan]:
        """See `contract.InFlight`."""
        parameters = {
            "key": clean(process),
            "min_misses": capped(min_misses),
            "limit": capped(max(0, limit)),
        }
        with self._pool.snapshot() as connection:
            rows = connection.execute(sql.statement("open_of_process"), parameters).fetchall()
            processes = self._processes(connection) if rows else {}
            return [self._open_span(connection, row[0].hex(), row[1:], processes) for row in rows]

    def check_schema(self) -> None:
        """Refuse a file that is not a store of this version; see `schema.check`."""
        with self._pool.snapshot() as connection:
            schema.check(connection, self.path)

    def close(self) -> None:
        """Stop reads in flight and free everything; closing twice is allowed."""
        self._pool.close()

    def _rows(self, statement: str, **parameters: object) -> list[Any]:
        with self._pool.snapshot() as connection:
            return connection.execute(sql.statement(statement), parameters).fetchall()

    def _trace(self, connection: sqlite3.Connection, row_id: int, trace_id: str) -> Trace:
        rows = connection.execute(sql.statement("trace_spans"), {"trace": row_id}).fetchall()
        spans = tuple(self._span(connection, trace_id, row) for row in rows)
        rows = connection.execute(sql.statement("open_in_trace"), {"trace": row_id}).fetchall()
        processes = self._processes(connection) if rows else {}
        return Trace(
            trace_id,
            spans,
            tuple(self._open_span(connection, trace_id, row, processes) for row in rows),
        )

    def _open_span(
        self,
        connection: sqlite3.Connection,
        trace_id: str,
        row: tuple[Any, ...],
        processes: dict[int, ProcessState],
    ) -> OpenSpan:
        *of_span, revision, misses, process_row = row
        process = processes[process_row]
        return OpenSpan(
            span=self._span(connection, trace_id, tuple(of_span)),
            state=open_state(process, misses, self._clock()),
            process=process.key,
            revision=revision,
        )

    def _processes(self, connection: sqlite3.Connection) -> dict[int, ProcessState]:
        rows = connection.execute(
            sql.statement("processes"), {"lost_after": LOST_AFTER_MISSES}
        ).fetchall()
        return {
            row[0]: ProcessState(
                key=row[1],
                time_unix_nano=row[2],
                arrived_unix_nano=row[3] * 1_000_000,
                sequence=row[4],
                ended=bool(row[5]),
                open_spans=row[6],
                lost_spans=row[7],
                most_misses=row[8],
            )
            for row in rows
        }

    def _span(self, connection: sqlite3.Connection, trace_id: str, row: SpanRow) -> Span:
        resource, scope = self._resource(connection, row[7]), self._scope(connection, row[8])
        return decode_span(trace_id, row, resource, scope)

    def _resource(self, connection: sqlite3.Connection, row_id: int) -> Resource:
        found = self._resources.get(row_id)
        if found is None:
            (message,) = connection.execute(
                "SELECT message FROM resources WHERE id = ?", (row_id,)
            ).fetchone()
            header = ResourceSpans.FromString(message)
            found = read_resource(header.resource, header.schema_url)
            _remember(self._resources, row_id, found)
        return found

    def _scope(self, connection: sqlite3.Connection, row_id: int) -> Scope:
        found = self._scopes.get(row_id)
        if found is None:
            (message,) = connection.execute(
                "SELECT message FROM scopes WHERE id = ?", (row_id,)
            ).fetchone()
            header = ScopeSpans.FromString(message)
            found = read_scope(header.scope, header.schema_url)
            _remember(self._scopes, row_id, found)
        return found

    def _shared_tags(
        self, connection: sqlite3.Connection, resource: int, scope: int
    ) -> tuple[tags.TagPairs, ...]:
        of_resource = self._tags.get(("resource", resource))
        if of_resource is None:
            of_resource = tags.pairs(self._resource(connection, resource).attributes)
            _remember(self._tags, ("resource", resource), of_resource)
        of_scope = self._tags.get(("scope", scope))
        if of_scope is None:
            of_scope = tags.pairs(self._scope(connection, scope).attributes)
            _remember(self._tags, ("scope", scope), of_scope)
        return of_resource, of_scope


def _summary(connection: sqlite3.Connection, row_id: int) -> TraceSummary:
    trace = {"trace": row_id}
    trace_id, start, end, spans, errors, input_tokens, output_tokens, cost, open_spans = (
        connection.execute(sql.statement("trace_totals"), trace).fetchone()
    )
    service, name = connection.execute(sql.statement("trace_root"), trace).fetchone()
    services = connection.execute(sql.statement("trace_services"), trace).fetchall()
    return TraceSummary(
        trace_id=trace_id.hex(),
        root_service=service,
        root_name=name,
        start_time_unix_nano=start,
        duration_ns=max(0, end - start),
        span_count=spans,
        error_count=errors,
        services=tuple(each for (each,) in services),
        usage=Usage(input_tokens, output_tokens, cost),
        open_span_count=open_spans,
    )


def _remember(cache: dict[Any, Any], key: object, value: object) -> None:
    if len(cache) >= _MAX_CACHED:
        cache.clear()
    cache[key] = value


def _trace_key(trace_id: str) -> bytes:
    if not _TRACE_ID.fullmatch(trace_id):
        raise QueryError(
            f"{trace_id[:64]!r} is not a trace id; it must be 32 lowercase hex characters."
        )
    return bytes.fromhex(trace_id)
