"""What SQLite promises about open spans beyond the contract: restart, bounds, retention, schema."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spanloom.contract import Batch, InFlight
from spanloom.model import LogEvent, OpenState, TraceQuery
from spanloom.store import Retention, SqliteStore, inflight, open_reader, open_store, schema, sql
from spanloom.store.connection import configure_writer, connect_writer
from tests.builders import T0, span, trace_id
from tests.builders_inflight import announced, heartbeat

TIMEOUT_S = 30.0
S = 1_000_000_000


class Clock:
    """Arrival times, and what the store takes for now."""

    def __init__(self) -> None:
        self.now_s = 1_900_000_000.0

    def __call__(self) -> int:
        return int(self.now_s * S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(folder: Path, clock: Clock, **options: Any) -> SqliteStore:
    return open_store(folder / "spanloom.db", clock=clock, sweep_interval_s=0.02, **options)


def send(store: SqliteStore, *logs: LogEvent) -> None:
    store.submit(Batch(logs=logs)).result(TIMEOUT_S)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def rows(store: SqliteStore, *tables: str) -> list[int]:
    with store._pool.snapshot() as connection:
        return [connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables]


def test_the_store_can_be_asked_process_by_process(tmp_path: Path, clock: Clock) -> None:
    """What the reaper needs, without reading every span of all processes."""
    with closing(opened(tmp_path, clock)) as store:
        assert isinstance(store, InFlight)
        send(store, announced("a", 1), announced("b", 2), announced("c", 3, instance="p2"))
        for sequence in (1, 2, 3):
            send(store, heartbeat(1, sequence=sequence, at_ms=1_000 * sequence))

        one, two = store.processes()
        assert (one.key, one.sequence, one.open_spans, one.lost_spans) == ("p1", 3, 2, 1)
        assert (one.most_misses, one.time_unix_nano) == (3, T0 + 3 * S)
        assert one.arrived_unix_nano == clock()
        assert (two.key, two.sequence, two.open_spans, two.ended) == ("p2", 0, 1, False)
        assert {each.span.name for each in store.open_spans("p1")} == {"a", "b"}
        assert [each.span.name for each in store.open_spans("p1", min_misses=3)] == ["b"]
        assert len(store.open_spans("p1", limit=1)) == 1
        assert store.open_spans("nobody") == []


def test_silence_for_three_seconds_is_stalled(tmp_path: Path, clock: Clock) -> None:
    """Counted from arrival, so that clocks of other machines do not matter."""
    with closing(opened(tmp_path, clock)) as store:
        send(store, announced())
        clock.now_s += 2.9
        assert [one.state for one in store.open_spans("p1")] == [OpenState.RUNNING]
        clock.now_s += 0.2
        assert [one.state for one in store.open_spans("p1")] == [OpenState.STALLED]
        send(store, heartbeat(1))
        assert [one.state for one in store.open_spans("p1")] == [OpenState.RUNNING]


def test_heartbeats_do_not_let_the_store_grow(tmp_path: Path, clock: Clock) -> None:
    """An hour of them leaves one row, and no log record."""
    with closing(opened(tmp_path, clock)) as store:
        send(store, announced())
        before = rows(store, "processes", "open_spans", "logs", "resources", "scopes", "traces")
        send(store, *(heartbeat(1, sequence=n, at_ms=1_000 * n) for n in range(2, 3_600)))

        after = rows(store, "processes", "open_spans", "logs", "resources", "scopes", "traces")
        assert after == before
        assert store.stats().logs == 0
        assert store.stats().open_spans == 1


WRITER = """
import sys, os, signal
from pathlib import Path
from spanloom.contract import Batch
from spanloom.store import open_store
from tests.builders_inflight import announced, heartbeat
store = open_store(Path(sys.argv[1]))
store.submit(Batch(logs=[announced("a", 1), announced("b", 2), heartbeat(1, 2)])).result(30)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_open_spans_survive_kill_9(tmp_path: Path) -> None:
    """Acknowledged is acknowledged, and the next server knows which final span closes which."""
    path = tmp_path / "spanloom.db"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", WRITER, str(path)], cwd=root, check=False, timeout=60)
    with closing(open_store(path)) as store:
        assert {one.span.name for one in store.open_spans("p1")} == {"a", "b"}
        assert [process.sequence for process in store.processes()] == [1]
        store.submit(Batch(spans=[span("a", 1)])).result(TIMEOUT_S)
        with closing(open_reader(path)) as reader:
            trace = reader.get_trace(trace_id(1))
        assert trace is not None
        assert [one.name for one in trace.spans] == ["a"]
        assert [one.span.name for one in trace.open_spans] == ["b"]
        assert store.stats().open_spans == 1


