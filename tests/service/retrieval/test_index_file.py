import sqlite3
from pathlib import Path

import numpy as np
import pytest

from service.retrieval import index_file
from service.retrieval.index import Index

pytestmark = pytest.mark.xdist_group("shipped")  # the index is built once

QUERIES = ["KV cache memory", "分布式追踪", "retry budget 退避"]


def test_an_index_survives_the_round_trip(shipped: Index, tmp_path: Path) -> None:
    """What is read answers exactly as what was written."""
    index_file.save(shipped, tmp_path / "索引 folder")

    read = index_file.load(tmp_path / "索引 folder")

    assert read.info == shipped.info
    assert list(read.documents.values()) == list(shipped.documents.values())
    assert read.passages == shipped.passages
    np.testing.assert_array_equal(read.latent.projection, shipped.latent.projection)
    for query in QUERIES:
        assert read.search(query, 10) == shipped.search(query, 10)
        texts = [(p.passage_id, p.text) for p in shipped.passages[:30]]
        assert read.reranker.rank(query, texts) == shipped.reranker.rank(query, texts)


def test_saving_leaves_one_file(shipped: Index, tmp_path: Path) -> None:
    """Neither a journal nor a temporary file stays, however often it is saved."""
    index_file.save(shipped, tmp_path)
    index_file.save(shipped, tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == [index_file.FILE_NAME]


def test_a_failed_save_keeps_the_old_index(
    shipped: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before the rename leaves the index that was there."""
    file = index_file.save(shipped, tmp_path)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        index_file.save(shipped, tmp_path)

    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_said_to_be(shipped: Index, tmp_path: Path, damage: bytes) -> None:
    """Whatever is wrong with the file, the error is one kind and names it."""
    index_file.save(shipped, tmp_path).write_bytes(damage)

    with pytest.raises(index_file.IndexFileError, match=index_file.FILE_NAME):
        index_file.load(tmp_path)
    assert index_file.read_info(tmp_path) is None


def test_a_file_cut_short_is_damaged(shipped: Index, tmp_path: Path) -> None:
    """Half a file never loads as a smaller index."""
    file = index_file.save(shipped, tmp_path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(index_file.IndexFileError):
        index_file.load(tmp_path)


def test_vectors_that_do_not_fit_are_damage(shipped: Index, tmp_path: Path) -> None:
    """A lost passage is noticed, not shifted over."""
    file = index_file.save(shipped, tmp_path)
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM passages WHERE number = 3")
    connection.close()

    with pytest.raises(index_file.IndexFileError, match="differ in number"):
        index_file.load(tmp_path)


def test_no_folder_is_no_index(tmp_path: Path) -> None:
    """Nothing there is no error."""
    assert index_file.read_info(tmp_path / "none") is None
