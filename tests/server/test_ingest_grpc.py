"""OTLP over gRPC, against a real server on a real port."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from spanloom.contract import Batch
from spanloom.errors import StoreFullError, StoreRejectedError
from spanloom.otlp import logs_to_message, traces_to_message
from spanloom.server import ingest_grpc
from spanloom.server.ingest_grpc import status_of
from spanloom.server.monitoring import Monitor
from spanloom.server.signals import Intake
from spanloom.store import StoreStats
from tests.server.agent_trace import Builder, agent_trace
from tests.server.running import WAIT_S, Client, running

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


def export(server: Client, body: bytes, method: str = TRACES, **options: Any) -> bytes:
    target = server.addresses.otlp_grpc.removeprefix("http://")
    limits = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options=limits) as channel:
        answer: bytes = channel.unary_unary(method)(body, timeout=WAIT_S, **options)
    return answer


def test_traces_and_logs_are_stored(server: Client) -> None:
    builder = agent_trace(TRACE_ID)

    traces = export(server, traces_to_message(builder.spans).SerializeToString())
    logs = export(server, logs_to_message(builder.logs).SerializeToString(), LOGS)

    assert ExportTraceServiceResponse() == ExportTraceServiceResponse.FromString(traces)
    assert ExportLogsServiceResponse() == ExportLogsServiceResponse.FromString(logs)
    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 32
    stored = server.json(f"/api/spanloom/traces/{TRACE_ID}/logs")
    assert stored["resourceLogs"]


def test_gzip_is_taken(server: Client) -> None:
    body = traces_to_message(agent_trace(TRACE_ID).spans).SerializeToString()

    export(server, body, compression=grpc.Compression.Gzip)

    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 32


def test_a_message_over_grpcs_usual_4_mib_is_taken(server: Client) -> None:
    builder = Builder(TRACE_ID)
    for number in range(50):
        builder.span(f"step {number}", text="x" * 100_000)

    export(server, traces_to_message(builder.spans).SerializeToString())

    assert len(server.json(f"/api/traces/{TRACE_ID}")["data"][0]["spans"]) == 50


def test_invalid_spans_are_counted_in_a_partial_success(server: Client) -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="no ids")

    answer = ExportTraceServiceResponse.FromString(export(server, request.SerializeToString()))

    assert answer.partial_success.rejected_spans == 1


def test_nonsense_is_an_invalid_argument(server: Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        export(server, b"\xff\xff not protobuf")

    assert grpc.StatusCode.INVALID_ARGUMENT is refused.value.code()
    assert "protobuf" in refused.value.details()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path / "data", max_body_bytes=100_000) as client:
        yield client


def test_a_message_over_the_limit_is_not_to_be_sent_again(small: Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        export(small, b"x" * 200_000)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is refused.value.code()
    assert not [key for key, _ in refused.value.trailing_metadata() if "status-details" in key]


def test_a_gzip_bomb_is_refused(small: Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        export(small, bytes(20_000_000), compression=grpc.Compression.Gzip)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is refused.value.code()


async def test_messages_of_all_callers_together_are_bounded() -> None:
    """Four full messages may wait to be stored; the next caller is told to come again."""
    body = traces_to_message(agent_trace(TRACE_ID).spans).SerializeToString()
    writer = BlockedWriter()
    monitor = Monitor(no_stats)
    intake = Intake(writer, monitor, len(body))
    grpc_server = ingest_grpc.server(intake, monitor, len(body))
    port = ingest_grpc.bind(grpc_server, "127.0.0.1", 0)
    await grpc_server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call() -> "asyncio.Future[bytes]":
            return asyncio.ensure_future(channel.unary_unary(TRACES)(body, timeout=WAIT_S))

        waiting = [call() for _ in range(4)]
        taken = [await writer.submitted.get() for _ in waiting]
        with pytest.raises(grpc.aio.AioRpcError, match="Too many large requests") as refused:
            await call()
        for future in taken:
            future.set_result(None)
        answers = await asyncio.gather(*waiting)
        later = call()  # there is room again
        (await writer.submitted.get()).set_result(None)
        answers.append(await later)
    await grpc_server.stop(None)
    intake.close()

    assert answers == [b""] * 5
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


class BlockedWriter:
    """Takes every batch and stores none until the test says so."""

    def __init__(self) -> None:
        self.submitted: asyncio.Queue[Future[None]] = asyncio.Queue()

    def submit(self, batch: Batch) -> "Future[None]":
        future: Future[None] = Future()
        self.submitted.put_nowait(future)
        return future

    def close(self) -> None:
        """Nothing to free."""


def no_stats() -> StoreStats:
    raise AssertionError("nobody asks")


def test_a_full_store_is_unavailable_with_the_time_to_come_again() -> None:
    """Clients retry UNAVAILABLE, and wait as long as RetryInfo says."""
    code, details = status_of(StoreFullError("full", 2.5))

    assert grpc.StatusCode.UNAVAILABLE is code
    status = Status.FromString(dict(details)["grpc-status-details-bin"])
    info = RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.seconds + info.retry_delay.nanos / 1e9 == 2.5


def test_a_batch_that_can_never_be_stored_is_an_invalid_argument() -> None:
    assert status_of(StoreRejectedError("bad")) == (grpc.StatusCode.INVALID_ARGUMENT, ())
