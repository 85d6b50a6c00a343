"""Jaeger's legacy JSON, as the Jaeger UI and Grafana's data source read it."""

import json
from typing import Any

import pytest

from spanloom.model import Resource, Span, SpanKind, SpanLink, Status, StatusCode, Trace
from spanloom.server.jaeger_json import trace_json
from tests.server.agent_trace import START, Builder, agent_trace
from tests.server.running import Client

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
US = START // 1000


@pytest.fixture(scope="module")
def filled(shared: Client) -> Client:
    """The agent's trace, and one of ten seconds later with nothing in common."""
    shared.send(spans=agent_trace(TRACE_ID).spans)
    other = Builder("b" * 32, START + 10_000_000_000)
    other.span("GET /健康", lasts=5, resource=Resource({"service.name": "其他"}), n=72.5)
    shared.send(spans=other.spans)
    return shared


def found(server: Client, **params: Any) -> list[str]:
    return [trace["traceID"] for trace in server.json("/api/traces", **params)["data"]]


def test_a_trace_has_every_field_the_ui_reads(filled: Client) -> None:
    envelope = filled.json(f"/api/traces/{TRACE_ID}")

    assert {"data", "total", "limit", "offset", "errors"} == set(envelope)
    (trace,) = envelope["data"]
    assert {"traceID", "spans", "processes", "warnings"} == set(trace)
    for span in trace["spans"]:
        assert {
            "traceID",
            "spanID",
            "flags",
            "operationName",
            "references",
            "startTime",
            "duration",
            "tags",
            "logs",
            "processID",
            "warnings",
        } == set(span)
        assert span["processID"] in trace["processes"]
        assert all({"key", "type", "value"} == set(tag) for tag in span["tags"])
    services = [process["serviceName"] for process in trace["processes"].values()]
    assert sorted(services) == ["agent", "offline-llm", "retrieval"]


def test_spans_carry_microseconds_references_and_otel_tags(filled: Client) -> None:
    spans = filled.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]
    span = next(span for span in spans if span["operationName"] == "execute_tool calculator")
    tags = {tag["key"]: (tag["type"], tag["value"]) for tag in span["tags"]}

    assert (span["startTime"], span["duration"]) == (US + 706_000, 24_000)
    assert [reference["refType"] for reference in span["references"]] == ["CHILD_OF"]
    assert tags["span.kind"] == ("string", "internal")
    assert tags["error"] == ("bool", True)
    assert tags["otel.status_code"] == ("string", "ERROR")
    assert tags["otel.status_description"] == ("string", "division by zero")
    assert tags["otel.scope.name"] == ("string", "spanloom.telemetry")
    assert tags["otel.scope.version"] == ("string", "0.1.0")
    (log,) = span["logs"]
    assert log["timestamp"] == US + 728_000
    fields = {field["key"]: field["value"] for field in log["fields"]}
    assert (fields["event"], fields["exception.type"]) == ("exception", "ZeroDivisionError")


def test_values_keep_their_types_and_javascript_its_digits() -> None:
    span = Span(
        TRACE_ID,
        "1" * 16,
        "typed",
        START,
        START - 5,
        trace_state="ot=th:8",
        flags=0x103,
        kind=SpanKind.PRODUCER,
        attributes={
            "safe": 2**53 - 1,
            "big": 2**53,
            "nan": float("nan"),
            "bytes": b"\x00\xff",
            "list": ("a", 1, None),
            "map": {"k": b"\x01"},
            "empty": None,
            "error": "my own",
        },
        links=(SpanLink("c" * 32, "2" * 16),),
        status=Status(StatusCode.ERROR),
        dropped_events_count=3,
    )

    (mapped,) = trace_json(Trace(TRACE_ID, (span,)))["spans"]
    tags = [(tag["key"], tag["type"], tag["value"]) for tag in mapped["tags"]]

    assert [
        ("safe", "int64", 2**53 - 1),
        ("big", "int64", str(2**53)),
        ("nan", "float64", "nan"),
        ("bytes", "binary", "AP8="),
        ("list", "string", '["a",1,null]'),
        ("map", "string", '{"k":"AQ=="}'),
        ("empty", "string", ""),
        ("error", "string", "my own"),
        ("span.kind", "string", "producer"),
        ("otel.status_code", "string", "ERROR"),
        ("w3c.tracestate", "string", "ot=th:8"),
        ("otel.dropped_events_count", "int64", 3),
    ] == tags
    assert mapped["references"] == [
        {"refType": "FOLLOWS_FROM", "traceID": "c" * 32, "spanID": "2" * 16}
    ]
    assert (mapped["flags"], mapped["duration"]) == (3, 0)
    assert "clock" in mapped["warnings"][0]


