"""Spans that have not ended: tables of their own, written in the writer's transactions.

    announcement ─▶ open_spans ─┐
                                ├─▶ a final span takes the open one's place
    final span ─────────────────┘

Neither announcements nor heartbeats are kept as log records: a process sends some every second.

Behind a Collector no final span is ever seen (`no_ends`). There a span is open as long as the
heartbeats that came after its announcement list it, and forgotten with the first that does not, or
when its process says that it ended. What the process gives up is kept, and lost.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from spanloom.model import Heartbeat, SpanOpened
from spanloom.otlp.values import clean
from spanloom.store.references import References
from spanloom.store.spans import capped

MAX_OPEN_SPANS: Final = 50_000
"""Open spans of all processes; the announcement of another one is refused, and counted."""
MAX_PROCESSES: Final = 10_000
_GIVEN_UP: Final = 1_000_000
"""Misses of a span that its process gave up: more than anybody waits for."""
_KEPT_MS: Final = 60_000
"""How long a process without open spans is remembered after its last sign of life."""

_Key: TypeAlias = tuple[int, bytes]

_UPSERT_SPAN: Final = (
    "INSERT INTO open_spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL, ?) "
    "ON CONFLICT (trace, span_id) DO UPDATE SET parent_span_id = excluded.parent_span_id, "
    "operation = excluded.operation, resource = excluded.resource, scope = excluded.scope, "
    "start_time = excluded.start_time, input_tokens = excluded.input_tokens, "
    "output_tokens = excluded.output_tokens, cost_usd = excluded.cost_usd, "
    "details = excluded.details, process = excluded.process, revision = excluded.revision, "
    "heartbeat = excluded.heartbeat"
)


class _Id(Protocol):
    @property
    def id(self) -> int: ...


class OpenRow(Protocol):
    """What is needed of a span on its way into a table."""

    trace: int
    span_id: bytes
    parent: bytes | None
    start: int
    usage: tuple[int | None, int | None, float | None]
    details: bytes

    @property
    def operation(self) -> _Id:
        """The span's name."""

    @property
    def resource(self) -> _Id:
        """Who produced it."""

    @property
    def scope(self) -> _Id:
        """Which library produced it."""


