"""What goes, what stays, and in which order."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from spanloom.contract import Batch
from spanloom.model import MetricQuery, TraceQuery
from spanloom.store import Retention, SqliteStore, open_store, schema, sql
from spanloom.store.connection import configure_writer, connect_writer
from tests.builders import T0, log, point, resource, span, trace_id

TIMEOUT_S = 60.0


class Clock:
    """Arrival time in the test's hands, in nanoseconds."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> int:
        return int(self.now_s * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def _store(path: Path, clock: Clock, retention: Retention, **options: Any) -> Iterator[SqliteStore]:
    store = open_store(
        path / "spanloom.db", retention=retention, sweep_interval_s=0.01, clock=clock, **options
    )
    try:
        yield store
    finally:
        store.close()


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def _put(store: SqliteStore, number: int, spans: int = 3, fill: str = "") -> None:
    batch = Batch(
        spans=[
            span(f"s{n}", n + 1, trace=number, service=f"svc{number}", attributes={"fill": fill})
            for n in range(spans)
        ],
        logs=[log(f"line {number}", trace=number, service=f"svc{number}")],
        metrics=[point("m", number, at_ms=number, service=f"svc{number}")],
    )
    store.submit(batch).result(TIMEOUT_S)


def test_age_counts_from_arrival(tmp_path: Path, clock: Clock) -> None:
    """A span of last year that came in today stays; one that came in long ago goes, everywhere."""
    with _store(tmp_path, clock, Retention(max_age_s=100, max_bytes=None)) as store:
        _put(store, 1)
        clock.now_s += 60
        _put(store, 2)
        assert store.stats().traces == 2  # both from T0, far from the clock's 1970
        clock.now_s += 60
        _eventually(lambda: store.stats().metric_points == 1)

        assert store.get_trace(trace_id(1)) is None
        assert store.trace_logs(trace_id(1)) == []
        assert [each.value for each in store.metric_points(MetricQuery("m"))] == [2]
        assert store.services() == ["svc2"]
        assert store.operations("svc1") == []
        assert [line.trace_id for line in store.find_summaries(TraceQuery())] == [trace_id(2)]
        assert (store.stats().spans, store.stats().logs) == (3, 1)
        clock.now_s += 1000
        _eventually(lambda: store.stats().metric_points == 0)
        assert store.find_summaries(TraceQuery(tags={"fill": ""})) == []
        assert store.metric_names() == []
        assert store.stats().spans == store.stats().traces == store.stats().logs == 0
        _put(store, 3)
        assert [line.trace_id for line in store.find_summaries(TraceQuery())] == [trace_id(3)]


def test_a_trace_goes_as_a_whole(tmp_path: Path, clock: Clock) -> None:
    """As long as a trace receives spans, its first ones stay too."""
    with _store(tmp_path, clock, Retention(max_age_s=100, max_bytes=None)) as store:
        for step in range(5):
            store.submit(Batch(spans=[span(f"s{step}", step + 1)])).result(TIMEOUT_S)
            store.submit(Batch(spans=[span(trace=100 + step)])).result(TIMEOUT_S)
            clock.now_s += 60
        _eventually(lambda: store.get_trace(trace_id(102)) is None)
        trace = store.get_trace(trace_id(1))

        assert trace is not None
        assert len(trace.spans) == 5
        clock.now_s += 60
        _eventually(lambda: store.get_trace(trace_id(1)) is None)


def test_size_drops_the_oldest(tmp_path: Path, clock: Clock) -> None:
    """Over the limit the longest-held traces go, until it is met; the newest always answer."""
    limit = 3_000_000
    with _store(tmp_path, clock, Retention(max_age_s=None, max_bytes=limit)) as store:
        for number in range(1, 61):
            clock.now_s += 1
            _put(store, number, spans=20, fill=f"{number}" * 3000)
        _eventually(lambda: _used(store) <= limit)
        kept = [int(line.trace_id, 16) for line in store.find_summaries(TraceQuery(limit=1000))]

        assert 0 < len(kept) < 60
        assert sorted(kept) == list(range(61 - len(kept), 61))
        assert store.stats().traces == len(kept)
        assert store.stats().spans == 20 * len(kept)
        _put(store, 99)
        assert store.get_trace(trace_id(99)) is not None


def test_what_nobody_refers_to_goes_too(tmp_path: Path, clock: Clock) -> None:
    """Resources, scopes, metrics and services go with their last span, log record or point."""
    with _store(tmp_path, clock, Retention(max_age_s=100, max_bytes=None)) as store:
        for number in range(1, 21):
            _put(store, number)
            _put(store, number)  # sent again: stored once, so counted once
        shared = resource("svc99")
        store.submit(Batch(spans=[span(trace=99, resource=shared)])).result(TIMEOUT_S)
        clock.now_s += 60
        store.submit(Batch(logs=[log("late", trace=99, resource=shared)])).result(TIMEOUT_S)
        assert _rows(store) == {"resources": 21, "scopes": 1, "metrics": 20, "services": 21}
        clock.now_s += 60
        _eventually(lambda: _rows(store)["resources"] == 1)

        assert _rows(store) == {"resources": 1, "scopes": 1, "metrics": 0, "services": 1}
        (kept,) = store.trace_logs(trace_id(99))
        assert kept.resource == shared
        _put(store, 1)  # the writer remembers none of the ids that are gone
        stored = store.get_trace(trace_id(1))
        assert stored is not None
        assert stored.spans[0].service_name == "svc1"
        clock.now_s += 1000
        _eventually(lambda: not any(_rows(store).values()))


def _rows(store: SqliteStore) -> dict[str, int]:
    with store._pool.snapshot() as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("resources", "scopes", "metrics", "services")
        }


