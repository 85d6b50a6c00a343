"""Which index is served, and when it is made or read again.

* none there: built from the corpus in force (the setting, else the shipped articles)
* built at start-up earlier: built again when the corpus in force or the format has changed
* made by `index PATH`: served as it is; built again only when PATH's files have changed
* a new file in its place while serving: read within a second of the next search
"""

import threading
import time
from pathlib import Path

from service.retrieval import index_file
from service.retrieval.documents import Loaded, content_hash, load
from service.retrieval.index import FORMAT_VERSION, Index, IndexInfo
from service.settings import Settings
from spanloom.telemetry import get_logger

SHIPPED_CORPUS = Path(__file__).parent / "corpus"
SHIPPED_NAME = "articles"
CHECK_INTERVAL_S = 1.0

_log = get_logger(__name__)


class CorpusError(Exception):
    """There is nothing to index; the message says where it was looked for."""


def build(source: Path, *, explicit: bool) -> tuple[Index, Loaded]:
    """Index every text file below `source`."""
    source = source.resolve()
    if not source.exists():
        raise CorpusError(f"{source} does not exist; give a folder of .md or .txt files")
    loaded = load(source)
    if not loaded.documents:
        raise CorpusError(
            f"{source} holds no usable .md or .txt file ({len(loaded.skipped)} skipped)"
        )
    name = SHIPPED_NAME if source == SHIPPED_CORPUS.resolve() else source.stem
    info = IndexInfo(
        name=name or "files",
        source=str(source),
        content_hash=content_hash(source),
        explicit=explicit,
    )
    return Index.build(info, loaded.documents), loaded


def ensure_index(settings: Settings) -> Index:
    """The index in force: read when it is current, else built and saved."""
    folder = settings.index_path
    corpus = settings.corpus_path or SHIPPED_CORPUS
    explicit = False
    info = index_file.read_info(folder)
    if info is not None:
        source = Path(info.source)
        if info.explicit:
            corpus, explicit = source, True
        if _is_current(info, corpus):
            try:
                return index_file.load(folder)
            except index_file.IndexFileError as error:
                _log.warning("index_unreadable", reason=str(error))
    index, loaded = build(corpus, explicit=explicit)
    index_file.save(index, folder)
    for skipped in loaded.skipped:
        _log.warning("file_skipped", file=skipped.source, reason=skipped.reason)
    _log.info("index_built", index=index.info.name, documents=len(index.documents))
    return index


def _is_current(info: IndexInfo, corpus: Path) -> bool:
    corpus = corpus.resolve()
    if info.format_version != FORMAT_VERSION:
        return False
    if info.explicit and not corpus.exists():
        return True  # indexed from a folder that is gone: the index is all that is left of it
    return info.source == str(corpus) and info.content_hash == content_hash(corpus)


class LiveIndex:
    """The served index; follows its file. Safe to use from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.index_path
        self._file = index_file.path_in(self._folder)
        # Looked at before it is read: a file that arrives in between is read at the first search.
        self._seen = self._signature()
        self._index = ensure_index(settings)
        self._checked = time.monotonic()
        self._checking = threading.Lock()

    def current(self) -> Index:
        """The newest readable index; looks at the file at most once a second."""
        due = time.monotonic() - self._checked >= CHECK_INTERVAL_S
        # One thread looks and reads; the others go on with the index they have.
        if due and self._checking.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._checked = time.monotonic()
                self._checking.release()
        return self._index

    def _refresh(self) -> None:
        signature = self._signature()
        if signature in (None, self._seen):
            return
        self._seen = signature
        try:
            self._index = index_file.load(self._folder)
        except index_file.IndexFileError as error:
            _log.warning("index_unreadable", reason=str(error))
            return
        _log.info(
            "index_reloaded", index=self._index.info.name, documents=len(self._index.documents)
        )

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