def test_equal_resources_share_a_process_and_others_do_not() -> None:
    def span(number: int, resource: Resource) -> Span:
        return Span(TRACE_ID, f"{number:016x}", "s", START, START, resource=resource)

    mapped = trace_json(
        Trace(
            TRACE_ID,
            (
                span(1, Resource({"service.name": "a", "pid": 1})),
                span(2, Resource({"service.name": "a", "pid": 1})),
                span(3, Resource({"service.name": "a", "pid": 2})),
                span(4, Resource()),
            ),
        )
    )

    assert [span["processID"] for span in mapped["spans"]] == ["p1", "p1", "p2", "p3"]
    assert mapped["processes"]["p3"]["serviceName"] == "unknown_service"


def test_services_and_operations(filled: Client) -> None:
    services = filled.json("/api/services")
    assert (
        services["data"],
        services["total"],
    ) == (["agent", "offline-llm", "retrieval", "其他"], 4)
    assert filled.json("/api/services/retrieval/operations")["data"] == [
        "POST /search",
        "rerank 文档库",
        "retrieval 文档库",
    ]
    assert filled.json("/api/services/其他/operations")["data"] == ["GET /健康"]
    assert filled.json("/api/services/nobody/operations")["data"] == []
    assert filled.json("/api/operations", service="retrieval", spanKind="server")["data"] == [
        {"name": "POST /search", "spanKind": "server"}
    ]


@pytest.mark.parametrize(
    "params",
    [
        {"service": "agent"},
        {"service": "retrieval", "operation": "rerank 文档库"},
        {"tag": "http.route:/chat"},
        {"tags": json.dumps({"http.response.status_code": "200"})},
        {"tags": '{"error":"true"}', "service": "agent"},
        {"tags": '{"span.kind":"client"}'},
        {"minDuration": "2.5s"},
        {"start": US, "end": US + 900_000},
        {"traceID": TRACE_ID},
        {"traceID": [TRACE_ID, TRACE_ID.upper()]},
    ],
)
def test_searches_that_mean_the_agents_trace_find_it_alone(
    filled: Client, params: dict[str, Any]
) -> None:
    assert found(filled, **params) == [TRACE_ID]


@pytest.mark.parametrize(
    "params",
    [
        {"service": "其他"},
        {"tag": "n:72.5"},
        {"start": US + 9_000_000, "end": US + 10_500_000, "maxDuration": "10ms"},
        {"limit": 1},
    ],
)
def test_searches_that_mean_the_other_trace_find_it_alone(
    filled: Client, params: dict[str, Any]
) -> None:
    assert found(filled, **params) == ["b" * 32]


def test_lookback_counts_from_now_unless_start_is_given(filled: Client) -> None:
    assert found(filled, lookback="1h") == []
    assert len(found(filled, lookback="1h", start=US - 1)) == 2
    assert len(found(filled, lookback="custom")) == 2
    assert len(found(filled)) == 2


def test_ids_that_are_not_there_are_reported_beside_those_that_are(filled: Client) -> None:
    answer = filled.json("/api/traces", traceID=[TRACE_ID, "d" * 32])

    assert [trace["traceID"] for trace in answer["data"]] == [TRACE_ID]
    assert answer["errors"] == [{"msg": "trace not found", "traceID": "d" * 32}]


@pytest.mark.parametrize(
    ("path", "code", "part"),
    [
        ("/api/traces/" + "d" * 32, 404, "trace not found"),
        ("/api/traces/nonsense", 400, "trace id"),
        ("/api/traces?limit=0", 400, "limit"),
        ("/api/traces?limit=many", 400, "limit"),
        ("/api/traces?limit=1501", 400, "limit must lie between 1 and 1500"),
        ("/api/traces?start=yesterday", 400, "start"),
        ("/api/traces?start=2&end=1", 400, "start"),
        ("/api/traces?minDuration=5", 400, "minDuration"),
        ("/api/traces?minDuration=5s&maxDuration=1s", 400, "maxDuration"),
        ("/api/traces?tags=error", 400, "tags"),
        ("/api/traces?tag=error", 400, "key:value"),
        ("/api/traces?lookback=long", 400, "lookback"),
        ("/api/operations", 400, "service"),
    ],
)
def test_errors_have_jaegers_shape(shared: Client, path: str, code: int, part: str) -> None:
    answer = shared.query.get(path)

    assert code == answer.status_code
    body = answer.json()
    assert body["data"] is None
    assert code == body["errors"][0]["code"]
    assert part in body["errors"][0]["msg"]
