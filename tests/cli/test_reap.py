"""`spanloom reap` with real processes: what is killed, stopped, away, wrong, and what comes out."""

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from spanloom.otlp import logs_to_message
from spanloom.store import REAP_FILE, open_reader
from tests.builders_inflight import announced, heartbeat
from tests.cli.reaping import AFTER_S, WAIT_S, Agent, Reap, Target, is_reaped, refuses_some
from tests.free_ports import free_port
from tests.telemetry.live import attributes, wait_for

pytestmark = pytest.mark.timeout(300)

IN_FLIGHT = "spanloom_inflight_spans"
OUTBOX = "spanloom_reap_outbox_spans"
UP = "spanloom_reap_collector_up"
DELIVERED = "spanloom_reap_delivered_spans_total"
DIED = 'spanloom_reaped_spans_total{error_type="process_died"}'


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


def reaped(target: Target) -> list[Span]:
    return [span for span in list(target.spans) if is_reaped(span)]


def test_a_killed_process_has_each_open_span_ended_once(tmp_path: Path, target: Target) -> None:
    """ERROR, incomplete, ended at the last sign of life; what had ended is left alone."""
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        wait_for(lambda: target.spans)
        assert [span.name for span in target.spans] == ["done before"]
        killed_at = time.time_ns()
        agent.kill()

        tool, chat = wait_for(
            lambda: (seen := sorted(reaped(target), key=lambda s: s.name != "execute_tool 天气"))
            and len(seen) == 2 and seen, WAIT_S,
        )  # fmt: skip
        assert (chat.name, tool.name) == ("POST /chat", "execute_tool 天气")
        assert tool.parent_span_id == chat.span_id
        assert target.spans[0].parent_span_id == chat.span_id
        assert {span.trace_id for span in target.spans} == {chat.trace_id}
        assert attributes(chat)["question"] == "你好"
        for span in (chat, tool):
            assert span.status.code == Status.STATUS_CODE_ERROR
            assert "died" in span.status.message
            assert attributes(span)["error.type"] == "process_died"
            assert "spanloom.in_flight" not in attributes(span)
            assert span.start_time_unix_nano < span.end_time_unix_nano <= killed_at

        reap.waits_for(OUTBOX, 0)
        reap.waits_for(DELIVERED, 2)  # counted after it is stored
        metrics = reap.metrics()
        assert metrics[IN_FLIGHT] == 0
        assert metrics[DIED] == 2
        wait_for(lambda: len(target.bodies) > 8, WAIT_S)  # it goes on asking, and sends no more
        assert set(target.times().values()) == {1}


def test_what_ends_in_order_is_left_to_its_process(tmp_path: Path, target: Target) -> None:
    """Its heartbeats no longer list the span, or it says goodbye: nothing is ended for it."""
    with (
        Reap(tmp_path, target.url) as reap,
        Agent(target.url, reap.otlp) as lives_on,
        Agent(target.url, reap.otlp) as leaves,
        Agent(target.url, reap.otlp) as hangs,
    ):
        reap.waits_for(IN_FLIGHT, 6)
        lives_on.go_on()
        leaves.go_on()
        leaves.go_on()
        assert leaves.process.wait(WAIT_S) == 0
        lives_on.waits_for("ended")
        reap.waits_for(IN_FLIGHT, 2)
        # what a batch in memory still held would die with the process
        wait_for(lambda: len(target.times()) == 7, WAIT_S)
        lives_on.kill()  # what it had ended is no longer listed by its heartbeats
        hangs.kill()
        reap.waits_for(DIED, 2)
        reap.waits_for(OUTBOX, 0)

        assert len(target.spans) == 9
        assert len(reaped(target)) == 2
        assert set(target.times().values()) == {1}


