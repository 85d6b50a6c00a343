"""The search promises of the storage contract; see `contract_suite`."""

import random
from dataclasses import replace
from typing import Any

import pytest

from spanloom.contract import Batch, Reader, Writer
from spanloom.model import Span, SpanEvent, SpanKind, SpanLink, TraceQuery
from tests.builders import MS, T0, resource, span, span_id, trace_id

TIMEOUT_S = 30.0


def put(writer: Writer, *spans: Span) -> None:
    """Store spans and wait for the acknowledgement."""
    writer.submit(Batch(spans=spans)).result(TIMEOUT_S)


def found(reader: Reader, **query: Any) -> list[int]:
    """The numbers of the traces a query finds, in order; summaries and traces must agree."""
    summaries = reader.find_summaries(TraceQuery(**query))
    traces = reader.find_traces(TraceQuery(**query))
    assert [trace.trace_id for trace in traces] == [line.trace_id for line in summaries]
    return [int(line.trace_id, 16) for line in summaries]


class SearchContract:
    """What `find_traces` and `find_summaries` promise about which traces, in which order."""

    def test_newest_first_and_limited(self, writer: Writer, reader: Reader) -> None:
        """By the latest matching start of each trace, not by arrival."""
        put(writer, *(span(trace=n, start_ms=(n * 7) % 10) for n in range(1, 10)))
        expected = sorted(range(1, 10), key=lambda n: -((n * 7) % 10))

        assert found(reader) == expected
        assert found(reader, limit=4) == expected[:4]
        assert found(reader, limit=0) == []

    def test_order_counts_matching_spans_only(self, writer: Writer, reader: Reader) -> None:
        """A late span that does not match does not move its trace to the front."""
        put(
            writer,
            span("a", 1, trace=1, start_ms=0),
            span("b", 2, trace=1, start_ms=100),
            span("a", 1, trace=2, start_ms=50),
        )

        assert found(reader) == [1, 2]
        assert found(reader, operation="a") == [2, 1]

    def test_conditions_must_meet_on_one_span(self, writer: Writer, reader: Reader) -> None:
        """Two spans with half the conditions each are not a match."""
        put(
            writer,
            span("a", 1, service="x", attributes={"k": "1"}, duration_ms=5),
            span("b", 2, service="y", attributes={"k": "2"}, duration_ms=50),
        )

        assert found(reader, service="x", operation="a", tags={"k": "1"}) == [1]
        assert found(reader, service="x", operation="b") == []
        assert found(reader, service="x", tags={"k": "2"}) == []
        assert found(reader, operation="a", min_duration_ns=50 * MS) == []
        assert found(reader, tags={"k": "1", "error": "true"}) == []

    def test_time_and_duration_bounds(self, writer: Writer, reader: Reader) -> None:
        """start_ns <= start < end_ns; durations are inclusive at both ends."""
        put(writer, *(span(trace=n, start_ms=n, duration_ms=n) for n in (1, 2, 3)))

        assert found(reader, start_ns=T0 + 2 * MS) == [3, 2]
        assert found(reader, end_ns=T0 + 2 * MS) == [1]
        assert found(reader, start_ns=T0 + MS, end_ns=T0 + 3 * MS) == [2, 1]
        assert found(reader, min_duration_ns=2 * MS) == [3, 2]
        assert found(reader, max_duration_ns=2 * MS) == [2, 1]
        assert found(reader, min_duration_ns=2 * MS, max_duration_ns=2 * MS) == [2]

    def test_bounds_beyond_64_bits_are_legal(self, writer: Writer, reader: Reader) -> None:
        """An API passes on what a user typed."""
        put(writer, span())

        assert found(reader, start_ns=-(2**80), end_ns=2**80, max_duration_ns=2**80) == [1]
        assert found(reader, start_ns=2**80) == []
        assert found(reader, min_duration_ns=2**80) == []

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("plain", "plain"),
            ("检索", "检索"),
            ("", ""),
            ("100%_'\";--", "100%_'\";--"),
            ("7", "7"),
            (7, "7"),
            (-7, "-7"),
            (2**63 - 1, str(2**63 - 1)),
            (0.5, "0.5"),
            (1.0, "1"),
            (1.0, "1.0"),
            (1e300, "1e+300"),
            (float("nan"), "nan"),
            (float("-inf"), "-inf"),
            (True, "true"),
            (False, "false"),
            ("true", "true"),
            (b"\0\1", "AAE="),
            (b"stop", "c3RvcA=="),
            (("stop", "length"), "length"),
            (("stop", "length"), '["stop","length"]'),
            ((1, 2.5, True), "2.5"),
            ((1, 2.5, True), "true"),
            ({"id": 1}, '{"id":1}'),
        ],
    )
    def test_tags_match_everywhere(
        self, writer: Writer, reader: Reader, value: Any, text: str
    ) -> None:
        """A tag is compared as text, on span, event, link, resource and scope attributes."""
        places = ["span", "event", "link", "resource", "scope"]
        have, other = {"the.key": value}, {"the.key": "something else"}
        put(writer, *(_tagged(n, place, have) for n, place in enumerate(places, 1)))
        put(writer, *(_tagged(n, place, other) for n, place in enumerate(places, 11)))

        assert found(reader, tags={"the.key": text}) == [5, 4, 3, 2, 1]
        assert found(reader, tags={"key": text}) == []
        assert found(reader, tags={"the.key": text + "?"}) == []

    def test_several_tags_may_stand_in_different_places(
        self, writer: Writer, reader: Reader
    ) -> None:
        """All of them count for the one span they belong to."""
        both = span(
            attributes={"a": 1},
            events=(SpanEvent(T0, "e", {"b": "2"}),),
            resource=resource("agent", region="eu"),
        )
        put(writer, both, span(trace=2, attributes={"a": 1}))

        assert found(reader, tags={"a": "1", "b": "2", "region": "eu"}) == [1]
        assert found(reader, tags={"a": "1", "b": "2", "region": "us"}) == []

    def test_error_and_kind_are_tags(self, writer: Writer, reader: Reader) -> None:
        """As in Jaeger: error=true is the status, span.kind the kind."""
        put(
            writer,
            span(trace=1, error="boom", kind=SpanKind.SERVER),
            span(trace=2, start_ms=1, kind=SpanKind.CLIENT),
            span(trace=3, start_ms=2, attributes={"error": True, "span.kind": "server"}),
        )

        assert found(reader, tags={"error": "true"}) == [3, 1]
        assert found(reader, tags={"span.kind": "server"}) == [3, 1]
        assert found(reader, tags={"span.kind": "client"}) == [2]

    def test_search_agrees_with_looking_at_every_span(self, writer: Writer, reader: Reader) -> None:
        """Thousands of spans in random order, many queries, against the plainest way."""
        chance = random.Random(20260921)
        spans = [_random_span(chance, number) for number in range(1, 5001)]
        for first in range(0, len(spans), 700):
            put(writer, *spans[first : first + 700])
        for _ in range(60):
            query = _random_query(chance)

            assert found(reader, **query) == _plainly(spans, TraceQuery(**query)), query


