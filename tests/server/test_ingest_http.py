"""OTLP over HTTP: what is taken, what is refused, and how both are said."""

import asyncio
import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.testclient import TestClient

from spanloom.contract import Batch
from spanloom.errors import StoreClosedError, StoreFullError, StoreRejectedError
from spanloom.model import MetricKind, MetricPoint
from spanloom.otlp import traces_to_json, traces_to_message
from spanloom.server import ingest_http
from spanloom.server.monitoring import Monitor
from spanloom.server.signals import OFF_LOOP_BYTES, TRACES, Intake
from tests.server.agent_trace import AGENT, START, Builder, agent_trace
from tests.server.running import PROTOBUF, WAIT_S, Client, running

JSON = "application/json"
LIMIT = 1_000_000
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def one_span(**attributes: Any) -> Builder:
    builder = Builder(TRACE_ID)
    builder.span("GET /", **attributes)
    return builder


def body_of(builder: Builder) -> bytes:
    return traces_to_message(builder.spans).SerializeToString()


def test_protobuf_traces_are_stored_and_answered_with_an_empty_response(server: Client) -> None:
    answer = server.post("/v1/traces", body_of(agent_trace(TRACE_ID)))

    assert (
        answer.status_code,
        answer.content,
        answer.headers["content-type"],
    ) == (200, b"", PROTOBUF)
    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 32


def test_json_traces_are_stored_and_answered_in_json(server: Client) -> None:
    body = json.dumps(traces_to_json(one_span(greeting="你好").spans))

    answer = server.post("/v1/traces", body, "application/json; charset=utf-8")

    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "{}", JSON)
    tags = server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"][0]["tags"]
    assert {"key": "greeting", "type": "string", "value": "你好"} in tags


def test_gzip_is_taken_also_in_several_members(server: Client) -> None:
    body = body_of(agent_trace(TRACE_ID))
    halves = gzip.compress(body[:1000]) + gzip.compress(body[1000:])

    assert server.post("/v1/traces", halves, content_encoding="gzip").status_code == 200
    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 32


def test_chunked_bodies_are_taken(server: Client) -> None:
    body = body_of(agent_trace(TRACE_ID))

    def chunks() -> Iterator[bytes]:
        yield body[:700]
        yield body[700:]

    assert server.post("/v1/traces", chunks()).status_code == 200
    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 32


def test_a_body_that_is_decoded_in_a_thread_is_stored_alike(server: Client) -> None:
    builder = Builder(TRACE_ID)
    for number in range(400):
        builder.span(f"step {number}", text="x" * 1000)
    body = body_of(builder)
    assert len(body) > OFF_LOOP_BYTES

    compressed = gzip.compress(body)
    assert server.post("/v1/traces", compressed, content_encoding="gzip").status_code == 200
    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 400


def test_an_empty_request_is_a_success(server: Client) -> None:
    assert server.post("/v1/traces", b"").status_code == 200
    assert server.post("/v1/logs", "{}", JSON).status_code == 200


def test_logs_and_metrics_come_back_as_they_went_in(server: Client) -> None:
    builder = agent_trace(TRACE_ID)
    point = MetricPoint("agent.requests", MetricKind.SUM, START, value=3, resource=AGENT)

    server.send(spans=builder.spans, logs=builder.logs, metrics=[point])

    logs = server.json(f"/api/spanloom/traces/{TRACE_ID}/logs")
    records = [r for s in logs["resourceLogs"][0]["scopeLogs"] for r in s["logRecords"]]
    assert len(builder.logs) == len(records)
    metrics = server.json("/api/spanloom/metrics/agent.requests")
    found = metrics["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]
    assert found["sum"]["dataPoints"][0]["asInt"] == "3"


def test_invalid_spans_are_counted_in_a_partial_success_and_the_others_kept(
    server: Client,
) -> None:
    request = ExportTraceServiceRequest.FromString(body_of(one_span()))
    spans = request.resource_spans[0].scope_spans[0].spans
    spans.add(name="no ids")

    answer = server.post("/v1/traces", request.SerializeToString())

    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_spans) == (200, 1)
    assert "trace_id" in partial.error_message
    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 1


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "status"),
    [
        (b"\xff\xff not protobuf", PROTOBUF, {}, 400),
        (b"{not json", JSON, {}, 400),
        (b'{"resourceSpans": 3}', JSON, {}, 400),
        (b"not gzip", PROTOBUF, {"content_encoding": "gzip"}, 400),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], PROTOBUF, {"content_encoding": "gzip"}, 400),
        (b"", "text/plain", {}, 415),
        (b"", "", {}, 415),
        (b"", PROTOBUF, {"content_encoding": "br"}, 415),
    ],
)
def test_bad_input_is_told_as_a_status_in_the_encoding_of_the_request(
    server: Client, body: bytes, content_type: str, headers: dict[str, str], status: int
) -> None:
    answer = server.post("/v1/traces", body, content_type, **headers)

    assert status == answer.status_code
    if content_type == PROTOBUF:
        assert answer.headers["content-type"] == PROTOBUF
        assert Status.FromString(answer.content).message
    else:
        assert answer.headers["content-type"] == JSON
        assert answer.json()["message"]
    assert "retry-after" not in answer.headers


def test_other_methods_and_paths_are_refused(server: Client) -> None:
    assert server.otlp.get("/v1/traces").status_code == 405
    assert server.otlp.post("/v1/profiles").status_code == 404


