"""Deleting what is too old or too much, in steps small enough to run between two commits.

Age is counted from arrival, because old timestamps are legal: an import of last year's traces
stays as long as anything else that came in today. A trace goes as a whole, once its latest
span has been here for too long.
"""

import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from spanloom.store.inflight import delete_idle_processes
from spanloom.store.ingest import BLOCK_BITS
from spanloom.store.references import References

_SPANS_PER_STEP: Final = 2000
_ROWS_PER_STEP: Final = 2000
_PAGES_PER_STEP: Final = 500
_SPARE_PAGES: Final = 128
"""Free pages that stay for what comes in next."""
_SLICES: Final = 50


@dataclass(frozen=True, slots=True)
class Retention:
    """How long and how much to keep; None is no limit.

    `max_age_s` are seconds since arrival, `max_bytes` the pages in use, indexes included.
    """

    max_age_s: float | None = 7 * 24 * 3600.0
    max_bytes: int | None = 10_000_000_000


class Sweeper:
    """Applies a Retention on the writer's connection."""

    def __init__(self, connection: sqlite3.Connection, retention: Retention) -> None:
        self._connection = connection
        self._retention = retention
        self._references = References(connection)

    def delete_some(self, now_ms: int) -> bool:
        """Delete a little, in a transaction of the caller's. True if there may be more to do.

        Row ids that were deleted may be given out again.
        """
        delete_idle_processes(self._connection, now_ms)
        cutoff_ms = self._cutoff_ms(now_ms)
        if cutoff_ms is None:
            return False
        more = self._delete_traces(cutoff_ms)
        logs = self._delete_rows("logs", "resource, scope", cutoff_ms)
        self._references.add_rows(logs, sign=-1)
        points = self._delete_rows("metric_points", "metric", cutoff_ms)
        self._references.add_points((metric for (metric,) in points), sign=-1)
        unused = self._references.delete_unused()
        unused |= bool(
            self._connection.execute("DELETE FROM operations WHERE span_count = 0").rowcount
        )
        return more or bool(logs) or bool(points) or unused

    def give_pages_back(self) -> bool:
        """Shrink the file a little, outside of any transaction. True if there is more to do."""
        free = int(self._connection.execute("PRAGMA freelist_count").fetchone()[0])
        if free <= _SPARE_PAGES:
            return False
        # Not execute(): it stops after the first step, which frees one page.
        pages = min(_PAGES_PER_STEP, free - _SPARE_PAGES)
        self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        return free - pages > _SPARE_PAGES

    def _cutoff_ms(self, now_ms: int) -> int | None:
        """Everything that arrived before this may go; None if nothing needs to."""
        cutoffs = []
        if self._retention.max_age_s is not None:
            cutoffs.append(now_ms - int(self._retention.max_age_s * 1000))
        if self._retention.max_bytes is not None and self._used_bytes() > self._retention.max_bytes:
            oldest = self._oldest_arrival_ms()
            if oldest is not None:
                # A slice of the time covered, so that deleting keeps up with any inflow.
                cutoffs.append(oldest + 1 + max(0, now_ms - oldest) // _SLICES)
        return max(cutoffs, default=None)

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _oldest_arrival_ms(self) -> int | None:
        rows = [
            self._connection.execute(statement).fetchone()
            for statement in (
                "SELECT arrived_ms FROM traces ORDER BY arrived_ms LIMIT 1",
                "SELECT arrived_ms FROM logs ORDER BY id LIMIT 1",
                "SELECT arrived_ms FROM metric_points ORDER BY id LIMIT 1",
            )
        ]
        return min((row[0] for row in rows if row is not None), default=None)

    def _delete_traces(self, cutoff_ms: int) -> bool:
        traces = self._connection.execute(
            "SELECT id FROM traces WHERE arrived_ms < ? ORDER BY arrived_ms, id LIMIT ?",
            (cutoff_ms, _SPANS_PER_STEP),
        ).fetchall()
        deleted = gone = 0
        shared: Counter[tuple[int, int]] = Counter()
        blocks: set[int] = set()
        for (trace,) in traces:
            rows = self._connection.execute(
                "DELETE FROM spans WHERE trace = ? RETURNING id, operation, resource, scope",
                (trace,),
            ).fetchall()
            still_open = self._connection.execute(
                "DELETE FROM open_spans WHERE trace = ? RETURNING NULL, operation, resource, scope",
                (trace,),
            ).fetchall()
            self._count("open_spans", -len(still_open))
            self._connection.execute("DELETE FROM traces WHERE id = ?", (trace,))
            self._connection.executemany(
                "UPDATE operations SET span_count = span_count - 1 WHERE id = ?",
                [(operation,) for _, operation, _, _ in (*rows, *still_open)],
            )
            shared.update((resource, scope) for _, _, resource, scope in (*rows, *still_open))
            blocks.update(row[0] >> BLOCK_BITS for row in rows)
            deleted += len(rows)
            gone += 1
            if deleted >= _SPANS_PER_STEP:
                break
        self._references.add_rows(shared.elements(), sign=-1)
        self._count("spans", -deleted)
        self._count("traces", -gone)
        self._delete_empty_blocks(blocks)
        return gone > 0

    def _delete_empty_blocks(self, blocks: set[int]) -> None:
        for block in blocks:
            bounds = (block << BLOCK_BITS, ((block + 1) << BLOCK_BITS) - 1)
            if not self._connection.execute(
                "SELECT 1 FROM spans WHERE id BETWEEN ? AND ? LIMIT 1", bounds
            ).fetchone():
                self._connection.execute("DELETE FROM block_tags WHERE block = ?", (block,))
                self._connection.execute("DELETE FROM blocks WHERE id = ?", (block,))

    def _delete_rows(self, table: str, returned: str, cutoff_ms: int) -> list[Any]:
        # Only the oldest rows are looked at: they are in order of arrival.
        deleted = self._connection.execute(
            f"DELETE FROM {table} WHERE id IN ("  # noqa: S608 - one of our two table names
            f"SELECT id FROM (SELECT id, arrived_ms FROM {table} ORDER BY id LIMIT ?) "
            f"WHERE arrived_ms < ?) RETURNING {returned}",
            (_ROWS_PER_STEP, cutoff_ms),
        ).fetchall()
        self._count(table, -len(deleted))
        return deleted

    def _count(self, name: str, change: int) -> None:
        self._connection.execute(
            "UPDATE row_counts SET count = count + ? WHERE name = ?", (change, name)
        )
