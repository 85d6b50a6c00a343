"""Open spans of processes that died or let go of them are ended, and no others."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanloom.contract import Batch
from spanloom.model import ProcessState, Span, StatusCode, Trace
from spanloom.server.reaper import LOOK_EVERY_S, Due, Reaper, Silence
from spanloom.sources.http import HttpReader
from spanloom.store import open_store
from tests.builders import MS, T0, span, span_id, trace_id
from tests.builders_inflight import announced, heartbeat
from tests.server.running import WAIT_S, Client, running

REAP_AFTER_S = 2.0
DIED = 'spanloom_reaped_spans_total{error_type="process_died"}'


def eventually(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (seen := look()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)
    return seen


def trace_of(client: Client, number: int = 1) -> Trace | None:
    with closing(HttpReader(client.addresses.query)) as reader:
        return reader.get_trace(trace_id(number))


def ended(client: Client, number: int = 1) -> Callable[[], Trace | None]:
    """The trace once nothing of it is open."""

    def look() -> Trace | None:
        trace = trace_of(client, number)
        return trace if trace is not None and not trace.open_spans else None

    return look


def metric(client: Client, name: str) -> float:
    for line in client.query.get("/metrics").text.splitlines():
        if line.startswith(name):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_a_dead_process_leaves_ended_spans(tmp_path: Path) -> None:
    """ERROR, incomplete, process_died, until the last sign of life; a late truth replaces it."""
    with running(tmp_path, reap_after_s=REAP_AFTER_S) as server:
        send = announced("chat", 2, parent=1, attributes={"q": "你好"})
        server.send(logs=[announced("POST", 1), send, heartbeat(1, 2, at_ms=6_000)])
        assert metric(server, "spanloom_inflight_spans") == 2

        trace = eventually(ended(server))

        _, chat = trace.spans
        assert chat.status.code is StatusCode.ERROR
        assert "died" in chat.status.message
        assert chat.end_time_unix_nano == T0 + 6_000 * MS
        assert dict(chat.attributes) == {
            "q": "你好",
            "spanloom.incomplete": True,
            "spanloom.outcome": "error",
            "error.type": "process_died",
        }
        assert chat.resource.attributes["service.instance.id"] == "p1"
        assert metric(server, "spanloom_inflight_spans") == 0
        eventually(lambda: metric(server, DIED) == 2)  # counted after it is stored

        truth = span("chat", 2, parent=1, duration_ms=30_000)
        server.send(spans=[truth])
        late = trace_of(server)
        assert late is not None
        assert [one.is_error for one in late.spans] == [True, False]


def test_a_living_process_keeps_its_spans_and_loses_those_it_no_longer_lists(
    tmp_path: Path,
) -> None:
    """A heartbeat that goes on is life; what it does not list ends where it was missing first."""
    with running(tmp_path, reap_after_s=REAP_AFTER_S) as server:
        server.send(logs=[announced("kept", 1), announced("gone", 2, trace=2)])
        sequence = itertools.count(1)

        def beat_until_lost() -> Trace | None:
            number = next(sequence)
            server.send(logs=[heartbeat(1, sequence=number, at_ms=2_000 + 1_000 * number)])
            return ended(server, 2)()

        trace = eventually(beat_until_lost)
        assert trace.spans[0].attributes["error.type"] == "span_lost"
        assert trace.spans[0].end_time_unix_nano == T0 + 3_000 * MS
        kept = trace_of(server)
        assert kept is not None
        assert [one.span.name for one in kept.open_spans] == ["kept"]


def test_an_orderly_end_without_the_spans_end_is_a_loss(tmp_path: Path) -> None:
    """The process said goodbye, so it did not die."""
    with running(tmp_path, reap_after_s=REAP_AFTER_S) as server:
        server.send(logs=[announced("a"), heartbeat(1, at_ms=9_000, last=True)])

        (one,) = eventually(ended(server)).spans
        assert one.attributes["error.type"] == "span_lost"
        assert one.duration_ns == 9_000 * MS


def test_open_spans_survive_a_restart_and_get_their_whole_time_again(tmp_path: Path) -> None:
    """The new server knows what is open, and waits for heartbeats before it ends anything."""
    with running(tmp_path) as server:
        server.send(logs=[announced("a"), heartbeat(1)])
    time.sleep(REAP_AFTER_S)
    with running(tmp_path, reap_after_s=REAP_AFTER_S) as server:
        again = trace_of(server)
        assert again is not None
        assert [one.span.name for one in again.open_spans] == ["a"]
        server.send(spans=[span("a")])
        trace = eventually(ended(server))
        assert not trace.spans[0].is_error


def process(**fields: Any) -> ProcessState:
    state = ProcessState("p", 1, 1, 1, ended=False, open_spans=1, lost_spans=0, most_misses=0)
    return replace(state, **fields)


def test_silence_is_counted_from_the_first_look() -> None:
    """Not from the heartbeat's own time, which may be years ago or ahead."""
    silence = Silence(reap_after_s=2.0)
    looks = [silence.look([process()], LOOK_EVERY_S) for _ in range(6)]

    assert looks == [[], [], [], [], [Due("p", 0)], [Due("p", 0)]]


