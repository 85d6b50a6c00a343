from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceState

from spanloom.telemetry import spool_format
from spanloom.telemetry.otlp_encoding import encode_log, encode_whole
from spanloom.telemetry.spool_codec import (
    decode_log,
    decode_origin,
    decode_span,
    encode_origin,
)
from spanloom.telemetry.tracecontext import StrictTraceState

RESOURCE = Resource({"service.name": "名", "list": ["a", "b"], "n": 1}, "https://schema/1")


def full_span() -> ReadableSpan:
    """A span in which every field is set, and each kind of thing was dropped."""
    provider = TracerProvider(
        resource=RESOURCE,
        shutdown_on_exit=False,
        span_limits=SpanLimits(
            max_events=1,
            max_links=1,
            max_span_attributes=6,
            max_event_attributes=1,
            max_link_attributes=1,
        ),
    )
    tracer = provider.get_tracer("scope", "1.2", "https://schema/2", {"scoped": True})
    remote = SpanContext(7, 8, is_remote=True, trace_state=TraceState([("k", "v")]))
    links = [Link(remote, {"a": 1, "b": 2}), Link(SpanContext(9, 10, is_remote=False))]
    span: Any = tracer.start_span("节点", kind=SpanKind.CONSUMER, links=links)
    for key, value in {
        "lost": 0,
        "text": "文",
        "int": -1,
        "float": 0.5,
        "bool": False,
        "bytes": b"\x00\xff",
        "nested": {"list": [1, "a", None, {"deep": True}]},
    }.items():
        span.set_attribute(key, value)
    span.add_event("one", {"a": 1, "b": 2}, timestamp=5)
    span.add_event("two", {"c": "x"}, timestamp=6)
    span.set_status(Status(StatusCode.ERROR, "broken 坏"))
    span.end()
    ended: ReadableSpan = span._readable_span()
    ended._parent = remote
    ended._context = SpanContext(7, 11, is_remote=False, trace_state=remote.trace_state)
    return ended


def test_a_span_comes_back_whole() -> None:
    """Encoded, decoded and encoded again, every field and every count of drops is the same."""
    span = full_span()
    body, origin, span_id = encode_whole(span)
    assert span_id == 11
    again = decode_span(body, decode_origin(encode_origin(origin)))

    first, second = encode_spans([span]), encode_spans([again])
    assert second == first
    (sent,) = first.resource_spans[0].scope_spans[0].spans
    for descriptor, value in sent.ListFields():
        assert value, descriptor.name
    assert {field.name for field in sent.DESCRIPTOR.fields} == {
        field.name for field, _ in sent.ListFields()
    }


def test_a_trace_state_of_level_2_comes_back() -> None:
    """Its keys are legal now; OpenTelemetry's own reader refuses them, and with them the list."""
    state = StrictTraceState([("tenant@@system", "1"), ("9", "2"), ("k", "3")])
    span = ReadableSpan("x", context=SpanContext(7, 8, is_remote=False, trace_state=state))
    body, origin, _ = encode_whole(span)

    again = decode_span(body, origin)

    assert again.context is not None
    assert list(again.context.trace_state.items()) == list(state.items())


@pytest.mark.parametrize("code", [StatusCode.UNSET, StatusCode.OK])
def test_a_bare_span_comes_back(code: StatusCode) -> None:
    """Without parent, scope, events or attributes."""
    span = ReadableSpan(
        "", SpanContext(1, 2, is_remote=False), None, RESOURCE, status=Status(code), start_time=1
    )
    body, origin, _ = encode_whole(span)

    again = decode_span(body, decode_origin(encode_origin(origin)))
    assert encode_spans([again]) == encode_spans([span])
    assert again.end_time is None


def test_a_log_record_comes_back_whole() -> None:
    """Body, severity, ids, attributes and event name."""
    record = ReadableLogRecord(
        LogRecord(
            timestamp=1,
            observed_timestamp=2,
            severity_text="WARN",
            severity_number=SeverityNumber.WARN,
            body={"a": ["日志", 1]},
            attributes={"k": [1.5]},
            event_name="e",
        ),
        RESOURCE,
    )
    body, origin, span_id = encode_log(record)
    assert span_id == 0

    again = decode_log(body, decode_origin(encode_origin(origin)))
    assert encode_logs([again]) == encode_logs([record])


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    st.integers(min_value=0, max_value=10_000),
    st.integers(min_value=1, max_value=255),
)
def test_damage_is_noticed_and_costs_only_what_follows(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], where: int, flip: int
) -> None:
    """Whichever byte is changed or missing, what is read is a beginning of what was written."""
    frames = [spool_format.frame(spool_format.LOG, 0, 0, body) for body in bodies]
    data = bytearray(spool_format.header() + b"".join(frames))
    start = spool_format.HEADER.size
    where = start + where % (len(data) - start)
    path = tmp_path_factory.mktemp("segment") / "one.spool"

    def read() -> list[bytes]:
        segment = spool_format.Segment(path)
        try:
            return [record.body for record in segment.records()]
        finally:
            segment.close()

    def assert_beginning(change: Callable[[], None]) -> None:
        change()
        path.write_bytes(data)
        found = read()
        assert found == bodies[: len(found)]

    path.write_bytes(data)
    assert read() == bodies
    before = bytes(data)
    assert_beginning(lambda: data.__setitem__(where, data[where] ^ flip))
    data[:] = before
    assert_beginning(lambda: data.__delitem__(slice(where, None)))
    assert len(read()) < len(bodies)
