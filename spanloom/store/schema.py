"""Schema version: creating, migrating, and refusing what this version cannot read."""

import sqlite3
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from spanloom.errors import StoreCorruptError, StoreVersionError
from spanloom.store import sql

APPLICATION_ID: Final = 0x53504C4D
"""`SPLM` in the file's header: tells our files from other SQLite databases."""


def latest_version() -> int:
    """The schema version this code reads and writes."""
    return sql.migrations()[-1][0]


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a store to the latest version, each step in one transaction.

    Raises:
        StoreVersionError: written by a newer version.
        StoreCorruptError: an SQLite database, but not a store.
    """
    current = compatible_version(connection, path)
    for number, script in sql.migrations():
        if number > current:
            _apply(connection, number, script)


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure that a store opened for reading has exactly this version.

    Raises:
        StoreVersionError: written by another version.
        StoreCorruptError: not a store.
    """
    current = compatible_version(connection, path)
    if current < latest_version():
        raise StoreVersionError(
            f"{path} has schema {current}, this Spanloom reads {latest_version()}; "
            "start `spanloom serve` on it once, which migrates it."
        )


def compatible_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a store, 0 for an empty file, found without changing anything.

    Raises:
        StoreVersionError: written by a newer version.
        StoreCorruptError: an SQLite database, but not a store.
    """
    current = _current_version(connection, path)
    if current > latest_version():
        raise StoreVersionError(
            f"{path} has schema {current}, this Spanloom knows {latest_version()} at most; "
            "update Spanloom, or choose another data directory."
        )
    return current


def _current_version(connection: sqlite3.Connection, path: Path) -> int:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if objects == 0:
        return 0
    if application_id != APPLICATION_ID:
        raise StoreCorruptError(
            f"{path} is an SQLite database of another program; nothing was changed. "
            "Choose another data directory."
        )
    (number,) = connection.execute("SELECT max(version) FROM schema_migrations").fetchone()
    return int(number)


def _apply(connection: sqlite3.Connection, number: int, script: str) -> None:
    try:
        connection.executescript(
            f"""
            BEGIN IMMEDIATE;
            PRAGMA application_id={APPLICATION_ID};
            CREATE TABLE IF NOT EXISTS schema_migrations (
                version           INTEGER PRIMARY KEY,
                applied_unix_nano INTEGER NOT NULL,
                applied_by        TEXT NOT NULL   -- version of Spanloom
            ) STRICT;
            {script}
            """
        )
        connection.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?)",
            (number, time.time_ns(), _own_version()),
        )
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _own_version() -> str:
    try:
        return version("spanloom")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