def test_any_sign_of_life_ends_the_silence() -> None:
    """A later announcement as well as a heartbeat; also with a clock that was set back."""
    silence = Silence(reap_after_s=1.0)
    signs = [process(time_unix_nano=9), process(time_unix_nano=3), process(sequence=7)]
    for state in signs * 5:
        assert silence.look([state], LOOK_EVERY_S) == []


def test_a_server_that_was_suspended_has_not_listened() -> None:
    """An hour between two looks counts as a moment."""
    silence = Silence(reap_after_s=5.0)
    silence.look([process()], LOOK_EVERY_S)

    assert silence.look([process()], 3600.0) == []


def test_a_server_that_turned_requests_away_ends_nothing(tmp_path: Path) -> None:
    """Heartbeats may have been among them; once it takes everything again, it counts anew."""
    with closing(open_store(tmp_path / "spanloom.sqlite")) as store:
        store.submit(Batch(logs=[announced("a")])).result(WAIT_S)
        full = itertools.count()
        looks = threading.Semaphore(0)
        turning_away = True

        def turned_away() -> int:
            looks.release()
            return next(full) if turning_away else -1

        async def reap() -> None:
            nonlocal turning_away
            reaper = Reaper(store, store, 1.0, lambda *_: None, turned_away)
            task = asyncio.create_task(reaper.run())
            try:
                for _ in range(6):
                    await asyncio.to_thread(looks.acquire)
                assert store.stats().open_spans == 1
                turning_away = False
                await asyncio.to_thread(eventually, lambda: not store.stats().open_spans)
            finally:
                task.cancel()

        asyncio.run(asyncio.wait_for(reap(), WAIT_S))


@pytest.mark.parametrize("misses", [0, 2, 4])
def test_a_few_missed_heartbeats_are_patience(misses: int) -> None:
    """The span may have ended, with its batch still on the way."""
    silence = Silence(reap_after_s=5.0)

    assert silence.look([process(most_misses=misses)], LOOK_EVERY_S) == []
    assert silence.look([process(most_misses=5)], LOOK_EVERY_S) == [Due("p", 5)]
    assert silence.look([process(most_misses=5, open_spans=0)], LOOK_EVERY_S) == []


def test_many_open_spans_are_ended_at_once(tmp_path: Path) -> None:
    """In several batches, each of them once."""
    with running(tmp_path, reap_after_s=REAP_AFTER_S) as server:
        for first in range(1, 2501, 500):
            server.send(logs=[announced(f"s{n}", n) for n in range(first, first + 500)])

        trace = eventually(ended(server))

        assert len(trace.spans) == 2500
        assert {one.span_id for one in trace.spans} == {span_id(n) for n in range(1, 2501)}
        eventually(lambda: metric(server, DIED) == 2500)  # counted after it is stored


def test_the_jaeger_api_shows_one_version_of_a_span(tmp_path: Path) -> None:
    """Open: marked, as long as it is known to run. Ended: the final one alone."""
    with running(tmp_path) as server:
        server.send(logs=[announced("hang", 7, attributes={"k": "v"}), heartbeat(7, at_ms=4_000)])

        def shown() -> dict[str, Any]:
            (trace,) = server.json("/api/traces", service="agent")["data"]
            (one,) = trace["spans"]
            assert server.json(f"/api/traces/{trace_id(1)}")["data"] == [trace]
            return dict(one)

        tags = {tag["key"]: tag["value"] for tag in shown()["tags"]}
        assert shown()["duration"] == 4_000_000
        assert tags["k"] == "v"
        assert (tags["spanloom.in_flight"], tags["spanloom.incomplete"]) == (True, True)
        assert "has not ended" in shown()["warnings"][0]
        final: Span = span("hang", 7, duration_ms=9_000)
        server.send(spans=[final])
        assert shown()["duration"] == 9_000_000
        assert shown()["warnings"] is None
