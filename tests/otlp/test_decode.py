"""What clients send, well-formed and not."""

import base64
import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloom import otlp
from spanloom.errors import MalformedPayloadError, UnsupportedEncodingError
from spanloom.model import SpanKind, StatusCode

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

# After opentelemetry-proto, examples/trace.json, with the liberties other producers take.
EXAMPLE: dict[str, Any] = {
    "resourceSpans": [
        {
            "resource": {
                "attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]
            },
            "scopeSpans": [
                {
                    "scope": {"name": "my.library", "version": "1.0.0"},
                    "spans": [
                        {
                            "traceId": "5B8EFFF798038103D269B633813FC60C",
                            "spanId": "EEE19B7EC3C1B174",
                            "parentSpanId": "EEE19B7EC3C1B173",
                            "name": "I'm a server span",
                            "startTimeUnixNano": "1544712660000000000",
                            "endTimeUnixNano": 1544712661000000000,
                            "kind": 2,
                            "status": {"code": 2, "message": None},
                            "notInTheProtocol": {"anything": [1, 2]},
                            "attributes": [
                                {"key": "text", "value": {"stringValue": "中文"}},
                                {"key": "int", "value": {"intValue": "9007199254740993"}},
                                {"key": "number", "value": {"intValue": 7}},
                                {"key": "bytes", "value": {"bytesValue": "AAH_"}},
                                {"key": "nothing", "value": {}},
                                {
                                    "key": "list",
                                    "value": {"arrayValue": {"values": [{"boolValue": True}, {}]}},
                                },
                                {
                                    "key": "map",
                                    "value": {
                                        "kvlistValue": {
                                            "values": [
                                                {"key": "a", "value": {"doubleValue": "NaN"}}
                                            ]
                                        }
                                    },
                                },
                            ],
                        }
                    ],
                }
            ],
        }
    ]
}


def _body(**changes: Any) -> bytes:
    document = json.loads(json.dumps(EXAMPLE))
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0].update(changes)
    return json.dumps(document).encode()


def test_json_example() -> None:
    """The protocol's own example is read: hex ids, text and plain integers, enum numbers."""
    decoded = otlp.decode_traces(_body(), JSON)
    (span,) = decoded.items

    assert decoded.rejected == 0
    assert span.trace_id == "5b8efff798038103d269b633813fc60c"
    assert span.span_id == "eee19b7ec3c1b174"
    assert span.parent_span_id == "eee19b7ec3c1b173"
    assert span.start_time_unix_nano == 1544712660000000000
    assert span.end_time_unix_nano == 1544712661000000000
    assert span.kind is SpanKind.SERVER
    assert span.status.code is StatusCode.ERROR
    assert span.service_name == "my.service"
    assert span.scope.name == "my.library"
    nan = span.attributes["map"]
    assert isinstance(nan, dict)
    assert repr(nan) == "{'a': nan}"
    assert {**span.attributes, "map": None} == {
        "text": "中文",
        "int": 2**53 + 1,
        "number": 7,
        "bytes": base64.urlsafe_b64decode("AAH_"),
        "nothing": None,
        "list": (True, None),
        "map": None,
    }


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
def test_an_empty_request_is_a_success(content_type: str) -> None:
    """A request with nothing in it is legal in OTLP."""
    body = b"{}" if content_type == JSON else b""

    assert otlp.Decoded(()) == otlp.decode_traces(body, content_type)
    assert otlp.Decoded(()) == otlp.decode_logs(body, content_type)
    assert otlp.Decoded(()) == otlp.decode_metrics(body, content_type)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"traceId": "0" * 32}, "trace_id"),
        ({"traceId": "5b8e"}, "trace_id"),
        ({"traceId": None}, "trace_id"),
        ({"traceId": "x" * 32}, "trace_id"),
        # 16 bytes in base64, as protobuf's own JSON would have it
        ({"traceId": "W47/95gDgQPSabYzgT/GDA=="}, "trace_id"),
        ({"spanId": "0" * 16}, "span_id"),
        ({"spanId": "ee"}, "span_id"),
        ({"parentSpanId": "zz"}, "parent_span_id"),
        ({"parentSpanId": "abcd"}, "parent_span_id"),
    ],
)
def test_a_span_with_a_bad_id_is_rejected_alone(changes: dict[str, Any], reason: str) -> None:
    """A span that cannot be placed is counted with its reason, the others are kept."""
    bad = json.loads(_body(**changes))
    good = json.loads(_body())
    bad["resourceSpans"].extend(good["resourceSpans"])
    decoded = otlp.decode_traces(json.dumps(bad).encode(), JSON)

    assert len(decoded.items) == 1
    assert decoded.rejected == 1
    assert reason in decoded.message


