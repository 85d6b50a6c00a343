"""Spans and records encoded here are, byte for byte, what the SDK's encoder gives."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as OtlpLogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from spanloom.telemetry import otlp_encoding, otlp_wire
from spanloom.telemetry.otlp_encoding import Encoded

RESOURCE = Resource({"service.name": "名", "n": 1}, "https://schema/1")
SCOPE = InstrumentationScope("scope")
BIG = 2**63 - 1
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
numbers = st.integers(-(2**63), BIG)
plain = st.one_of(st.booleans(), numbers, st.floats(), texts)
lists = st.one_of(*(st.lists(kind, max_size=5) for kind in (st.booleans(), numbers, texts)))
values = st.recursive(
    st.one_of(plain, st.none(), st.binary(max_size=50), lists),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(texts.filter(bool), inner, max_size=3)
    ),
    max_leaves=6,
)
attributes = st.dictionaries(texts.filter(bool), values, max_size=12)
ids = st.integers(1, 2**64 - 1)
trace_ids = st.integers(1, 2**128 - 1)
times = st.integers(1, 2**63)


def ended(
    name: str = "s",
    attributes: Any = None,
    *,
    parent: SpanContext | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    status: StatusCode = StatusCode.UNSET,
    limits: SpanLimits | None = None,
) -> ReadableSpan:
    """What a processor gets when the SDK ends a span."""
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False, span_limits=limits)
    tracer = provider.get_tracer("scope", "1.2", "https://schema/2")
    context = None if parent is None else set_span_in_context(NonRecordingSpan(parent))
    span: Any = tracer.start_span(name, context, kind)
    for key, value in (attributes or {}).items():
        span.set_attribute(key, value)
    span.set_status(Status(status))
    span.end()
    readable: ReadableSpan = span._readable_span()
    return readable


def by_the_sdk(span: ReadableSpan) -> bytes:
    (resource_spans,) = encode_spans([span]).resource_spans
    return resource_spans.scope_spans[0].spans[0].SerializeToString()


@given(texts, attributes, st.sampled_from(SpanKind), st.sampled_from(StatusCode))
def test_a_span_is_the_same_bytes(
    name: str, attributes: dict[str, Any], kind: SpanKind, status: StatusCode
) -> None:
    span = ended(name, attributes, kind=kind, status=status)

    found = otlp_encoding.encode_span_quickly(span)

    assert found is not None
    assert found.body == by_the_sdk(span)
    assert found.origin == (RESOURCE, span.instrumentation_scope)


@given(trace_ids, st.tuples(ids, ids), st.tuples(times, times), st.booleans())
def test_ids_and_times_are_the_same_bytes(
    trace_id: int, span_ids: tuple[int, int], lasts: tuple[int, int], is_remote: bool
) -> None:
    span = ended()
    span_id, parent_id = span_ids
    state = TraceState([("k", "v"), ("vendor", "1")] if is_remote else [])
    span._context = SpanContext(trace_id, span_id, is_remote=False, trace_state=state)
    span._parent = SpanContext(trace_id, parent_id, is_remote)
    span._start_time, span._end_time = lasts

    found = otlp_encoding.encode_span_quickly(span)

    assert found is not None
    assert found.body == by_the_sdk(span)
    assert found.span_id == span_id


@pytest.mark.parametrize("size", [*range(90, 132), 2_000, 20_000])
def test_lengths_of_one_and_of_more_bytes(size: int) -> None:
    """Where the length of the text, of its value or of its pair needs another byte."""
    span = ended("n" * size, {"k": "文" + "x" * (size - 3), "k" * size: "", "l": ["y" * size]})

    found = otlp_encoding.encode_span_quickly(span)

    assert found is not None
    assert found.body == by_the_sdk(span)


def test_what_was_dropped_is_counted() -> None:
    span = ended(attributes={"a": 1, "b": 2, "c": 3}, limits=SpanLimits(max_span_attributes=1))

    found = otlp_encoding.encode_span_quickly(span)

    assert found is not None
    assert found.body == by_the_sdk(span)
    assert OtlpSpan.FromString(found.body).dropped_attributes_count == 2


def with_event(span: Any) -> None:
    span.add_event("e", {"exception.message": "password=hunter2"}, timestamp=5)


def with_link(span: Any) -> None:
    span.add_link(SpanContext(1, 2, is_remote=True))


def with_description(span: Any) -> None:
    span.set_status(Status(StatusCode.ERROR, "token=sk-proj-abcdefghijklmnop"))


def with_query(span: Any) -> None:
    span.set_attribute("url.query", "api_key=sk-proj-abcdefghijklmnop")


def with_url(span: Any) -> None:
    span.set_attribute("url.full", "https://h/p?api_key=sk-proj-abcdefghijklmnop")


def with_urls(span: Any) -> None:
    span.set_attribute("url.full", ["https://h/p", "https://h/p?api_key=sk-proj-abcdefghijklmnop"])


def with_half_a_character(span: Any) -> None:
    span.set_attribute("text", "\ud83d")


def with_a_name_that_is_half_a_character(span: Any) -> None:
    span.update_name("\ud83d")


def with_an_event_that_is_half_a_character(span: Any) -> None:
    span.add_event("\ud83d", {"\ud83d": "\ud83d"})


@pytest.mark.parametrize(
    "change",
    [
        *(with_event, with_link, with_description, with_query, with_url, with_urls),
        *(with_half_a_character, with_a_name_that_is_half_a_character),
        with_an_event_that_is_half_a_character,
    ],
)
def test_what_is_rare_or_must_be_cleaned_is_left_to_the_sdk(change: Any) -> None:
    span: Any = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("节点")
    change(span)
    span.end()
    readable = span._readable_span()

    assert otlp_encoding.encode_span_quickly(readable) is None
    body = otlp_encoding.encode_span(readable).body
    assert b"sk-proj" not in body
    assert b"hunter2" not in body
    sent = OtlpSpan.FromString(body)
    assert sent.span_id == span.get_span_context().span_id.to_bytes(8, "big")
    assert (len(sent.events), len(sent.links)) == (len(readable.events), len(readable.links))


def nested(levels: int) -> Any:
    value: Any = "文"
    for _ in range(levels):
        value = [{"in": value}]
    return value


@pytest.mark.parametrize("odd", [BIG + 1, -BIG - 2, nested(40), {"\ud83d": 1}, ["\ud83d"]])
def test_a_value_that_otlp_cannot_carry_becomes_text(odd: Any) -> None:
    """The SDK leaves out what is too large; what is too deep costs the batch at the receiver."""
    span = ended(attributes={"kept": "文", "odd": odd, "also": 1})

    assert otlp_encoding.encode_span_quickly(span) is None
    sent = OtlpSpan.FromString(otlp_encoding.encode_span(span).body)

    assert [pair.key for pair in sent.attributes] == ["kept", "odd", "also"]
    if isinstance(odd, int):
        assert sent.attributes[1].value.string_value == str(odd)


def test_as_deep_as_receivers_read_is_the_same_bytes() -> None:
    span = ended(attributes={"deep": nested(7)})

    found = otlp_encoding.encode_span_quickly(span)

    assert found is not None
    assert found.body == by_the_sdk(span)
    TracesData.FromString(otlp_encoding.request([found]))


@pytest.mark.parametrize("lasts", [(0, 1), (0, 0), (1, None), (None, None)])
def test_times_that_are_left_out(lasts: tuple[int | None, int | None]) -> None:
    span = ended()
    span._start_time, span._end_time = lasts

    assert otlp_encoding.encode_span(span).body == by_the_sdk(span)


def test_what_was_dropped_is_counted_when_the_rest_is_redacted() -> None:
    limits = SpanLimits(max_events=1, max_links=1, max_span_attributes=1, max_event_attributes=1)
    provider = TracerProvider(shutdown_on_exit=False, span_limits=limits)
    span: Any = provider.get_tracer("t").start_span("s", attributes={"a": 1, "b": 2})
    for number in range(3):
        span.add_event("e", {"exception.message": "password=hunter2", "n": number})
        span.add_event("e", {"n": number, "exception.message": "password=hunter2"})
        span.add_link(SpanContext(1, 2, is_remote=True))
    span.end()

    sent = OtlpSpan.FromString(otlp_encoding.encode_span(span._readable_span()).body)

    assert b"hunter2" not in sent.SerializeToString()
    assert (sent.dropped_attributes_count, sent.dropped_events_count) == (1, 5)
    assert (sent.dropped_links_count, sent.events[0].dropped_attributes_count) == (2, 1)


@pytest.mark.parametrize("key", ["exception.message", "exception.stacktrace"])
def test_a_secret_on_the_span_itself_is_redacted(key: str) -> None:
    span = ended(attributes={key: "key sk-proj-abcdefghijklmnop"})

    assert otlp_encoding.encode_span_quickly(span) is None
    assert b"sk-proj" not in otlp_encoding.encode_span(span).body


def test_a_key_that_somebody_chose_long_is_not_remembered() -> None:
    span = ended(attributes={"k" * 257: "v"})

    found = otlp_encoding.encode_span_quickly(span)

    assert found is not None
    assert found.body == by_the_sdk(span)
    assert "k" * 257 not in otlp_wire._keys


def record(body: Any, attributes: Any, context: SpanContext | None = None) -> ReadableLogRecord:
    return ReadableLogRecord(
        LogRecord(
            timestamp=3,
            observed_timestamp=4,
            context=None if context is None else set_span_in_context(NonRecordingSpan(context)),
            severity_text="WARN",
            severity_number=SeverityNumber.WARN,
            body=body,
            attributes=attributes,
            event_name="事件",
        ),
        RESOURCE,
        SCOPE,
    )


def log_by_the_sdk(readable: ReadableLogRecord) -> bytes:
    (resource_logs,) = encode_logs([readable]).resource_logs
    return resource_logs.scope_logs[0].log_records[0].SerializeToString()


@given(values, attributes, st.none() | st.tuples(trace_ids, ids))
def test_a_log_record_is_the_same_bytes(
    body: Any, attributes: dict[str, Any], of_span: tuple[int, int] | None
) -> None:
    flags = TraceFlags(TraceFlags.SAMPLED)
    context = None if of_span is None else SpanContext(*of_span, False, flags)
    readable = record(body, attributes, context)

    found = otlp_encoding.encode_log_quickly(readable)

    if "exception.message" not in attributes:
        assert found == Encoded(log_by_the_sdk(readable), (RESOURCE, SCOPE), 0)


@pytest.mark.parametrize("key", ["exception.message", "exception.stacktrace"])
def test_an_exception_s_text_is_redacted(key: str) -> None:
    readable = record("失败", {key: "key sk-proj-abcdefghijklmnop"})

    assert otlp_encoding.encode_log_quickly(readable) is None
    assert b"sk-proj" not in otlp_encoding.encode_log(readable).body


def text_in_lists(levels: int) -> Any:
    value: Any = "?key=sk-proj-abcdefghijklmnop"
    for _ in range(levels):
        value = [value, 7]
    return value


@pytest.mark.parametrize("key", ["exception.message", "url.query", "url.full"])
@pytest.mark.parametrize(
    "value",
    [
        *(text_in_lists(1), text_in_lists(3), text_in_lists(15), text_in_lists(40)),
        {"第一": {"at": "https://h/?key=sk-proj-abcdefghijklmnop"}, "n": BIG + 1},
        b"https://h/?key=sk-proj-abcdefghijklmnop\xff",
    ],
)
def test_a_secret_in_what_is_no_plain_text_is_redacted(key: str, value: Any) -> None:
    readable = record("失败", {key: value, "k": "v"})

    assert otlp_encoding.encode_log_quickly(readable) is None
    sent = OtlpLogRecord.FromString(otlp_encoding.encode_log(readable).body)
    assert [pair.key for pair in sent.attributes] == [key, "k"]
    assert "sk-proj" not in str(sent)


@pytest.mark.parametrize(
    "body", ["\ud83d", BIG + 1, {1, 2}, ValueError("坏"), ["文", object()], nested(40)]
)
def test_a_body_that_otlp_cannot_carry_becomes_text(body: Any) -> None:
    """The SDK's encoder refuses the whole batch for it."""
    sent = OtlpLogRecord.FromString(otlp_encoding.encode_log(record(body, {"k": "v"})).body)

    assert sent.body.WhichOneof("value") in {"string_value", "array_value"}
    assert [pair.key for pair in sent.attributes] == ["k"]


