"""Durable storage behind `spanloom.contract`: one SQLite file."""

from typing import Final

from spanloom.store.connection import Durability
from spanloom.store.reader import SqliteReader
from spanloom.store.retention import Retention
from spanloom.store.sqlite import SqliteStore, StoreStats, open_reader, open_store

STORE_FILE: Final = "spanloom.sqlite"
"""Name of the store in a data directory."""
REAP_FILE: Final = "reap.sqlite"
"""Name of the store of `spanloom reap`, which is another kind."""

__all__ = [
    "REAP_FILE",
    "STORE_FILE",
    "Durability",
    "Retention",
    "SqliteReader",
    "SqliteStore",
    "StoreStats",
    "open_reader",
    "open_store",
]