class OpenSpanTable:
    """Keeps the tables. Each call must run in a transaction; after a rollback call `forget`."""

    def __init__(
        self, connection: sqlite3.Connection, references: References, *, no_ends: bool
    ) -> None:
        self._connection = connection
        self._references = references
        self._no_ends = no_ends
        # None: not read yet. A busy server asks for each span whether it was open.
        self._open: set[_Key] | None = None

    def forget(self) -> None:
        """Read again what is open when it is needed."""
        self._open = None

    def has_room(self) -> bool:
        """Whether one more span may be open; each call that says no is counted."""
        if len(self._known()) < MAX_OPEN_SPANS:
            return True
        self._count("open_spans_refused", 1)
        return False

    def opened(self, row: OpenRow, event: SpanOpened, now_ms: int) -> None:
        """Note an announcement, unless a later one is known or the span has ended."""
        process = self._sign_of_life(event.process, capped(event.span.end_time_unix_nano), now_ms)
        if process is None or self._has_ended(row) or self._came_late(process, row, event):
            return
        key = (row.trace, row.span_id)
        if key in self._known():
            old = self._connection.execute(
                "SELECT revision, operation, resource, scope FROM open_spans "
                "WHERE trace = ? AND span_id = ?",
                key,
            ).fetchone()
            if old[0] > event.revision:
                return
            self._uncount([old[1:]])
        else:
            self._known().add(key)
            self._count("open_spans", 1)
        self._connection.execute(
            _UPSERT_SPAN,
            (
                *key,
                row.parent,
                row.operation.id,
                row.resource.id,
                row.scope.id,
                row.start,
                *row.usage,
                row.details,
                process,
                capped(event.revision),
                capped(event.heartbeat or 0),
            ),
        )
        self._count_operation(row.operation.id, 1)
        self._references.add_rows([(row.resource.id, row.scope.id)])

    def beat(self, heartbeat: Heartbeat, now_ms: int) -> set[int]:
        """Note a heartbeat and which spans it no longer lists; an older one is ignored.

        Returns the traces of which it made spans forgotten.
        """
        time = capped(heartbeat.time_unix_nano)
        sequence = capped(heartbeat.sequence)
        known = self._connection.execute(
            "SELECT id, time, sequence FROM processes WHERE key = ?", (clean(heartbeat.process),)
        ).fetchone()
        # Either may run backwards in order: the clock is set, a forked process counts anew.
        if known is not None and sequence <= known[2] and time <= known[1]:
            return set()
        process = self._sign_of_life(heartbeat.process, time, now_ms)
        if process is None:
            return set()
        self._connection.execute(
            "UPDATE processes SET time = ?, sequence = ?, ended = ? WHERE id = ?",
            (time, sequence, heartbeat.last, process),
        )
        if self._no_ends:
            return self._forget_all_but(heartbeat, process, sequence)
        changes: list[tuple[int, int | None, int, bytes]] = []
        for trace, span_id, misses in self._connection.execute(
            "SELECT trace, span_id, misses FROM open_spans WHERE process = ?", (process,)
        ):
            if span_id.hex() not in heartbeat.open_spans:
                changes.append((misses + 1, time, trace, span_id))
            elif misses:
                changes.append((0, None, trace, span_id))
        self._connection.executemany(
            "UPDATE open_spans SET misses = ?1, missing_since = "
            "CASE WHEN ?1 > 1 THEN missing_since ELSE ?2 END WHERE trace = ?3 AND span_id = ?4",
            changes,
        )
        return set()

    def _forget_all_but(self, heartbeat: Heartbeat, process: int, sequence: int) -> set[int]:
        # Kept for announcements that come later than the heartbeats after them.
        listed = b"".join(bytes.fromhex(span_id) for span_id in heartbeat.open_spans)
        self._connection.execute("UPDATE processes SET listed = ? WHERE id = ?", (listed, process))
        rows = self._connection.execute(
            "SELECT trace, span_id FROM open_spans "
            "WHERE process = ? AND heartbeat < ? AND misses = 0",
            (process, sequence),
        ).fetchall()
        gone = [key for key in rows if key[1].hex() not in heartbeat.open_spans]
        self.ended(gone)
        return {trace for trace, _ in gone}

    def _came_late(self, process: int, row: OpenRow, event: SpanOpened) -> bool:
        """Whether a heartbeat that came before this announcement knows that the span ended."""
        if not self._no_ends or event.heartbeat is None:
            return False
        sequence, listed = self._connection.execute(
            "SELECT sequence, listed FROM processes WHERE id = ?", (process,)
        ).fetchone()
        return event.heartbeat < sequence and row.span_id not in {
            listed[start : start + 8] for start in range(0, len(listed), 8)
        }

    def given_up(self, key: _Key, time: int) -> None:
        """Nobody else ends a span: it is as lost as one can be, since `time`."""
        self._connection.execute(
            "UPDATE open_spans SET misses = ?, missing_since = ? WHERE trace = ? AND span_id = ?",
            (_GIVEN_UP, time, *key),
        )

    def ended(self, keys: Iterable[_Key]) -> None:
        """Spans came to their end: they are open no longer."""
        known = self._known()
        if not known:
            return
        for key in keys:
            if key in known:
                known.remove(key)
                gone = self._connection.execute(
                    "DELETE FROM open_spans WHERE trace = ? AND span_id = ? "
                    "RETURNING operation, resource, scope",
                    key,
                ).fetchall()
                self._uncount(gone)
                self._count("open_spans", -len(gone))

    def _known(self) -> set[_Key]:
        if self._open is None:
            rows = self._connection.execute("SELECT trace, span_id FROM open_spans")
            self._open = set(rows.fetchall())
        return self._open

    def _has_ended(self, row: OpenRow) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM spans WHERE trace = ? AND span_id = ?", (row.trace, row.span_id)
        ).fetchone()
        return found is not None

    def _sign_of_life(self, key: str, time: int, now_ms: int) -> int | None:
        """The row of a process that was just heard of; None where there are too many."""
        key = clean(key)
        row = self._connection.execute(
            "UPDATE processes SET arrived_ms = ?, time = max(time, ?) WHERE key = ? RETURNING id",
            (now_ms, time, key),
        ).fetchall()
        if row:
            return int(row[0][0])
        (count,) = self._connection.execute("SELECT count(*) FROM processes").fetchone()
        if count >= MAX_PROCESSES:
            return None
        return self._connection.execute(
            "INSERT INTO processes (key, time, arrived_ms, sequence, ended) VALUES (?, ?, ?, 0, 0)",
            (key, time, now_ms),
        ).lastrowid

    def _uncount(self, rows: Sequence[tuple[int, int, int]]) -> None:
        for operation, resource, scope in rows:
            self._count_operation(operation, -1)
            self._references.add_rows([(resource, scope)], sign=-1)

    def _count_operation(self, operation: int, change: int) -> None:
        self._connection.execute(
            "UPDATE operations SET span_count = span_count + ? WHERE id = ?", (change, operation)
        )

    def _count(self, name: str, change: int) -> None:
        self._connection.execute(
            "UPDATE row_counts SET count = count + ? WHERE name = ?", (change, name)
        )


def delete_idle_processes(connection: sqlite3.Connection, now_ms: int) -> None:
    """Forget processes that are silent and have nothing open, in a transaction of the caller's."""
    connection.execute(
        "DELETE FROM processes WHERE arrived_ms < ? "
        "AND NOT EXISTS (SELECT 1 FROM open_spans WHERE process = processes.id)",
        (now_ms - _KEPT_MS,),
    )
