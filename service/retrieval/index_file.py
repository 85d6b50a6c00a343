"""An index on disk: one SQLite file, replaced as a whole.

It is written beside its place and renamed into it, so a reader sees the old index or the new one,
never half of one, and a crash leaves the old one. Nothing in it can run code when it is read.
"""

import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.retrieval.documents import Document, Passage
from service.retrieval.index import FORMAT_VERSION, Index, IndexInfo
from service.retrieval.vectors import LatentVectors

FILE_NAME = "articles.sqlite"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    document_id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    language TEXT NOT NULL,
    text TEXT NOT NULL,
    "references" TEXT NOT NULL,  -- JSON array of document ids
    source TEXT NOT NULL
);
CREATE TABLE passages (
    number INTEGER PRIMARY KEY,  -- row of the latent vectors
    passage_id TEXT NOT NULL UNIQUE,
    document_id TEXT NOT NULL REFERENCES documents,
    title TEXT NOT NULL,
    heading TEXT NOT NULL,
    text TEXT NOT NULL,
    language TEXT NOT NULL,
    terms TEXT NOT NULL  -- separated by spaces, in reading order: analysing is the slow part
);
CREATE TABLE arrays (
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    columns INTEGER NOT NULL,
    data BLOB NOT NULL  -- little-endian float32, row by row, zlib
);
"""


class IndexFileError(Exception):
    """The file is not an index this version can read; the message says what to do."""


def path_in(folder: Path) -> Path:
    """The index file inside the configured folder."""
    return folder / FILE_NAME


def save(index: Index, folder: Path) -> Path:
    """Write `index` into `folder`, replacing the one there at once; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".articles-", suffix=".tmp", dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        _write(index, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would lock out a server that runs as another user
        temporary.replace(path_in(folder))
    finally:
        temporary.unlink(missing_ok=True)
    return path_in(folder)


def read_info(folder: Path) -> IndexInfo | None:
    """Where the index in `folder` came from, of whatever format; None when there is none."""
    if not path_in(folder).is_file():
        return None
    try:
        with contextlib.closing(_open(path_in(folder))) as connection:
            return _info(connection)
    except (sqlite3.DatabaseError, KeyError):
        return None


def load(folder: Path) -> Index:
    """Read the index in `folder` whole into memory."""
    file = path_in(folder)
    try:
        with contextlib.closing(_open(file)) as connection:
            return _read(connection)
    except (sqlite3.DatabaseError, zlib.error, ValueError, KeyError) as error:
        raise IndexFileError(f"{file} is damaged ({error}); build it again or delete it") from error


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _write(index: Index, file: Path) -> None:
    meta = {
        "format_version": index.info.format_version,
        "name": index.info.name,
        "source": index.info.source,
        "content_hash": index.info.content_hash,
        "explicit": str(int(index.info.explicit)),
    }
    arrays = {
        "passages": index.latent.passages,
        "idf": index.latent.idf[np.newaxis, :],
        "projection": index.latent.projection,
    }
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA journal_mode = OFF")  # the rename is what makes it atomic
        connection.executescript(_SCHEMA)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        connection.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)",
            (
                (d.document_id, d.title, d.language, d.text, json.dumps(d.references), d.source)
                for d in index.documents.values()
            ),
        )
        connection.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    n,
                    p.passage_id,
                    p.document_id,
                    p.title,
                    p.heading,
                    p.text,
                    p.language,
                    " ".join(t),
                )
                for n, (p, t) in enumerate(zip(index.passages, index.passage_terms, strict=True))
            ),
        )
        connection.executemany(
            "INSERT INTO arrays VALUES (?, ?, ?, ?)",
            (
                (name, *array.shape, zlib.compress(array.astype("<f4").tobytes(), 1))
                for name, array in arrays.items()
            ),
        )


def _info(connection: sqlite3.Connection) -> IndexInfo:
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    return IndexInfo(
        name=meta["name"],
        source=meta["source"],
        content_hash=meta["content_hash"],
        explicit=meta["explicit"] == "1",
        format_version=meta["format_version"],
    )


def _read(connection: sqlite3.Connection) -> Index:
    info = _info(connection)
    if info.format_version != FORMAT_VERSION:
        raise IndexFileError(
            f"the index has format {info.format_version}, this version reads {FORMAT_VERSION}; "
            "build it again with `python -m service.retrieval index PATH`"
        )
    documents = [
        Document(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), row[5])
        for row in connection.execute("SELECT * FROM documents ORDER BY rowid")
    ]
    rows = connection.execute("SELECT * FROM passages ORDER BY number").fetchall()
    latent = LatentVectors(
        passages=_array(connection, "passages"),
        idf=_array(connection, "idf")[0],
        projection=_array(connection, "projection"),
    )
    if len(latent.passages) != len(rows):
        raise ValueError("passages and vectors differ in number")
    return Index(
        info,
        documents,
        [Passage(*r[1:7]) for r in rows],
        [list(map(sys.intern, r[7].split())) for r in rows],
        latent,
    )


def _array(connection: sqlite3.Connection, name: str) -> npt.NDArray[np.float32]:
    rows, columns, data = connection.execute(
        "SELECT rows, columns, data FROM arrays WHERE name = ?", (name,)
    ).fetchone() or (0, 0, b"")
    return np.frombuffer(zlib.decompress(data), dtype="<f4").reshape(rows, columns)
