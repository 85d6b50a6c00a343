"""Reading connections: each used by one thread at a time, each read one snapshot."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from spanloom.errors import StoreClosedError
from spanloom.store.connection import connect_reader, store_error

_MAX_IDLE: Final = 8


class ReaderPool:
    """Opens connections as threads ask for them and keeps a few for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._busy: set[sqlite3.Connection] = set()
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection in a read transaction: all its statements see the same state.

        Raises:
            StoreClosedError: the pool is closed, or was closed while the read ran.
            StoreError: SQLite refused.
        """
        connection = self._take()
        healthy = False
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
            healthy = True
        except sqlite3.Error as error:
            if self._closed:
                raise self._closed_error() from error
            raise store_error(error, self._path) from error
        finally:
            self._give_back(connection, healthy=healthy)

    def close(self) -> None:
        """Stop the reads in flight, wait for them to leave, close every connection."""
        with self._changed:
            self._closed = True
            for connection in self._busy:
                connection.interrupt()
            while self._busy:
                # A statement that began just after its interrupt needs another one.
                self._changed.wait(0.05)
                for connection in self._busy:
                    connection.interrupt()
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _take(self) -> sqlite3.Connection:
        with self._changed:
            if self._closed:
                raise self._closed_error()
            if self._idle:
                connection = self._idle.pop()
            else:
                try:
                    connection = connect_reader(self._path)
                except sqlite3.Error as error:
                    raise store_error(error, self._path) from error
            self._busy.add(connection)
            return connection

    def _give_back(self, connection: sqlite3.Connection, *, healthy: bool) -> None:
        with self._changed:
            self._busy.discard(connection)
            if healthy and not self._closed and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
            else:
                connection.close()
            self._changed.notify_all()

    def _closed_error(self) -> StoreClosedError:
        return StoreClosedError(f"The store {self._path} is closed.")
