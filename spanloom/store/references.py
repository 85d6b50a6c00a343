"""Who still needs what many rows share: resources, scopes, metrics, services.

    spans ──┐
    logs ───┼──▶ resources.row_count, scopes.row_count ──▶ services
    metrics ┘
    metric_points ──▶ metrics.point_count

Each start of a process brings a resource of its own, so these tables would grow for ever if
retention deleted only what refers to them.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

_ROWS_PER_STEP: Final = 2000


class References:
    """Keeps the counts, inside the writer's transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add_rows(self, shared: Iterable[tuple[int, int]], *, sign: int = 1) -> None:
        """Rows came, or with a sign of -1 went: the (resource, scope) of each."""
        changes = Counter(shared)
        for table, column in (("resources", 0), ("scopes", 1)):
            totals: Counter[int] = Counter()
            for pair, rows in changes.items():
                totals[pair[column]] += sign * rows
            self._add(table, "row_count", totals)

    def add_points(self, metrics: Iterable[int], *, sign: int = 1) -> None:
        """Points came, or with a sign of -1 went: the metric of each."""
        totals = {metric: sign * points for metric, points in Counter(metrics).items()}
        self._add("metrics", "point_count", totals)

    def delete_unused(self) -> bool:
        """Delete some of what nothing refers to; whether anything was deleted."""
        metrics = self._delete("metrics", "point_count", "resource, scope")
        self.add_rows(metrics, sign=-1)
        scopes = self._delete("scopes", "row_count", "id")
        services = self._delete("resources", "row_count", "service")
        self._connection.executemany(
            "DELETE FROM services WHERE id = ? "
            "AND NOT EXISTS (SELECT 1 FROM resources WHERE service = services.id)",
            set(services),  # each is a row of one column
        )
        return bool(metrics or scopes or services)

    def _add(self, table: str, column: str, changes: "Counter[int] | dict[int, int]") -> None:
        self._connection.executemany(
            f"UPDATE {table} SET {column} = {column} + ? WHERE id = ?",  # noqa: S608 - our names
            [(change, row_id) for row_id, change in changes.items()],
        )

    def _delete(self, table: str, column: str, returned: str) -> list[Any]:
        return self._connection.execute(
            f"DELETE FROM {table} WHERE id IN ("  # noqa: S608 - our names
            f"SELECT id FROM {table} WHERE {column} = 0 LIMIT {_ROWS_PER_STEP}) "
            f"RETURNING {returned}"
        ).fetchall()