class TestSizeLimit:
    LIMIT = 100_000

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Client]:
        with running(tmp_path / "data", max_body_bytes=self.LIMIT) as client:
            yield client

    def test_a_declared_length_over_the_limit_is_413(self, small: Client) -> None:
        answer = small.post("/v1/traces", b"x" * (self.LIMIT + 1))

        assert answer.status_code == 413
        assert str(self.LIMIT) in Status.FromString(answer.content).message

    def test_a_chunked_body_is_cut_off_at_the_limit(self, small: Client) -> None:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            while True:
                sent += 50_000
                yield b"x" * 50_000

        try:
            answer = small.post("/v1/traces", endless())
        except httpx2.TransportError:
            pass  # the connection was closed while we were still sending
        else:
            assert answer.status_code == 413

        # Far less than what would be read without a limit, sockets' buffers included.
        assert sent < 50_000_000

    def test_a_body_little_over_the_limit_is_answered_not_cut_off(self, small: Client) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(3):
                yield b"x" * 50_000

        assert small.post("/v1/traces", chunks()).status_code == 413

    def test_a_bomb_is_413_without_being_unfolded(self, small: Client) -> None:
        bomb = gzip.compress(bytes(50_000_000), 9)
        assert len(bomb) < self.LIMIT

        answer = small.post("/v1/traces", bomb, content_encoding="gzip")

        assert answer.status_code == 413

    def test_a_body_of_exactly_the_limit_is_read(self, small: Client) -> None:
        answer = small.post("/v1/traces", b"\xff" * self.LIMIT)

        assert answer.status_code == 400


def no_stats() -> Any:
    raise NotImplementedError


class FailingWriter:
    """A Writer that fails in one of the ways the contract names."""

    def __init__(self, at_once: Exception | None = None, later: Exception | None = None) -> None:
        self._at_once = at_once
        self._later = later

    def submit(self, batch: Batch) -> "Future[None]":
        if self._at_once:
            raise self._at_once
        future: Future[None] = Future()
        future.set_exception(self._later)
        return future

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("writer", "status", "retry_after"),
    [
        (lambda: FailingWriter(at_once=StoreFullError("queue", 2.1)), 429, "3"),
        (lambda: FailingWriter(later=StoreFullError("disk", 30)), 503, "30"),
        (lambda: FailingWriter(at_once=StoreClosedError("closed")), 503, "5"),
        (lambda: FailingWriter(later=StoreRejectedError("never")), 400, None),
        (lambda: FailingWriter(later=RuntimeError("secret detail")), 500, None),
    ],
)
def test_each_failure_of_the_store_has_its_status(
    writer: Callable[[], FailingWriter], status: int, retry_after: str | None
) -> None:
    monitor = Monitor(no_stats)
    app = ingest_http.application(Intake(writer(), monitor, LIMIT), monitor, LIMIT)

    answer = TestClient(app).post(
        "/v1/traces", content=body_of(one_span()), headers={"content-type": PROTOBUF}
    )

    assert (status, retry_after) == (answer.status_code, answer.headers.get("retry-after"))
    message = Status.FromString(answer.content).message
    assert message
    assert "secret" not in message


def test_a_full_queue_is_429_and_everything_acknowledged_is_there(tmp_path: Path) -> None:
    bodies = []
    for number in range(60):
        builder = Builder(f"{number + 1:032x}")
        for step in range(100):
            builder.span(f"step {step}")
        bodies.append(body_of(builder))
    with running(tmp_path / "data", max_queue_items=100) as server:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda body: server.post("/v1/traces", body), bodies))
        statuses = [answer.status_code for answer in answers]
        kept = [number for number, status in enumerate(statuses) if status == 200]

        assert set(statuses) == {200, 429}
        assert all("retry-after" in a.headers for a in answers if a.status_code == 429)
        for number in range(60):
            found = server.query.get(f"/api/traces/{number + 1:032x}")
            assert found.status_code == (200 if number in kept else 404)


async def test_a_client_that_hangs_up_does_not_cancel_the_write() -> None:
    """Other clients' batches share the commit; what is stored counts as stored."""
    pending: Future[None] = Future()

    class SlowWriter(FailingWriter):
        def submit(self, batch: Batch) -> "Future[None]":
            return pending

    monitor = Monitor(no_stats)
    intake = Intake(SlowWriter(), monitor, LIMIT)
    request = asyncio.create_task(intake.take(TRACES, body_of(one_span()), PROTOBUF))
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    assert not pending.cancelled()
    pending.set_result(None)
    stored = {"signal": "traces"}
    assert monitor.registry.get_sample_value("spanloom_stored_items_total", stored) == 1


def test_bodies_of_all_connections_together_are_bounded(tmp_path: Path) -> None:
    """Four full bodies may wait; the next one is asked to come again, and room comes back."""
    size = 100_000
    with running(tmp_path / "data", max_body_bytes=size) as server:
        host, _, port = server.addresses.otlp_http.removeprefix("http://").partition(":")
        waiting = []
        for _ in range(4):
            connection = socket.create_connection((host, int(port)))
            head = (
                f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\n"
                f"Content-Length: {size}\r\n\r\n"
            )
            connection.sendall(head.encode() + b"x" * (size - 1))
            waiting.append(connection)

        def refused() -> bool:
            return server.post("/v1/traces", b"x" * 1000).status_code == 429

        assert eventually(refused)
        for connection in waiting:
            connection.close()
        assert eventually(lambda: not refused())


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_zlib_is_not_gzip(server: Client) -> None:
    body = zlib.compress(body_of(one_span()))

    assert server.post("/v1/traces", body, content_encoding="gzip").status_code == 400