def test_reasons_are_counted() -> None:
    """The message of a partial success says how often each reason occurred."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"short", span_id=b"12345678")
    spans.add(trace_id=bytes(16), span_id=b"12345678")
    spans.add(trace_id=b"1" * 16, span_id=b"")
    spans.add(trace_id=b"1" * 16, span_id=b"12345678")
    decoded = otlp.traces_from_message(request)

    assert (len(decoded.items), decoded.rejected) == (1, 3)
    assert decoded.message.startswith("2 × trace_id must be")
    assert "1 × span_id must be" in decoded.message


def test_a_parent_of_zeros_is_no_parent() -> None:
    """A root whose exporter writes zeros for the missing parent is a root."""
    (span,) = otlp.decode_traces(_body(parentSpanId="0" * 16), JSON).items

    assert span.parent_span_id == ""


def test_enum_values_of_the_future_count_as_unspecified() -> None:
    """A kind or status code this version does not know does not cost the span."""
    (span,) = otlp.decode_traces(_body(kind=99, status={"code": 42}), JSON).items

    assert span.kind is SpanKind.UNSPECIFIED
    assert span.status.code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"kind": "SPAN_KIND_SERVER"}, ".kind: expected an integer"),
        ({"startTimeUnixNano": "soon"}, ".startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": -1}, ".startTimeUnixNano: expected a number in the range"),
        ({"startTimeUnixNano": 2**64}, ".startTimeUnixNano: expected a number in the range"),
        ({"startTimeUnixNano": True}, ".startTimeUnixNano: expected an integer"),
        ({"name": 5}, ".name: expected text"),
        ({"attributes": {}}, ".attributes: expected an array"),
        ({"attributes": ["x"]}, ".attributes[0]: expected an object"),
        ({"attributes": [{"key": "k", "value": {"boolValue": 1}}]}, ".value.boolValue: expected"),
        ({"attributes": [{"key": "k", "value": {"doubleValue": "x"}}]}, ".doubleValue: expected"),
        ({"attributes": [{"key": "k", "value": {"bytesValue": "*"}}]}, ".bytesValue: expected"),
        ({"traceId": 7}, ".traceId: expected hex text"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(changes: dict[str, Any], place: str) -> None:
    """The error points at the field, as a developer of an exporter needs it."""
    with pytest.raises(MalformedPayloadError) as caught:
        otlp.decode_traces(_body(**changes), JSON)

    assert f"resourceSpans[0].scopeSpans[0].spans[0]{place}" in str(caught.value) or (
        place in str(caught.value)
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b'{"resourceSpans": 1}']
)
def test_what_is_not_otlp_json_is_malformed(body: bytes) -> None:
    """Anything but an OTLP object is refused, never half read."""
    with pytest.raises(MalformedPayloadError):
        otlp.decode_traces(body, JSON)


def test_what_is_not_protobuf_is_malformed() -> None:
    """The message says what to check."""
    with pytest.raises(MalformedPayloadError, match="ExportTraceServiceRequest; check"):
        otlp.decode_traces(b"\xff\xff\xff", PROTOBUF)


@pytest.mark.parametrize("levels", [200, 2_000, 200_000])
def test_bottomless_nesting_is_refused(levels: int) -> None:
    """Nesting beyond what protobuf itself allows is malformed, not a crash."""
    value = '{"arrayValue":{"values":[' * levels + "{}" + "]}}" * levels
    attributes = f'[{{"key":"k","value":{value}}}]'
    body = (
        _body()
        .decode()
        .replace(
            '"attributes": [{"key": "text"', f'"attributes": {attributes},"x": [{{"key": "text"'
        )
        .encode()
    )

    with pytest.raises(MalformedPayloadError):
        otlp.decode_traces(body, JSON)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/protobuf"])
def test_other_content_types_are_unsupported(content_type: str) -> None:
    """Only the two content types of OTLP are taken."""
    with pytest.raises(UnsupportedEncodingError, match="application/x-protobuf"):
        otlp.decode_traces(b"", content_type)


def test_a_log_with_an_invalid_id_stands_outside_any_span() -> None:
    """logs.proto: a receiver treats invalid ids as absent; a span id needs its trace id."""
    record = {
        "timeUnixNano": "1",
        "body": {"stringValue": "x"},
        "traceId": "00",
        "spanId": "1" * 16,
    }
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    decoded = otlp.decode_logs(json.dumps(body).encode(), JSON)

    assert decoded.rejected == 0
    assert (decoded.items[0].trace_id, decoded.items[0].span_id) == ("", "")


def test_points_nobody_can_read_are_rejected() -> None:
    """A metric without a name and a histogram whose buckets do not add up are counted."""
    gauge = {"gauge": {"dataPoints": [{"asInt": "1"}]}}
    histogram = {
        "name": "h",
        "histogram": {"dataPoints": [{"count": "1", "bucketCounts": ["1"], "explicitBounds": [1]}]},
    }
    metrics = [gauge, histogram, {"name": "ok", **gauge}]
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}
    decoded = otlp.decode_metrics(json.dumps(body).encode(), JSON)

    assert [point.name for point in decoded.items] == ["ok"]
    assert decoded.rejected == 2
    assert "needs a name" in decoded.message