def test_beyond_the_bound_announcements_are_refused_and_counted(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays; an end makes room."""
    monkeypatch.setattr(inflight, "MAX_OPEN_SPANS", 3)
    monkeypatch.setattr(inflight, "MAX_PROCESSES", 2)
    with closing(opened(tmp_path, clock)) as store:
        send(store, *(announced(f"s{n}", n) for n in range(1, 6)))
        assert (store.stats().open_spans, store.stats().open_spans_refused) == (3, 2)
        store.submit(Batch(spans=[span("s1", 1)])).result(TIMEOUT_S)
        send(store, announced("s4", 4))
        assert {one.span.name for one in store.open_spans("p1")} == {"s2", "s3", "s4"}
        send(store, *(heartbeat(instance=f"p{n}") for n in range(1, 10)))
        assert len(store.processes()) == 2


def test_retention_takes_open_spans_with_their_trace(tmp_path: Path, clock: Clock) -> None:
    """Nothing of them stays: no row, no count, no resource, no process, no service."""
    keep = Retention(max_age_s=100, max_bytes=None)
    with closing(opened(tmp_path, clock, retention=keep)) as store:
        send(store, announced("a", 1), announced("b", 1, trace=2, service="b", instance="p2"))
        store.submit(Batch(spans=[span("part", 3)])).result(TIMEOUT_S)
        time.sleep(0.1)  # several sweeps, none of which may touch what is in use
        assert store.services() == ["agent", "b"]
        clock.now_s += 1_000
        eventually(lambda: not any(rows(store, "open_spans", "traces", "resources", "processes")))

        assert rows(store, "scopes", "services", "operations", "spans") == [0, 0, 0, 0]
        assert store.stats().open_spans == store.stats().traces == 0
        send(store, announced("again", 1))
        assert [one.span.name for one in store.open_spans("p1")] == ["again"]


def test_what_ended_leaves_nothing_behind(tmp_path: Path, clock: Clock) -> None:
    """Announced under one name and resource, ended under another: only the latter is listed."""
    with closing(opened(tmp_path, clock)) as store:
        send(store, announced("early name", service="early"))
        store.submit(Batch(spans=[span("late name", service="late")])).result(TIMEOUT_S)
        assert store.services() == ["late"]
        assert store.operations("early") == []
        eventually(lambda: rows(store, "open_spans", "resources", "services") == [0, 1, 1])
        clock.now_s += 100
        eventually(lambda: rows(store, "processes") == [0])


def test_a_store_of_schema_2_takes_open_spans(tmp_path: Path, clock: Clock) -> None:
    """A file of the version before opens with all it holds, and `spanloom.*` events in its logs."""
    path = tmp_path / "spanloom.db"
    path.touch()
    with closing(connect_writer(path)) as connection:
        configure_writer(connection, "process", None)
        for number, script in sql.migrations()[:2]:
            schema._apply(connection, number, script)
        for table, values in _SCHEMA_2_ROWS.items():
            connection.execute(f"INSERT INTO {table} VALUES ({values})")
        connection.execute("UPDATE row_counts SET count = 1 WHERE name <> 'metric_points'")
    with closing(opened(tmp_path, clock)) as store:
        old = store.get_trace(trace_id(9))
        assert old is not None
        assert [one.name for one in old.spans] == ["op"]
        assert old.open_spans == ()
        (line,) = store.find_summaries(TraceQuery())
        assert (line.span_count, line.open_span_count) == (1, 0)
        assert store.trace_logs(trace_id(9)) == []
        send(store, announced(trace=9, number=5, start_ms=1))
        assert store.find_summaries(TraceQuery())[0].open_span_count == 1
        stats = store.stats()
        assert (stats.spans, stats.logs, stats.open_spans, stats.traces) == (1, 1, 1, 1)


_SCHEMA_2_ROWS = {
    "services": "1, 'unknown_service'",
    "resources": "1, x'01', 1, x'', 2",
    "scopes": "1, x'01', x'', 2",
    "operations": "1, 1, 'op', 1, 1",
    "traces": f"1, x'{trace_id(9)}', 1900000000000",
    "spans": "1, 1, x'0000000000000001', NULL, 1, 1, 1, 5, 6, 0, 0, NULL, NULL, NULL, x''",
    "blocks": "0, 5, 5, 1, 1",
    "logs": f"1, x'{trace_id(9)}', 5, 1900000000000, 1, 1, 1, x'01', x''",
}