def test_ends_wait_for_a_collector_that_takes_none_and_survive_our_own_kill_9(
    tmp_path: Path, target: Target
) -> None:
    """They stay on disk over two kills, and are the same bytes at each attempt."""
    target.answer = lambda spans: (503, b"") if any(map(is_reaped, spans)) else (200, b"")
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        agent.kill()
        reap.waits_for(OUTBOX, 2)
        wait_for(lambda: reap.metrics()["spanloom_reap_delivery_failures_total"] >= 2, WAIT_S)
        assert reap.health()["collector"] == "does not answer"
        reap.kill()
    with Reap(tmp_path, target.url) as reap:
        assert reap.metrics()[OUTBOX] == 2
        wait_for(lambda: reap.metrics()["spanloom_reap_delivery_failures_total"] >= 1, WAIT_S)
        reap.kill()
    assert reaped(target) == []
    target.answer = lambda _: (200, b"")
    with Reap(tmp_path, target.url) as reap:
        reap.waits_for(OUTBOX, 0)
        assert len(reaped(target)) == 2
        assert set(target.times().values()) == {1}
        attempts = {body for body in target.bodies if b"process_died" in body}
        assert len(attempts) == 1
        assert reap.metrics()[IN_FLIGHT] == 0


def test_killed_itself_before_the_process_it_ends_that_after_the_next_start(
    tmp_path: Path, target: Target
) -> None:
    """What was open is on disk; the dead process gets its whole time again, then its ends."""
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        reap.kill()
        agent.kill()
    with Reap(tmp_path, target.url) as reap:
        assert reap.metrics()[IN_FLIGHT] == 2
        reap.waits_for(DIED, 2)
        reap.waits_for(OUTBOX, 0)
        assert len(reaped(target)) == 2
        assert set(target.times().values()) == {1}


def test_a_process_that_outlives_a_restart_of_the_reaper_is_not_dead(
    tmp_path: Path, target: Target
) -> None:
    """Its announcements and heartbeats come again; nothing is ended for it."""
    with (
        Reap(tmp_path, target.url, port=free_port()) as reap,
        Agent(target.url, reap.otlp) as agent,
    ):
        reap.waits_for(IN_FLIGHT, 2)
        reap.kill()
        time.sleep(AFTER_S + 1)  # longer than it waits before it ends anything
        with Reap(tmp_path, target.url, port=reap.port) as again:
            time.sleep(AFTER_S + 2)
            assert again.metrics()[IN_FLIGHT] == 2
            assert reaped(target) == []
            agent.kill()
            again.waits_for(DIED, 2)
            wait_for(lambda: len(reaped(target)) == 2, WAIT_S)
            assert set(target.times().values()) == {1}


def test_while_the_collector_is_away_silence_is_no_death(tmp_path: Path, target: Target) -> None:
    """Heartbeats come by way of it; each process has its whole time again after that."""
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        target.close()
        reap.waits_for(UP, 0)
        agent.process.send_signal(signal.SIGSTOP)  # as heartbeats that nobody forwards
        time.sleep(AFTER_S + 3)
        assert reap.metrics()[IN_FLIGHT] == 2
        assert reap.metrics()[OUTBOX] == 0
        agent.process.send_signal(signal.SIGCONT)
        back = Target(target.port)
        try:
            reap.waits_for(UP, 1)
            time.sleep(AFTER_S + 1)
            assert reap.metrics()[IN_FLIGHT] == 2
            assert reaped(back) == []
            agent.kill()
            reap.waits_for(DIED, 2)
            wait_for(lambda: len(reaped(back)) == 2, WAIT_S)
            assert set(back.times().values()) == {1}
        finally:
            back.close()


