"""What the store promises when things break: really killed, really full, really damaged."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from spanloom.contract import Batch, Reader
from spanloom.errors import (
    ConfigurationError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreRejectedError,
    StoreVersionError,
)
from spanloom.model import MetricQuery, TraceQuery
from spanloom.store import Durability, SqliteStore, open_reader, open_store
from tests.builders import log, point, span, trace_id, trace_of

ROOT = Path(__file__).parents[2]
WRITER = Path(__file__).with_name("writer_process.py")
TIMEOUT_S = 60.0


@contextmanager
def _store(path: Path, **options: int) -> Iterator[SqliteStore]:
    store = open_store(path, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _writer_process(path: Path, durability: Durability) -> "Iterator[subprocess.Popen[str]]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), durability],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "full"])
@pytest.mark.parametrize("acknowledged", [1, 50, 400])
def test_what_was_acknowledged_survives_kill_9(
    tmp_path: Path, durability: Durability, acknowledged: int
) -> None:
    """A writer killed in full flight loses nothing it has acknowledged, and leaves no lock."""
    path = tmp_path / "spanloom.db"
    with _writer_process(path, durability) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledged)]
        process.kill()
        lines += process.stdout.readlines()
    numbers = [int(line) for line in lines if line.endswith("\n")]
    assert len(numbers) >= acknowledged

    reader = open_reader(path)
    try:
        _expect_whole(reader, numbers)
    finally:
        reader.close()
    with _store(path) as store:
        _expect_whole(store, numbers)
        assert store.stats().spans == 5 * store.stats().traces
        new = span("after", trace=10**9)
        store.submit(Batch(spans=[new])).result(TIMEOUT_S)
        assert store.get_trace(new.trace_id) == trace_of(new)


def _expect_whole(reader: Reader, numbers: list[int]) -> None:
    values = {each.value for each in reader.metric_points(MetricQuery("m", limit=10**6))}
    for number in numbers:
        trace = reader.get_trace(trace_id(number))
        assert trace is not None, number
        assert len(trace.spans) == 5
        assert len(reader.trace_logs(trace_id(number))) == 1
        assert number in values


# --- full ---------------------------------------------------------------------------------------


def _large(number: int, kilobytes: int = 256) -> Batch:
    # Many spans, so that a batch that is cut off would leave some of them behind.
    return Batch(
        spans=[
            span(f"s{n}", n + 1, trace=number, attributes={"fill": f"{n}" * 8 * kilobytes})
            for n in range(100)
        ],
        logs=[log(f"n{number}", trace=number)],
        metrics=[point("m", number, at_ms=number)],
    )


def _fill(store: SqliteStore) -> int:
    """Store until the store refuses; the number of the refused batch."""
    for number in range(1, 10_000):
        refusal = store.submit(_large(number)).exception(TIMEOUT_S)
        if refusal is not None:
            assert isinstance(refusal, StoreFullError)
            assert "free disk space" in str(refusal)
            return number
    raise AssertionError("the limit never held")


def _expect_nothing_of(store: SqliteStore, number: int) -> None:
    assert store.get_trace(trace_id(number)) is None
    assert store.trace_logs(trace_id(number)) == []
    values = [each.value for each in store.metric_points(MetricQuery("m", limit=10**6))]
    assert number not in values
    assert store.stats().spans == 100 * store.stats().traces
    assert store.stats().logs == store.stats().traces


def test_a_full_store_refuses_whole_batches_and_stays_usable(tmp_path: Path) -> None:
    """At its hard limit the store keeps what it has, takes nothing by halves, and reads on."""
    path = tmp_path / "spanloom.db"
    with _store(path, hard_limit_bytes=8_000_000) as store:
        refused = _fill(store)
        assert refused > 1
        _expect_nothing_of(store, refused)
        with pytest.raises(StoreFullError):
            store.submit(_large(refused)).result(TIMEOUT_S)
        assert len(store.find_summaries(TraceQuery(limit=10_000))) == refused - 1
    with _store(path) as store:  # with room again, all goes on
        _expect_nothing_of(store, refused)
        store.submit(_large(refused)).result(TIMEOUT_S)
        assert store.get_trace(trace_id(refused)) is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_whole_batches_and_recovers(small_disk: Path) -> None:
    """With the disk really full the same holds, and room on it is used without a restart."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(4_000_000))
    with _store(small_disk / "spanloom.db") as store:
        refused = _fill(store)
        assert refused > 1
        _expect_nothing_of(store, refused)
        ballast.unlink()
        store.submit(_large(refused, kilobytes=1)).result(TIMEOUT_S)
        assert store.get_trace(trace_id(refused)) is not None
        assert len(store.find_summaries(TraceQuery(limit=10_000))) == refused


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """submit() never waits for the disk: it raises, and takes again once the queue has drained."""
    path = tmp_path / "spanloom.db"
    with _store(path, max_queue_items=50) as store:
        # Another connection holds SQLite's write lock, so the writer hangs in its first commit.
        with _write_lock(path):
            futures: list[Future[None]] = []
            with pytest.raises(StoreFullError) as caught:
                futures.extend(
                    store.submit(Batch(spans=[span(trace=number)])) for number in range(1, 1000)
                )
            assert caught.value.retry_after_s > 0
            assert not any(future.done() for future in futures)
            assert store.stats().queue_items <= store.stats().queue_capacity == 50
        for future in futures:
            future.result(TIMEOUT_S)
        assert store.stats().traces == len(futures)
        store.submit(Batch(spans=[span(trace=5000)])).result(TIMEOUT_S)