def test_names_of_records_that_are_half_a_character_are_escaped() -> None:
    readable = record("b", {})
    readable.log_record.event_name = readable.log_record.severity_text = "\ud83d"

    sent = OtlpLogRecord.FromString(otlp_encoding.encode_log(readable).body)

    assert sent.event_name == sent.severity_text == "\\ud83d"


def test_a_request_is_the_same_bytes_with_many_resources_and_scopes() -> None:
    """Grouped as the SDK groups, in the order in which they came."""
    other = Resource({"service.name": "other"})
    scopes = [None, InstrumentationScope("a"), InstrumentationScope("b", "1", "https://s")]
    spans = [
        ReadableSpan(
            f"{number}",
            SpanContext(number + 1, number + 1, is_remote=False),
            resource=(RESOURCE, other)[number % 2],
            instrumentation_scope=scopes[number % 3],
            start_time=1,
            end_time=2,
            links=[Link(SpanContext(1, 2, is_remote=False))] * (number % 4),
        )
        for number in range(24)
    ]

    request = otlp_encoding.request([otlp_encoding.encode_span(span) for span in spans])

    assert request == encode_spans(spans).SerializeToString()


def test_a_request_of_records_is_the_same_bytes() -> None:
    records = [record(json.dumps({"n": n}), {"n": n}) for n in range(3)]
    equal = InstrumentationScope("scope")
    records[1] = dataclasses.replace(records[1], instrumentation_scope=equal)

    request = otlp_encoding.request([otlp_encoding.encode_log(one) for one in records])

    assert request == encode_logs(records).SerializeToString()


def test_more_keys_and_origins_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_wire, "_MAX_KEYS", 1)
    monkeypatch.setattr(otlp_encoding, "_MAX_ORIGINS", 1)
    otlp_wire._keys.clear()
    otlp_encoding._envelopes.clear()
    spans = [ended(attributes={"a": 1, "b": 2}), ended(attributes={"c": 3})]

    items = [otlp_encoding.encode_span(span) for span in spans]

    assert otlp_encoding.request(items) == encode_spans(spans).SerializeToString()
    assert len(otlp_wire._keys) == len(otlp_encoding._envelopes) == 1
