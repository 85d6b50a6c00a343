"""The SQLite store: one file in WAL mode, one writer thread, any number of readers."""

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spanloom.contract import Batch, Outgoing
from spanloom.errors import ConfigurationError
from spanloom.store import schema
from spanloom.store.connection import (
    Durability,
    configure_writer,
    connect_writer,
    create,
    translated,
)
from spanloom.store.lock import StoreLock
from spanloom.store.reader import SqliteReader
from spanloom.store.retention import Retention, Sweeper
from spanloom.store.writer import WriterThread

MAX_QUEUE_ITEMS: Final = 20_000
"""About a second of writing at full load, and some tens of MB."""
SWEEP_INTERVAL_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The store in numbers."""

    spans: int
    traces: int
    logs: int
    metric_points: int
    open_spans: int
    """Spans that have not ended."""
    open_spans_refused: int
    """Announcements of open spans for which there was no room."""
    outbox: int
    """Spans that wait to be handed on."""
    bytes: int
    """On disk, write-ahead log included."""
    queue_items: int
    """Spans, log records and points that wait for their commit."""
    queue_capacity: int


class SqliteStore(SqliteReader):
    """Reads and writes a store file; implements `contract.Reader` and `contract.Writer`."""

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability,
        retention: Retention,
        max_queue_items: int,
        hard_limit_bytes: int | None,
        sweep_interval_s: float,
        clock: Callable[[], int],
        no_ends: bool,
    ) -> None:
        super().__init__(path, clock)
        self._queue_capacity = max_queue_items
        try:
            create(path)
            self._lock = StoreLock(path)
        except OSError as error:
            raise ConfigurationError(
                f"The data directory {path.parent} cannot be used ({error.strerror}); "
                "choose one that this user may write to."
            ) from error
        connection: sqlite3.Connection | None = None
        try:
            with translated(path):
                connection = connect_writer(path)
                schema.compatible_version(connection, path)
                configure_writer(connection, durability, hard_limit_bytes)
                schema.migrate(connection, path)
                self._connection = connection
                self._writer = WriterThread(
                    connection,
                    path,
                    sweeper=Sweeper(connection, retention),
                    max_queue_items=max_queue_items,
                    sweep_interval_s=sweep_interval_s,
                    clock=clock,
                    no_ends=no_ends,
                )
        except BaseException:
            if connection is not None:
                connection.close()
            self._lock.release()
            raise

    def submit(self, batch: Batch) -> "Future[None]":
        """See `contract.Writer`."""
        return self._writer.submit(batch)

    def outgoing(self, limit: int, max_bytes: int) -> list[Outgoing]:
        """See `contract.Outbox`."""
        found: list[Outgoing] = []
        size = 0
        with self._pool.snapshot() as connection:
            rows = connection.execute(
                "SELECT id, message FROM outbox ORDER BY id LIMIT ?", (limit,)
            )
            for row_id, message in rows:
                size += len(message)
                if found and size > max_bytes:
                    break
                found.append(Outgoing(row_id, message))
        return found

    def stats(self) -> StoreStats:
        """Counts, size and queue, cheap enough for every scrape."""
        with self._pool.snapshot() as connection:
            counts = dict(connection.execute("SELECT name, count FROM row_counts").fetchall())
        return StoreStats(
            spans=counts["spans"],
            traces=counts["traces"],
            logs=counts["logs"],
            metric_points=counts["metric_points"],
            open_spans=counts["open_spans"],
            open_spans_refused=counts["open_spans_refused"],
            outbox=counts["outbox"],
            bytes=self._bytes_on_disk(),
            queue_items=self._writer.queued_items,
            queue_capacity=self._queue_capacity,
        )

    def close(self) -> None:
        """Store what is queued, then free everything; closing twice is allowed."""
        self._writer.close()
        super().close()
        self._connection.close()
        self._lock.release()

    def _bytes_on_disk(self) -> int:
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                total += self.path.with_name(f"{self.path.name}{suffix}").stat().st_size
        return total


def open_store(
    path: Path,
    *,
    durability: Durability = "process",
    retention: Retention | None = None,
    max_queue_items: int = MAX_QUEUE_ITEMS,
    hard_limit_bytes: int | None = None,
    sweep_interval_s: float = SWEEP_INTERVAL_S,
    clock: Callable[[], int] = time.time_ns,
    no_ends: bool = False,
) -> SqliteStore:
    """Open a store for reading and writing; creates the file and its folder.

    Args:
        path: the database file; `-wal`, `-shm` and `.lock` files appear beside it.
        durability: what an acknowledged batch survives: `process` is kill -9, `full` also a
            power failure, at the price of an fsync for each commit.
        retention: how long and how much to keep; 7 days and 10 GB by default.
        max_queue_items: spans, log records and points that may wait to be stored.
        hard_limit_bytes: the file never grows beyond this; batches then fail with
            StoreFullError until retention has made room. None: as far as the disk goes.
        sweep_interval_s: seconds between two looks at retention.
        clock: nanoseconds since the Unix epoch, for arrival times.
        no_ends: what ended is never sent here, as behind a Collector: a heartbeat that does not
            list an announced span means that it has ended. A span stored nevertheless is one that
            was ended here, and goes into the outbox, once.

    Raises:
        ConfigurationError: the folder cannot be made or written to.
        StoreLockedError: another process, or this one, holds the store.
        StoreVersionError: written by a newer version.
        StoreCorruptError: damaged, or another program's file; nothing is deleted.
    """
    return SqliteStore(
        path,
        durability=durability,
        retention=retention or Retention(),
        max_queue_items=max_queue_items,
        hard_limit_bytes=hard_limit_bytes,
        sweep_interval_s=sweep_interval_s,
        clock=clock,
        no_ends=no_ends,
    )


def open_reader(path: Path) -> SqliteReader:
    """Open an existing store for reading only, also while a server writes it.

    Raises:
        ConfigurationError: there is no file.
        StoreVersionError: written by another version.
        StoreCorruptError: damaged, or another program's file.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"There is no store at {path}; check the path, or start `spanloom serve --data-dir "
            f"{path.parent}`, which creates one."
        )
    reader = SqliteReader(path)
    try:
        reader.check_schema()
    except BaseException:
        reader.close()
        raise
    return reader
