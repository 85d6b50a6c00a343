"""Durable storage behind `spanloom.contract`: one SQLite file."""

from spanloom.store.connection import Durability
from spanloom.store.reader import SqliteReader
from spanloom.store.retention import Retention
from spanloom.store.sqlite import SqliteStore, StoreStats, open_reader, open_store

__all__ = [
    "Durability",
    "Retention",
    "SqliteReader",
    "SqliteStore",
    "StoreStats",
    "open_reader",
    "open_store",
]
