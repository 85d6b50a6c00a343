import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from service.retrieval import index_file, live
from service.retrieval.live import CorpusError, LiveIndex, build, ensure_index
from service.settings import Settings

Library = Callable[..., Path]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    return lambda **extra: Settings(_env_file=None, data_dir=tmp_path / "data", **extra)


def stamp(settings: Settings) -> tuple[int, int]:
    status = index_file.path_in(settings.index_path).stat()
    return status.st_ino, status.st_mtime_ns


def test_the_shipped_articles_are_the_default(settings: Callable[..., Settings]) -> None:
    """With nothing configured and nothing there, the shipped articles are indexed and saved."""
    index = ensure_index(settings())

    assert index.info.name == "articles"
    assert "kv-cache" in index.documents
    assert index_file.load(settings().index_path).info == index.info


def test_a_current_index_is_read_not_built(
    settings: Callable[..., Settings], library: Library
) -> None:
    """A second start leaves the file alone."""
    configured = settings(corpus_path=library(a_md="A"))
    ensure_index(configured)
    before = stamp(configured)

    ensure_index(configured)

    assert stamp(configured) == before


def test_a_changed_corpus_is_indexed_again(
    settings: Callable[..., Settings], library: Library
) -> None:
    """A file that was added, changed or removed since makes the index stale."""
    configured = settings(corpus_path=library(a_md="Alpha", b_md="Beta"))
    ensure_index(configured)

    library(c_md="Gamma")
    assert set(ensure_index(configured).documents) == {"a", "b", "c"}
    library(a_md="Delta")
    assert ensure_index(configured).documents["a"].text == "Delta"
    (library() / "b.md").unlink()
    assert set(ensure_index(configured).documents) == {"a", "c"}


def test_another_corpus_is_indexed(settings: Callable[..., Settings], library: Library) -> None:
    """Changing the setting changes what is served."""
    ensure_index(settings())

    assert set(ensure_index(settings(corpus_path=library(a_md="A"))).documents) == {"a"}


def test_an_index_of_another_format_is_built_again(
    settings: Callable[..., Settings], library: Library
) -> None:
    """The format is part of what makes an index current."""
    configured = settings(corpus_path=library(a_md="A"))
    ensure_index(configured)
    _set_format(configured, "0.0")

    ensure_index(configured)

    assert index_file.load(configured.index_path).documents.keys() == {"a"}


def test_a_damaged_index_is_built_again(
    settings: Callable[..., Settings], library: Library
) -> None:
    """A broken file costs a rebuild, not the service."""
    configured = settings(corpus_path=library(a_md="A"))
    ensure_index(configured)
    with sqlite3.connect(index_file.path_in(configured.index_path)) as connection:
        connection.execute("DROP TABLE arrays")
    connection.close()

    assert ensure_index(configured).search("A", 1) == []
    assert set(index_file.load(configured.index_path).documents) == {"a"}


def test_what_was_indexed_by_command_is_served(
    settings: Callable[..., Settings], library: Library
) -> None:
    """`index PATH` wins over the shipped articles and the setting, and follows PATH's files."""
    root = library(a_md="Alpha")
    configured = settings(corpus_path=live.SHIPPED_CORPUS)
    index_file.save(build(root, explicit=True)[0], configured.index_path)

    assert set(ensure_index(configured).documents) == {"a"}
    library(b_md="Beta")
    assert set(ensure_index(configured).documents) == {"a", "b"}
    shutil.rmtree(root)
    assert set(ensure_index(configured).documents) == {"a", "b"}


def test_an_old_format_whose_files_are_gone_is_not_replaced_in_silence(
    settings: Callable[..., Settings], library: Library
) -> None:
    """The user's index never turns into the shipped articles by an upgrade."""
    root = library(a_md="Alpha")
    index_file.save(build(root, explicit=True)[0], settings().index_path)
    _set_format(settings(), "0.0")
    shutil.rmtree(root)

    with pytest.raises(CorpusError, match="does not exist"):
        ensure_index(settings())


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Serving nothing would answer every question with nothing."""
    (tmp_path / "a.md").write_text("")

    with pytest.raises(CorpusError, match="1 skipped"):
        build(tmp_path, explicit=True)


def test_a_new_index_is_picked_up(
    settings: Callable[..., Settings], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that takes the served one's place is served; a broken or missing one is not."""
    monkeypatch.setattr(live, "CHECK_INTERVAL_S", 0.0)
    configured = settings(corpus_path=library(a_md="A"))
    served = LiveIndex(configured)
    assert set(served.current().documents) == {"a"}
    first = served.current()
    assert served.current() is first or set(served.current().documents) == {"a"}

    index_file.save(build(library(b_md="B"), explicit=True)[0], configured.index_path)
    assert set(served.current().documents) == {"a", "b"}
    index_file.path_in(configured.index_path).write_bytes(b"broken")
    assert set(served.current().documents) == {"a", "b"}
    index_file.path_in(configured.index_path).unlink()
    assert set(served.current().documents) == {"a", "b"}


def test_the_file_is_not_looked_at_for_every_search(
    settings: Callable[..., Settings], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the interval the index in memory is used as it is."""
    monkeypatch.setattr(live, "CHECK_INTERVAL_S", 3600.0)
    configured = settings(corpus_path=library(a_md="A"))
    served = LiveIndex(configured)

    index_file.save(build(library(b_md="B"), explicit=True)[0], configured.index_path)

    assert set(served.current().documents) == {"a"}


def _set_format(settings: Settings, version: str) -> None:
    with sqlite3.connect(index_file.path_in(settings.index_path)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format_version'", (version,))
    connection.close()