def test_a_batch_larger_than_the_queue_is_taken_when_nothing_waits(tmp_path: Path) -> None:
    """Otherwise it could never be stored."""
    with _store(tmp_path / "spanloom.db", max_queue_items=10) as store:
        spans = [span(f"s{n}", n + 1) for n in range(100)]
        store.submit(Batch(spans=spans)).result(TIMEOUT_S)

        assert store.stats().spans == 100


def test_batches_that_wait_share_a_commit(tmp_path: Path) -> None:
    """While the writer is held up everything gathers, and is then stored in one transaction."""
    path = tmp_path / "spanloom.db"
    with _store(path) as store:
        observer = sqlite3.connect(path)
        seen = set()
        with _write_lock(path):
            futures = [store.submit(Batch(spans=[span(trace=n)])) for n in range(1, 301)]
        while not all(future.done() for future in futures):
            seen.update(observer.execute("SELECT count(*) FROM traces").fetchone())
        seen.update(observer.execute("SELECT count(*) FROM traces").fetchone())
        observer.close()

        # The first may have been taken alone before the lock was seen.
        assert len(seen - {0}) <= 2
        assert max(seen) == 300


@contextmanager
def _write_lock(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


# --- wrong batches ------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_stored_fails_alone(tmp_path: Path) -> None:
    """Others in the same transaction are stored, and the writer goes on."""
    path = tmp_path / "spanloom.db"
    with _store(path) as store:
        bad = span("bad", trace=2)
        object.__setattr__(bad, "span_id", "not hex")
        with _write_lock(path):  # so that all three share a transaction
            futures = [
                store.submit(Batch(spans=spans))
                for spans in ([span(trace=1)], [span("ok", 7, trace=2), bad], [span(trace=3)])
            ]
        with pytest.raises(StoreRejectedError):
            futures[1].result(TIMEOUT_S)
        futures[0].result(TIMEOUT_S)
        futures[2].result(TIMEOUT_S)

        assert store.get_trace(trace_id(1)) == trace_of(span(trace=1))
        assert store.get_trace(trace_id(2)) is None
        assert store.get_trace(trace_id(3)) == trace_of(span(trace=3))
        assert store.stats().spans == store.stats().traces == 2


def test_a_cancelled_future_does_not_stop_the_writer(tmp_path: Path) -> None:
    """A client that went away takes its batch with it, nobody else's."""
    path = tmp_path / "spanloom.db"
    with _store(path) as store:
        with _write_lock(path):
            futures = [store.submit(Batch(spans=[span(trace=n)])) for n in range(1, 4)]
            futures[2].cancel()
        futures[1].result(TIMEOUT_S)
        store.submit(Batch(spans=[span(trace=9)])).result(TIMEOUT_S)

        assert store.get_trace(trace_id(9)) is not None


# --- closing ------------------------------------------------------------------------------------


def test_close_while_reads_are_in_flight(tmp_path: Path) -> None:
    """Each read either ends with its answer or with StoreClosedError; close waits for none long."""
    store = open_store(tmp_path / "spanloom.db")
    for part in range(10):
        spans = [
            span(f"s{n}", n + 1, trace=part * 500 + n + 1, attributes={"k": f"v{n}"})
            for n in range(500)
        ]
        store.submit(Batch(spans=spans)).result(TIMEOUT_S)
    started = threading.Barrier(5)

    def read() -> int:
        started.wait()
        answers = 0
        while True:
            try:
                traces = store.find_traces(TraceQuery(tags={"k": "v7"}, limit=5000))
            except StoreClosedError:
                return answers
            assert len(traces) == 10
            answers += 1

    with ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(read) for _ in range(4)]
        started.wait()
        store.close()
        for future in reads:
            future.result(TIMEOUT_S)


