"""Our own API gives back what came in, to HttpReader and to people."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from spanloom.model import MetricKind, MetricPoint, MetricQuery, Trace, TraceQuery
from spanloom.otlp import decode_logs, decode_traces
from spanloom.sources.http import HttpReader
from tests.server.agent_trace import AGENT, START, agent_trace
from tests.server.running import Client

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def filled(shared: Client) -> Client:
    builder = agent_trace(TRACE_ID)
    point = MetricPoint("agent/requests", MetricKind.GAUGE, START, value=3, resource=AGENT)
    shared.send(spans=builder.spans, logs=builder.logs, metrics=[point])
    return shared


@pytest.fixture(scope="module")
def reader(filled: Client) -> Iterator[HttpReader]:
    http = HttpReader(filled.addresses.query)
    yield http
    http.close()


def test_a_trace_comes_back_exactly(filled: Client) -> None:
    document = filled.json(f"/api/spanloom/traces/{TRACE_ID}")["trace"]

    decoded = decode_traces(json.dumps(document).encode(), "application/json").items

    def by_id(spans: Any) -> dict[str, Any]:
        return {span.span_id: span for span in spans}

    assert by_id(agent_trace(TRACE_ID).spans) == by_id(decoded)


def test_one_span_can_be_asked_for(filled: Client) -> None:
    document = filled.json(f"/api/spanloom/traces/{TRACE_ID}/spans/{1:016x}")["trace"]

    (span,) = decode_traces(json.dumps(document).encode(), "application/json").items
    assert span.name == "POST /chat"


def test_log_lines_come_back_exactly(filled: Client) -> None:
    document = filled.json(f"/api/spanloom/traces/{TRACE_ID}/logs")

    decoded = decode_logs(json.dumps(document).encode(), "application/json").items

    assert agent_trace(TRACE_ID).logs == sorted(decoded, key=lambda log: log.timestamp_ns)


def test_the_http_reader_sees_what_the_store_holds(reader: HttpReader) -> None:
    trace = reader.get_trace(TRACE_ID)

    assert isinstance(trace, Trace)
    assert len(trace.spans) == 32
    assert reader.get_trace("d" * 32) is None
    (summary,) = reader.find_summaries(TraceQuery(service="agent", tags={"error": "true"}))
    assert trace.summary() == summary
    assert reader.services() == ["agent", "offline-llm", "retrieval"]
    assert {"POST /search", "rerank 文档库"} <= {o.name for o in reader.operations("retrieval")}
    assert len(reader.trace_logs(TRACE_ID)) == 9
    assert reader.metric_names() == ["agent/requests"]
    (point,) = reader.metric_points(MetricQuery("agent/requests", service="agent"))
    assert point.value == 3


def test_a_list_entry_has_text_for_64_bit_numbers(filled: Client) -> None:
    (entry,) = filled.json("/api/spanloom/traces", tag="http.route:/chat", limit=5)["traces"]

    assert {
        "trace_id": TRACE_ID,
        "root_service": "agent",
        "root_name": "POST /chat",
        "start_time_unix_nano": str(START),
        "duration_ns": "2840000000",
        "span_count": 32,
        "error_count": 2,
        "services": ["agent", "offline-llm", "retrieval"],
        "usage": {"input_tokens": 2310, "output_tokens": 248, "cost_usd": pytest.approx(0.00502)},
        "open_span_count": 0,
    } == entry


def test_errors_only(filled: Client) -> None:
    assert len(filled.json("/api/spanloom/traces", errors="true")["traces"]) == 1
    assert filled.json("/api/spanloom/traces", errors="true", service="retrieval")["traces"] == []


@pytest.mark.parametrize(
    ("path", "code", "part"),
    [
        ("/traces/" + "d" * 32, 404, "d" * 32),
        ("/traces/" + "d" * 32 + "/spans/" + "1" * 16, 404, "d" * 32),
        (f"/traces/{TRACE_ID}/spans/{'f' * 16}", 404, "no span"),
        ("/traces/xyz", 400, "trace id"),
        ("/traces?start_ns=x", 400, "start_ns"),
        ("/traces?start_ns=2&end_ns=1", 400, "start"),
        ("/traces?limit=1000000", 400, "limit"),
        ("/traces?errors=maybe", 400, "errors"),
        ("/traces?tag=x", 400, "key:value"),
        ("/metrics/x?limit=-1", 400, "limit"),
        (f"/traces/{TRACE_ID}/logs?limit=0", 400, "limit"),
    ],
)
def test_errors_are_one_sentence(filled: Client, path: str, code: int, part: str) -> None:
    answer = filled.query.get(f"/api/spanloom{path}")

    assert (code, ["error"]) == (answer.status_code, list(answer.json()))
    assert part in answer.json()["error"]


def test_unknown_traces_have_no_log_lines(shared: Client) -> None:
    assert shared.json(f"/api/spanloom/traces/{'d' * 32}/logs") == {"resourceLogs": []}
    assert shared.json("/api/spanloom/metrics/none") == {"resourceMetrics": []}
