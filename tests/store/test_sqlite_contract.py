"""The SQLite store keeps the storage contract, alone and through a reader of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanloom.store import SqliteReader, SqliteStore, open_reader, open_store
from tests.store.contract_suite import ContractSuite


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SqliteStore]:
    store = open_store(tmp_path / "with 空格" / "spanloom.db")
    yield store
    store.close()


class TestSqliteStore(ContractSuite):
    """One object for both sides, as in the server."""

    @pytest.fixture
    def reader(self, writer: SqliteStore) -> SqliteStore:
        return writer


class TestSqliteReader(ContractSuite):
    """A second opener that only reads, as `spanloom --db FILE` does."""

    @pytest.fixture
    def reader(self, writer: SqliteStore) -> Iterator[SqliteReader]:
        reader = open_reader(writer.path)
        yield reader
        reader.close()