@pytest.mark.parametrize(
    ("answer", "taken", "refused"),
    [
        (lambda spans: (400, b"no") if "POST /chat" in names(spans) else (200, b""), 1, 1),
        (lambda spans: (413, b"big") if len(spans) > 1 else (200, b""), 2, 0),
        (lambda spans: (200, refuses_some(len(spans), "no room")), 0, 2),
    ],
    ids=["400-for-one", "413-for-two", "partial-success"],
)  # fmt: skip
def test_refusals_cost_what_is_refused_and_nothing_else(
    tmp_path: Path, target: Target, answer: object, taken: int, refused: int
) -> None:
    """A request is taken apart until only what is refused by itself is dropped, and counted."""
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        target.answer = answer  # type: ignore[assignment]
        agent.kill()
        reap.waits_for(DIED, 2)
        reap.waits_for(OUTBOX, 0)
        reap.waits_for(DELIVERED, taken)  # counted after it is stored
        metrics = reap.metrics()
        assert metrics["spanloom_reap_refused_spans_total"] == refused
        assert max(target.times().values()) == 1
        code, said = reap.stop()
        assert code == 0
        assert ("refused" in said) == bool(refused)


def test_garbage_on_the_wire_is_refused_and_harms_nothing(tmp_path: Path, target: Target) -> None:
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        for body in (b"\xff" * 100, b'{"resourceLogs": 7}', "\u4f60".encode()):
            assert reap.post(body).status_code == 400
        assert reap.post(b"not gzip", Content_Encoding="gzip").status_code == 400
        assert reap.post(b"{}", Content_Type="text/plain").status_code == 415
        assert reap.health()["status"] == "ok"
        agent.kill()
        reap.waits_for(DIED, 2)
        wait_for(lambda: len(reaped(target)) == 2, WAIT_S)
        assert set(target.times().values()) == {1}


def test_sigterm_ends_it_cleanly_and_what_waits_is_kept(tmp_path: Path, target: Target) -> None:
    target.answer = lambda spans: (503, b"") if any(map(is_reaped, spans)) else (200, b"")
    with Reap(tmp_path, target.url) as reap, Agent(target.url, reap.otlp) as agent:
        reap.waits_for(IN_FLIGHT, 2)
        agent.kill()
        reap.waits_for(OUTBOX, 2)
        code, said = reap.stop()
        assert code == 0
        assert "Traceback" not in said
    target.answer = lambda _: (200, b"")
    with Reap(tmp_path, target.url) as reap:
        wait_for(lambda: len(reaped(target)) == 2, WAIT_S)
        assert reap.stop()[0] == 0


def test_state_on_disk_does_not_grow_with_what_has_ended(tmp_path: Path, target: Target) -> None:
    """20,000 spans announced and ended; a huge announcement is kept without its attributes."""
    with Reap(tmp_path, target.url, after="300s") as reap:
        sizes = []
        for turn in range(1, 41):
            # Each span in a trace of its own; the next turn's heartbeat no longer lists these.
            events = [
                announced("查询", number, trace=1_000 * turn + number, attributes={"q": "字" * 100})
                for number in range(1, 501)
            ]
            events.append(heartbeat(sequence=turn, at_ms=2_000 + turn))
            assert reap.post(logs_to_message(events).SerializeToString()).status_code == 200
            sizes.append(reap.metrics()["spanloom_store_bytes"])
        gone = heartbeat(sequence=41, at_ms=9_000)
        assert reap.post(logs_to_message([gone]).SerializeToString()).content == b""
        metrics = reap.metrics()
        assert metrics[IN_FLIGHT] == 0
        assert metrics["spanloom_store_traces"] == 0
        # In the first half the write-ahead log has grown as far as it goes, or a little further
        # where somebody was reading when it could have begun anew. Had the second half been kept,
        # it would be half as much again.
        assert max(sizes[20:]) <= 1.25 * max(sizes[:20]), sizes

        huge = announced("查询", 1, attributes={"q": "字" * 1_000_000})
        assert reap.post(logs_to_message([huge]).SerializeToString()).content == b""
        assert reap.metrics()[IN_FLIGHT] == 1
        with closing(open_reader(tmp_path / REAP_FILE)) as reader:
            (kept,) = reader.open_spans("p1")
        assert "q" not in kept.span.attributes
        assert kept.span.name == "查询"
        assert reap.stop()[0] == 0