def test_a_store_of_schema_1_learns_what_is_in_use(tmp_path: Path, clock: Clock) -> None:
    """What the first schema stored stays readable, and goes when retention says so."""
    path = tmp_path / "spanloom.db"
    path.touch()
    with closing(connect_writer(path)) as connection:
        configure_writer(connection, "process", None)
        first = sql.migrations()[0]
        schema._apply(connection, *first)
        for table, text in _SCHEMA_1_ROWS.items():
            connection.execute(f"INSERT INTO {table} VALUES ({text})")
        connection.execute("UPDATE row_counts SET count = 1")
    with _store(tmp_path, clock, Retention(max_age_s=100, max_bytes=None)) as store:
        time.sleep(0.1)  # several sweeps, none of which may touch what is in use
        assert _rows(store) == dict.fromkeys(("resources", "scopes", "metrics", "services"), 1)
        assert store.get_trace(trace_id(1)) is not None
        clock.now_s += 1000
        _eventually(lambda: not any(_rows(store).values()))


_SCHEMA_1_ROWS = {
    "services": "1, 'unknown_service'",
    "resources": "1, x'01', 1, x''",
    "scopes": "1, x'01', x''",
    "operations": "1, 1, 'op', 1, 1",
    "traces": f"1, x'{trace_id(1)}', 1000000000",
    "spans": "1, 1, x'0000000000000001', NULL, 1, 1, 1, 5, 6, 0, 0, NULL, NULL, NULL, x''",
    "metrics": "1, x'01', 'm', 1, 1, 1, x'0a016d'",
    "metric_points": "1, 1, 5, 1000000000, x'01', x'2a00'",
    "logs": f"1, x'{trace_id(1)}', 5, 1000000000, 0, 1, 1, x'01', x''",
}


def _used(store: SqliteStore) -> int:
    with store._pool.snapshot() as connection:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


def test_deleting_gives_the_disk_back(tmp_path: Path, clock: Clock) -> None:
    """The file shrinks; it does not stay as large as it ever was."""
    with _store(tmp_path, clock, Retention(max_age_s=100, max_bytes=None)) as store:
        for number in range(1, 40):
            _put(store, number, spans=20, fill="x" * 10_000)
        grown = _file_pages(store)
        clock.now_s += 1000
        _eventually(lambda: _file_pages(store) < grown / 4)


def _file_pages(store: SqliteStore) -> int:
    with store._pool.snapshot() as connection:
        return int(connection.execute("PRAGMA page_count").fetchone()[0])


def test_ingest_goes_on_while_much_is_deleted(tmp_path: Path, clock: Clock) -> None:
    """Deleting runs in small steps between commits; search stays right all the while."""
    with _store(tmp_path, clock, Retention(max_age_s=100, max_bytes=None)) as store:
        old = [
            span("old", n % 20 + 1, trace=n // 20 + 1, attributes={"n": n}) for n in range(20_000)
        ]
        for first in range(0, len(old), 4000):
            store.submit(Batch(spans=old[first : first + 4000])).result(TIMEOUT_S)
        clock.now_s += 1000
        new = range(5001, 5201)
        for number in new:
            store.submit(Batch(spans=[span("new", trace=number)])).result(TIMEOUT_S)
            assert store.get_trace(trace_id(number)) is not None
        _eventually(lambda: store.stats().traces == len(new))

        assert len(store.find_summaries(TraceQuery(operation="new", limit=1000))) == len(new)
        assert store.find_summaries(TraceQuery(operation="old")) == []
        assert store.find_summaries(TraceQuery(start_ns=0, end_ns=T0)) == []


def test_counts_survive_reopening(tmp_path: Path, clock: Clock) -> None:
    """Numbers, ids and search continue where the last process stopped."""
    forever = Retention(max_age_s=None, max_bytes=None)
    for number in range(1, 6):
        with _store(tmp_path, clock, forever) as store:
            _put(store, number)
            stats = store.stats()
            assert (stats.traces, stats.spans, stats.logs) == (number, 3 * number, number)
            assert stats.metric_points == number
            assert stats.queue_items == 0
            assert stats.bytes > 0
            assert len(store.find_summaries(TraceQuery(tags={"fill": ""}))) == number