def _tagged(number: int, place: str, attributes: dict[str, Any]) -> Span:
    plain = span(trace=number, start_ms=number)
    match place:
        case "span":
            return replace(plain, attributes=attributes)
        case "event":
            return replace(plain, events=(SpanEvent(T0, "e", attributes),))
        case "link":
            return replace(plain, links=(SpanLink(trace_id(9), span_id(9), "", attributes),))
        case "resource":
            return replace(plain, resource=replace(plain.resource, attributes=attributes))
        case _:
            return replace(plain, scope=replace(plain.scope, attributes=attributes))


def _random_span(chance: random.Random, number: int) -> Span:
    return span(
        f"op{chance.randrange(4)}",
        number,
        trace=chance.randrange(1, 600),
        # Distinct starts, mostly in order of arrival, some from long before.
        start_ms=number - (chance.randrange(3000) if chance.random() < 0.2 else 0) + number / 1e5,
        duration_ms=chance.choice([1, 5, 20, 400]),
        service=chance.choice(["a", "b", "c"]),
        error="x" if chance.random() < 0.05 else None,
        attributes={"common": "yes", "some": chance.randrange(5), "rare": chance.randrange(2000)},
    )


def _random_query(chance: random.Random) -> dict[str, Any]:
    query: dict[str, Any] = {"limit": chance.choice([1, 5, 20, 1000])}
    if chance.random() < 0.5:
        query["service"] = chance.choice(["a", "b", "c", "nobody"])
    if chance.random() < 0.4:
        query["operation"] = f"op{chance.randrange(5)}"
    if chance.random() < 0.4:
        query["start_ns"] = T0 + chance.randrange(5000) * MS
    if chance.random() < 0.3:
        query["end_ns"] = T0 + chance.randrange(5000) * MS
    if chance.random() < 0.3:
        query["min_duration_ns"] = 20 * MS
    if chance.random() < 0.3:
        query["max_duration_ns"] = 20 * MS
    possible = [
        ("common", "yes"),
        ("some", str(chance.randrange(6))),
        ("rare", str(chance.randrange(2000))),
        ("error", "true"),
    ]
    query["tags"] = dict(chance.sample(possible, chance.choice([0, 0, 1, 1, 2])))
    return query


def _plainly(spans: list[Span], query: TraceQuery) -> list[int]:
    latest: dict[int, int] = {}
    for each in spans:
        start = each.start_time_unix_nano
        if (
            query.service in (None, each.service_name)
            and query.operation in (None, each.name)
            and (query.start_ns is None or query.start_ns <= start)
            and (query.end_ns is None or start < query.end_ns)
            and (query.min_duration_ns or 0) <= each.duration_ns
            and (query.max_duration_ns is None or each.duration_ns <= query.max_duration_ns)
            and all(
                each.is_error if key == "error" else str(each.attributes[key]) == text
                for key, text in query.tags.items()
            )
        ):
            number = int(each.trace_id, 16)
            latest[number] = max(latest.get(number, 0), start)
    return sorted(latest, key=lambda number: -latest[number])[: query.limit]
