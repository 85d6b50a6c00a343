"""The writer thread: a bounded queue, and one transaction for all that waits in it.

    submit() ─▶ queue ─▶ [ batch batch batch ] ─▶ one COMMIT ─▶ futures resolve

A batch that finds the writer idle is committed at once. While one commit runs, others gather
in the queue and share the next one, so the group grows with the load and nobody waits for a
timer.
"""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeAlias

from spanloom.contract import Batch
from spanloom.errors import StoreClosedError, StoreError, StoreFullError, StoreRejectedError
from spanloom.store.connection import store_error
from spanloom.store.ingest import Ingest
from spanloom.store.retention import Sweeper

_GROUP_ITEMS: Final = 5000
"""Items per transaction: about 200 ms of work, which bounds the wait for an acknowledgement."""
_WARNING_INTERVAL_S: Final = 60.0

_Entry: TypeAlias = tuple[Batch, "Future[None]"]
_log = logging.getLogger(__name__)


class WriterThread:
    """Owns the writing connection; everything but `submit` and `close` runs in its thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        sweeper: Sweeper,
        max_queue_items: int,
        sweep_interval_s: float,
        clock: Callable[[], int],
        no_ends: bool = False,
    ) -> None:
        self._connection = connection
        self._path = path
        self._ingest = Ingest(connection, no_ends=no_ends)
        self._sweeper = sweeper
        self._max_queue_items = max_queue_items
        self._sweep_interval_s = sweep_interval_s
        self._clock = clock
        self._queue: deque[_Entry] = deque()
        self._queued_items = 0
        self._changed = threading.Condition()
        self._closing = False
        self._next_sweep = time.monotonic() + sweep_interval_s
        self._next_warning = 0.0
        self._thread = threading.Thread(target=self._run, name="spanloom-store", daemon=True)
        self._thread.start()

    @property
    def queued_items(self) -> int:
        """Items that wait for their commit."""
        return self._queued_items

    def submit(self, batch: Batch) -> "Future[None]":
        """Queue a batch, or raise at once; see `contract.Writer`."""
        future: Future[None] = Future()
        size = len(batch)
        with self._changed:
            if self._closing:
                raise StoreClosedError(f"The store {self._path} is closed.")
            # A batch larger than the whole queue is taken when nothing else waits: it could
            # never be stored otherwise.
            if self._queue and self._queued_items + size > self._max_queue_items:
                raise StoreFullError(
                    f"{self._queued_items} items wait to be stored, the queue takes "
                    f"{self._max_queue_items}; send again a little later."
                )
            self._queue.append((batch, future))
            self._queued_items += size
            self._changed.notify()
        return future

    def close(self) -> None:
        """Store what is queued and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            group = self._next_group()
            if group is None:
                return
            if group:
                self._store(group)
            if time.monotonic() >= self._next_sweep:
                self._sweep()

    def _next_group(self) -> list[_Entry] | None:
        """What waits, as far as it fits one transaction; empty when a sweep is due, None at end."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                left = self._next_sweep - time.monotonic()
                if left <= 0:
                    return []
                self._changed.wait(left)
            group: list[_Entry] = []
            items = 0
            while self._queue and (not group or items + len(self._queue[0][0]) <= _GROUP_ITEMS):
                entry = self._queue.popleft()
                items += len(entry[0])
                group.append(entry)
            self._queued_items -= items
        # A caller that has cancelled gets no answer, so its batch counts as never sent.
        return [entry for entry in group if entry[1].set_running_or_notify_cancel()]

    def _store(self, group: list[_Entry]) -> None:
        try:
            failures = self._commit(group)
        except BaseException as error:  # noqa: BLE001 - a future that never resolves is worse
            self._roll_back()
            failure = self._as_store_error(error)
            failures = dict.fromkeys(range(len(group)), failure)
        for index, (_, future) in enumerate(group):
            error_or_none = failures.get(index)
            if error_or_none is None:
                future.set_result(None)
            else:
                future.set_exception(error_or_none)

    def _commit(self, group: list[_Entry]) -> dict[int, StoreError]:
        """Store a group in one transaction; which of its batches could not be stored, and why."""
        now_ms = self._clock() // 1_000_000
        failures: dict[int, StoreError] = {}
        self._connection.execute("BEGIN IMMEDIATE")
        for index, (batch, _) in enumerate(group):
            self._connection.execute("SAVEPOINT batch")
            try:
                self._ingest.apply(batch, now_ms)
            except Exception as error:
                if not self._connection.in_transaction:  # SQLite has rolled back everything
                    raise
                if isinstance(error, sqlite3.Error) and not isinstance(
                    error, sqlite3.IntegrityError | sqlite3.ProgrammingError
                ):
                    raise  # the disk, not the batch
                self._connection.execute("ROLLBACK TO batch")
                self._ingest.forget()
                failures[index] = self._as_store_error(error)
            self._connection.execute("RELEASE batch")
        self._connection.execute("COMMIT")
        return failures

    def _sweep(self) -> None:
        more = False
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            more = self._sweeper.delete_some(self._clock() // 1_000_000)
            self._connection.execute("COMMIT")
            if more:
                self._ingest.forget()
            more |= self._sweeper.give_pages_back()
        except sqlite3.Error as error:
            self._roll_back()
            self._warn(f"Retention could not delete old data: {store_error(error, self._path)}")
        # With more to do the next step follows as soon as the queue has had its turn.
        self._next_sweep = time.monotonic() + (0.0 if more else self._sweep_interval_s)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._ingest.forget()
        except sqlite3.Error as error:
            self._warn(f"The store is in trouble: {store_error(error, self._path)}")

    def _as_store_error(self, error: BaseException) -> StoreError:
        if isinstance(error, StoreError):
            return error
        if isinstance(error, sqlite3.Error):
            failure = store_error(error, self._path)
            failure.__cause__ = error
            return failure
        rejected = StoreRejectedError(f"The batch cannot be stored: {error!r}.")
        rejected.__cause__ = error
        return rejected

    def _warn(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_INTERVAL_S
            _log.warning(message)
