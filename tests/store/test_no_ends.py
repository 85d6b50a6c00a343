"""A store behind a Collector, which sees no ends: what is open, what is forgotten, the outbox."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from spanloom import semconv
from spanloom.contract import Batch
from spanloom.errors import StoreFullError
from spanloom.model import LogEvent, OpenState
from spanloom.store import SqliteStore, ingest, open_store
from tests.builders import span, span_id
from tests.builders_inflight import announced, heartbeat

WAIT_S = 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(open_store(tmp_path / "reap.sqlite", no_ends=True)) as made:
        yield made


def send(store: SqliteStore, *logs: LogEvent) -> None:
    store.submit(Batch(logs=logs)).result(WAIT_S)


def after(beat: int, *arguments: Any, **named: Any) -> LogEvent:
    """An announcement that says which heartbeat came before it."""
    event = announced(*arguments, **named)
    said = {**event.attributes, semconv.SPANLOOM_HEARTBEAT_SEQUENCE: beat}
    return replace(event, attributes=said)


def ended(number: int, *, given_up: bool = False, at_ms: float = 3_000) -> LogEvent:
    """The event `spanloom.span.ended`."""
    said = {semconv.SPANLOOM_SPAN_GIVEN_UP: True} if given_up else {}
    event = announced(number=number, at_ms=at_ms)
    return replace(event, event_name=semconv.EVENT_SPAN_ENDED, attributes=said)


def open_ids(store: SqliteStore) -> set[str]:
    return {one.span.span_id for one in store.open_spans("p1")}


def test_a_span_is_open_for_as_long_as_later_heartbeats_list_it(store: SqliteStore) -> None:
    send(store, after(4, number=1), after(4, number=2), heartbeat(sequence=4))
    assert open_ids(store) == {span_id(1), span_id(2)}  # that heartbeat was before both
    send(store, heartbeat(1, 2, sequence=5, at_ms=3_000))
    assert open_ids(store) == {span_id(1), span_id(2)}
    send(store, heartbeat(2, sequence=6, at_ms=4_000))
    assert open_ids(store) == {span_id(2)}
    assert store.stats().open_spans == 1


def test_an_announcement_that_comes_after_its_end_opens_nothing(store: SqliteStore) -> None:
    """A retry may bring it behind heartbeats that were sent after it."""
    send(store, heartbeat(2, sequence=6, at_ms=4_000), after(4, number=1), after(4, number=2))
    assert open_ids(store) == {span_id(2)}
    assert store.stats().traces == 1  # both were of this one


def test_what_its_process_ended_is_forgotten_with_its_trace(store: SqliteStore) -> None:
    send(store, announced(number=1))
    assert store.stats().traces == 1
    send(store, ended(1))
    assert open_ids(store) == set()
    assert (store.stats().open_spans, store.stats().traces) == (0, 0)
    send(store, ended(7), ended(7, given_up=True))  # never announced
    assert store.stats().traces == 0


def test_what_was_given_up_is_lost_whatever_heartbeats_say(store: SqliteStore) -> None:
    send(store, announced(number=1), announced(number=2), ended(1, given_up=True))
    send(store, heartbeat(2, sequence=9, at_ms=4_000))
    (lost,) = store.open_spans("p1", min_misses=2)
    assert lost.span.span_id == span_id(1)
    assert lost.state is OpenState.LOST
    assert open_ids(store) == {span_id(1), span_id(2)}


def test_an_end_goes_into_the_outbox_once_and_out_when_it_is_delivered(store: SqliteStore) -> None:
    send(store, announced("查询", number=1))
    final = span("查询", number=1)
    for _ in range(2):
        store.submit(Batch(spans=[final])).result(WAIT_S)
    (waiting,) = store.outgoing(10, 10_000)
    (sent,) = TracesData.FromString(waiting.message).resource_spans[0].scope_spans[0].spans
    assert (sent.name, sent.span_id.hex()) == ("查询", span_id(1))
    assert store.stats().outbox == 1
    assert open_ids(store) == set()

    store.submit(Batch(delivered=[waiting.id])).result(WAIT_S)
    assert store.outgoing(10, 10_000) == []
    send(store, announced("查询", number=1, revision=2))  # from a process that was resumed
    store.submit(Batch(spans=[final])).result(WAIT_S)
    assert open_ids(store) == set()
    assert store.stats().outbox == 0


def test_a_full_outbox_leaves_spans_open(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "MAX_OUTBOX", 2)
    send(store, *(announced(number=number) for number in (1, 2, 3)))
    store.submit(Batch(spans=[span(number=1), span(number=2)])).result(WAIT_S)
    with pytest.raises(StoreFullError, match="wait for the Collector"):
        store.submit(Batch(spans=[span(number=3)])).result(WAIT_S)
    assert open_ids(store) == {span_id(3)}

    first = store.outgoing(1, 10_000)
    assert len(store.outgoing(10, 1)) == 1  # one at least, however large
    store.submit(Batch(delivered=[first[0].id])).result(WAIT_S)
    store.submit(Batch(spans=[span(number=3)])).result(WAIT_S)
    assert store.stats().outbox == 2
    assert open_ids(store) == set()