def test_a_long_read_does_not_hold_up_the_writer(tmp_path: Path) -> None:
    """A reader in the middle of its snapshot neither blocks writing nor sees what is new."""
    path = tmp_path / "spanloom.db"
    with _store(path) as store:
        store.submit(Batch(spans=[span(trace=1)])).result(TIMEOUT_S)
        with store._pool.snapshot() as connection:
            before = connection.execute("SELECT count(*) FROM spans").fetchone()
            store.submit(Batch(spans=[span(trace=2)])).result(TIMEOUT_S)
            assert before == connection.execute("SELECT count(*) FROM spans").fetchone()
        assert store.get_trace(trace_id(2)) is not None


# --- opening ------------------------------------------------------------------------------------


def test_a_second_opener_is_told_who_holds_the_store(tmp_path: Path) -> None:
    """In this process and in another, until the first one closes."""
    path = tmp_path / "spanloom.db"
    with _store(path), pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
        open_store(path)
    with _writer_process(path, "process") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreLockedError, match=f"process {process.pid}"):
            open_store(path)
    with _store(path):
        pass


def test_a_store_of_the_future_is_refused(tmp_path: Path) -> None:
    """Neither opened for writing nor for reading, and not touched."""
    path = tmp_path / "spanloom.db"
    with _store(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO schema_migrations VALUES (9999, 0, '99')")
    connection.commit()
    connection.close()
    before = path.read_bytes()

    for opener in (open_store, open_reader):
        with pytest.raises(StoreVersionError, match="update Spanloom"):
            opener(path)
    assert before == path.read_bytes()


@pytest.mark.parametrize("content", [b"this is not a database" * 500, bytes(100_000)])
def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    """The message says what to do; nothing is deleted."""
    path = tmp_path / "spanloom.db"
    path.write_bytes(content)

    for opener in (open_store, open_reader):
        with pytest.raises(StoreCorruptError, match="Nothing was deleted"):
            opener(path)
        assert content == path.read_bytes()


def test_another_programs_database_is_refused_and_kept(tmp_path: Path) -> None:
    """An SQLite file that is not ours is not migrated."""
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()

    for opener in (open_store, open_reader):
        with pytest.raises(StoreCorruptError, match="another program"):
            opener(path)
    assert before == path.read_bytes()


def test_damage_inside_is_reported_by_the_read_that_meets_it(tmp_path: Path) -> None:
    """Pages overwritten in the middle are a StoreCorruptError, never a wrong answer or a crash."""
    path = tmp_path / "spanloom.db"
    with _store(path) as store:
        for number in range(1, 40):
            store.submit(_large(number, kilobytes=1)).result(TIMEOUT_S)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(os.urandom(size // 2))
    outcomes = set()
    try:
        store = open_store(path)
    except StoreCorruptError:
        return
    try:
        for number in range(1, 40):
            try:
                store.get_trace(trace_id(number))
                outcomes.add("read")
            except StoreError as error:
                outcomes.add(type(error).__name__)
    finally:
        store.close()

    assert "StoreCorruptError" in outcomes
    assert outcomes <= {"read", "StoreCorruptError"}


def test_opening_a_missing_store_for_reading(tmp_path: Path) -> None:
    """A sentence, and no file springs into being."""
    with pytest.raises(ConfigurationError, match="There is no store"):
        open_reader(tmp_path / "nothing.db")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """A file where the folder should be is a ConfigurationError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="data directory"):
        open_store(tmp_path / "file" / "spanloom.db")


def test_the_files_are_their_owners_only(tmp_path: Path) -> None:
    """What users wrote is nobody else's business, in the write-ahead log too."""
    with _store(tmp_path / "data" / "spanloom.db") as store:
        store.submit(Batch(spans=[span()])).result(TIMEOUT_S)
        modes = {file.name: file.stat().st_mode & 0o777 for file in store.path.parent.iterdir()}

    assert set(modes) >= {"spanloom.db", "spanloom.db-wal", "spanloom.db.lock"}
    assert set(modes.values()) == {0o600}
