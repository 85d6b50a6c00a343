"""SQLite connections: settings, and errors in the words of the store."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

from spanloom.errors import StoreCorruptError, StoreError, StoreFullError, StoreUnavailableError

Durability: TypeAlias = Literal["process", "full"]
"""What an acknowledged batch survives: the death of the process, or also a power failure."""

_PAGE_BYTES: Final = 8192
"""Several spans with their attributes, a stack trace included, fit into one page."""
_WRITER_CACHE_KIB: Final = 32 * 1024
_READER_CACHE_KIB: Final = 8 * 1024
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024


def create(path: Path) -> None:
    """Make sure that the file and its folder exist.

    Telemetry may hold what users wrote, so a new file is its owner's only; SQLite gives the
    files beside it the same mode.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def connect_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes."""
    return _connect(path, "rw")


def configure_writer(
    connection: sqlite3.Connection, durability: Durability, hard_limit_bytes: int | None
) -> None:
    """Settings of the writing connection. They change the file, so it must be known as ours."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if pages == 0:  # can only be chosen before the first table
        _set(connection, page_size=_PAGE_BYTES, auto_vacuum="INCREMENTAL")
    _set(
        connection,
        journal_mode="WAL",
        # A WAL commit is in the kernel's hands before it returns, so it outlives the process
        # with NORMAL; FULL adds the fsync that makes it outlive the machine's power.
        synchronous={"process": "NORMAL", "full": "FULL"}[durability],
        cache_size=-_WRITER_CACHE_KIB,
        journal_size_limit=_WAL_LIMIT_BYTES,
        secure_delete="OFF",
    )
    if hard_limit_bytes is not None:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        _set(connection, max_page_count=max(1, hard_limit_bytes // page_bytes))


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = _connect(path, "ro")
    _set(connection, query_only="ON", cache_size=-_READER_CACHE_KIB)
    return connection


def _set(connection: sqlite3.Connection, **pragmas: str | int) -> None:
    for name, value in pragmas.items():
        connection.execute(f"PRAGMA {name}={value}").fetchall()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # transactions are begun where they are meant
        check_same_thread=False,  # each connection is used by one thread at a time
        cached_statements=128,
        timeout=10.0,
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Let SQLite's errors leave the block as StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """What an error of SQLite means to the caller of the store, and what can be done."""
    # The low byte is the primary code; the rest refines it.
    match (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return StoreFullError(
                f"There is no room left for {path}; free disk space or lower the retention "
                "limits. Clients keep retrying meanwhile.",
                retry_after_s=5.0,
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorruptError(
                f"{path} is damaged or not a Spanloom store ({error}). Nothing was deleted. "
                f"To go on, move the file and {path.name}-wal aside and start again with an "
                f"empty store; what is left can be saved by: sqlite3 {path} .recover"
            )
        case _:
            return StoreUnavailableError(
                f"{path} cannot be used at the moment ({error}); check that the disk is mounted "
                "and that this user may read and write the file and its folder."
            )
