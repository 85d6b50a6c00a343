"""What the storage contract promises about spans that have not ended; see `contract_suite`."""

from spanloom.contract import Batch, Reader, Writer
from spanloom.model import LogEvent, OpenState, Operation, SpanKind, Trace, TraceQuery
from tests.builders import MS, T0, log, span, span_id, trace_id
from tests.builders_inflight import announced, heartbeat
from tests.store.contract_search import TIMEOUT_S, found, put


def send(writer: Writer, *events: LogEvent) -> None:
    """Store log events and wait for the acknowledgement."""
    writer.submit(Batch(logs=events)).result(TIMEOUT_S)


def in_flight(reader: Reader, trace: int = 1) -> Trace:
    """A trace that must be there."""
    found_one = reader.get_trace(trace_id(trace))
    assert found_one is not None
    return found_one


class InFlightContract:
    """Open spans are state: kept, found, and gone when their end arrives."""

    def test_an_open_span_is_seen_as_long_as_it_is_known_to_run(
        self, writer: Writer, reader: Reader
    ) -> None:
        """Whole, marked, and ending at the latest sign of life of its process."""
        send(
            writer,
            announced(
                "工具 <b>", 2, parent=1, kind="client", attributes={"q": "你好", "n": (1, 2)}
            ),
            heartbeat(2, at_ms=7_000),
        )

        trace = in_flight(reader)
        (one,) = trace.open_spans
        assert trace.spans == ()
        assert trace.all_spans == (one.span,)
        assert (one.state, one.process, one.revision) == (OpenState.RUNNING, "p1", 1)
        assert one.span.name == "工具 <b>"
        assert one.span.kind is SpanKind.CLIENT
        assert one.span.parent_span_id == span_id(1)
        assert one.span.start_time_unix_nano == T0
        assert one.span.duration_ns == 7_000 * MS
        assert one.span.scope.name == "tests"
        assert one.span.service_name == "agent"
        assert dict(one.span.attributes) == {
            "q": "你好",
            "n": (1, 2),
            "spanloom.incomplete": True,
            "spanloom.in_flight": True,
        }
        assert reader.get_span(trace_id(1), span_id(2)) == one.span
        assert reader.get_span(trace_id(1), span_id(3)) is None

    def test_the_final_span_takes_its_place(self, writer: Writer, reader: Reader) -> None:
        """In one step; an announcement that comes after it changes nothing."""
        send(writer, announced("a", 1), announced("b", 2, parent=1))
        put(writer, span("b", 2, parent=1))
        send(writer, announced("b", 2, revision=2, at_ms=9_000))

        trace = in_flight(reader)
        assert [one.name for one in trace.spans] == ["b"]
        assert [one.span.name for one in trace.open_spans] == ["a"]
        put(writer, span("a", 1, attributes={"spanloom.incomplete": True}))
        trace = in_flight(reader)
        assert [one.name for one in trace.all_spans] == ["a", "b"]
        assert trace.open_spans == ()
        assert reader.find_summaries(TraceQuery())[0] == trace.summary()

    def test_a_later_announcement_replaces_an_earlier_one(
        self, writer: Writer, reader: Reader
    ) -> None:
        """Whatever the order of arrival."""
        second = announced("chat", revision=2, service="new", attributes={"v": "2"})
        send(writer, announced("old", attributes={"v": "1"}))
        send(writer, second, announced("old", attributes={"v": "1"}), second)

        (one,) = in_flight(reader).open_spans
        assert (one.revision, one.span.name) == (2, "chat")
        assert found(reader, tags={"v": "1"}) == []
        assert found(reader, tags={"v": "2"}) == [1]
        assert reader.services() == ["new"]

    def test_search_finds_what_is_in_flight(self, writer: Writer, reader: Reader) -> None:
        """By every condition, in one order with finished traces, and counted in its line."""
        put(writer, span("done", trace=1, start_ms=10), span("done", trace=3, start_ms=30))
        put(writer, span("part", 7, trace=2, parent=8, start_ms=21, service="other"))
        send(
            writer,
            announced("hang", 8, trace=2, start_ms=20, kind="client", attributes={"k": "v"}),
            heartbeat(8, at_ms=4_020),
        )

        assert found(reader) == [3, 2, 1]
        assert found(reader, limit=2) == [3, 2]
        assert found(reader, start_ns=T0 + 20 * MS, end_ns=T0 + 21 * MS) == [2]
        assert found(reader, service="agent", operation="hang") == [2]
        assert found(reader, service="other", operation="hang") == []
        assert found(reader, operation="hang", tags={"k": "v", "span.kind": "client"}) == [2]
        assert found(reader, operation="hang", tags={"k": "w"}) == []
        assert found(reader, tags={"error": "true", "k": "v"}) == []
        assert found(reader, tags={"spanloom.in_flight": "true"}) == [2]
        assert found(reader, min_duration_ns=4_000 * MS) == [2]
        assert found(reader, min_duration_ns=4_001 * MS) == []
        assert found(reader, max_duration_ns=3_999 * MS, operation="hang") == []
        assert Operation("hang", SpanKind.CLIENT) in reader.operations("agent")
        (line,) = reader.find_summaries(TraceQuery(operation="hang"))
        assert line == in_flight(reader, 2).summary()
        assert (line.root_name, line.span_count, line.open_span_count) == ("hang", 2, 1)
        assert (line.duration_ns, line.services) == (4_000 * MS, ("agent", "other"))

    def test_neither_event_is_a_log_line(self, writer: Writer, reader: Reader) -> None:
        """They are state, also beside log lines of the same request."""
        line = log("a line")
        send(writer, announced(), line, heartbeat(1))

        assert reader.trace_logs(trace_id(1)) == [line]

    def test_what_heartbeats_no_longer_list_is_lost(self, writer: Writer, reader: Reader) -> None:
        """After two in a row, with the first as its end; a listed one is not, nor another's."""
        send(writer, announced("gone", 1), announced("here", 2), announced("x", 3, instance="p2"))
        send(writer, heartbeat(2, sequence=1, at_ms=3_000))
        assert {one.state for one in in_flight(reader).open_spans} == {OpenState.RUNNING}
        send(writer, heartbeat(2, sequence=2, at_ms=4_000))
        send(writer, heartbeat(2, sequence=3, at_ms=5_000))

        states = {one.span.name: (one.state, one.span.duration_ns) for one in
                  in_flight(reader).open_spans}  # fmt: skip
        assert states == {
            "gone": (OpenState.LOST, 3_000 * MS),
            "here": (OpenState.RUNNING, 5_000 * MS),
            "x": (OpenState.RUNNING, 1_000 * MS),
        }
        send(writer, heartbeat(1, 2, sequence=4, at_ms=6_000))
        assert {one.state for one in in_flight(reader).open_spans} == {OpenState.RUNNING}

    def test_a_heartbeat_sent_again_counts_once(self, writer: Writer, reader: Reader) -> None:
        """Clients retry; an older one that comes late says nothing either."""
        send(writer, announced("a", 1))
        for sequence in (5, 5, 5, 4):
            send(writer, heartbeat(sequence=sequence, at_ms=1_000 * sequence))

        (one,) = in_flight(reader).open_spans
        assert one.state is OpenState.RUNNING

    def test_after_the_last_heartbeat_nothing_runs(self, writer: Writer, reader: Reader) -> None:
        """A process that ended in order cannot have open spans."""
        send(writer, announced("a", 1), heartbeat(1, at_ms=8_000, last=True))

        (one,) = in_flight(reader).open_spans
        assert (one.state, one.span.duration_ns) == (OpenState.LOST, 8_000 * MS)

    def test_what_cannot_be_read_is_ignored(self, writer: Writer, reader: Reader) -> None:
        """Strangers may send anything under these names."""
        good = announced("good", 5)
        odd = {
            "spanloom.span.name": ("list",),
            "spanloom.span.start_time_unix_nano": -1,
            "spanloom.span.kind": 7,
            "spanloom.span.parent_id": "zz",
            "spanloom.span.attributes": "text",
            "spanloom.span.revision": True,
            "spanloom.span.scope": {},
        }
        strange = [
            log(None, span=6, event_name="spanloom.span.open",
                attributes={**good.attributes, key: value})
            for key, value in odd.items()
        ]  # fmt: skip
        nowhere = log(None, trace=None, event_name="spanloom.span.open", attributes=odd)
        empty = log(None, event_name="spanloom.process.heartbeat")
        send(writer, *strange, nowhere, empty, good)

        assert {one.span.name for one in in_flight(reader).open_spans} == {"good"}
