"""Sending OTLP: what each answer of a real HTTP or gRPC server means for what was sent."""

import asyncio
import http.server
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from spanloom.errors import ConfigurationError
from spanloom.otlp import traces_to_message
from spanloom.server.otlp_out import Answer, Outcome, sender_to
from tests.builders import span

MESSAGE = traces_to_message([span("查询")]).SerializeToString()
TIMEOUT_S = 20


def send(url: str, message: bytes = MESSAGE, timeout_s: float = TIMEOUT_S) -> Answer:
    async def once() -> Answer:
        sender = sender_to(url, timeout_s)
        try:
            return await sender.send(message)
        finally:
            await sender.close()

    return asyncio.run(once())


def partial(rejected: int) -> bytes:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = rejected
    answer.partial_success.error_message = "没有空间"
    return answer.SerializeToString()


class Web(http.server.ThreadingHTTPServer):
    """Answers as it is told, and keeps what it was sent."""

    daemon_threads = True
    status = 200
    body = b""
    extra: tuple[tuple[str, str], ...] = ()
    seen: bytes = b""
    headers: Any = None


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_POST(self) -> None:
        self.server.headers = self.headers
        self.server.seen = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        for name, value in self.server.extra:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.TAKEN),
        (400, Outcome.REFUSED),
        (422, Outcome.REFUSED),
        (413, Outcome.TOO_LARGE),
        (429, Outcome.AGAIN),
        (500, Outcome.AGAIN),
        (503, Outcome.AGAIN),
        # A wrong address or token is repaired, later.
        (301, Outcome.AGAIN),
        (401, Outcome.AGAIN),
        (404, Outcome.AGAIN),
    ],
)
def test_http_statuses(web: Web, status: int, outcome: Outcome) -> None:
    web.status = status
    answer = send(f"http://127.0.0.1:{web.server_port}/")
    assert answer.outcome is outcome
    assert web.seen == MESSAGE


def test_http_waits_as_long_as_it_is_told(web: Web) -> None:
    web.status, web.extra = 503, (("Retry-After", "17"),)
    assert send(f"http://127.0.0.1:{web.server_port}").retry_after_s == 17
    web.extra = (("Retry-After", "Wed, 21 Oct 2099 07:28:00 GMT"),)
    assert send(f"http://127.0.0.1:{web.server_port}").retry_after_s > 1_000_000
    web.extra = (("Retry-After", "soon"),)
    assert send(f"http://127.0.0.1:{web.server_port}").retry_after_s == 0


def test_http_partial_success_and_what_is_no_answer(web: Web) -> None:
    web.body = partial(1)
    answer = send(f"http://127.0.0.1:{web.server_port}")
    assert (answer.outcome, answer.rejected, answer.message) == (Outcome.TAKEN, 1, "没有空间")
    web.body = b"<html>Welcome to the proxy</html>"
    assert send(f"http://127.0.0.1:{web.server_port}").outcome is Outcome.AGAIN


def test_a_token_is_sent(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken")
    send(f"http://127.0.0.1:{web.server_port}")
    assert web.headers["authorization"] == "Bearer t0ken"


Export = Callable[[bytes, Any], Awaitable[bytes]]


def answered_by_grpc(export: Export, message: bytes = MESSAGE) -> Answer:
    """What one message gets from a real gRPC server."""

    async def run() -> Answer:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1_000_000)])
        handler = grpc.unary_unary_rpc_method_handler(export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        sender = sender_to(f"grpc://127.0.0.1:{port}", TIMEOUT_S)
        try:
            return await sender.send(message)
        finally:
            await sender.close()
            await server.stop(None)

    return asyncio.run(run())


def fails(code: grpc.StatusCode, details: str = "", retry_s: int | None = None) -> Export:
    async def export(_request: bytes, context: Any) -> bytes:
        if retry_s is not None:
            info, packed = RetryInfo(), AnyMessage()
            info.retry_delay.seconds = retry_s
            packed.Pack(info)
            status = Status(code=code.value[0], details=[packed]).SerializeToString()
            context.set_trailing_metadata((("grpc-status-details-bin", status),))
        await context.abort(code, details)
        return b""

    return export


@pytest.mark.parametrize(
    ("code", "details", "outcome"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "bad", Outcome.REFUSED),
        (grpc.StatusCode.UNAVAILABLE, "queue is full", Outcome.AGAIN),
        (grpc.StatusCode.UNIMPLEMENTED, "", Outcome.AGAIN),
        (grpc.StatusCode.UNAUTHENTICATED, "", Outcome.AGAIN),
        # The same code for two things: a limit of the rate is no reason to drop a span.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests", Outcome.AGAIN),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "grpc: received message larger than max (5 vs. 4)",
            Outcome.TOO_LARGE,
        ),
    ],
)
def test_grpc_codes(code: grpc.StatusCode, details: str, outcome: Outcome) -> None:
    assert answered_by_grpc(fails(code, details)).outcome is outcome


def test_grpc_takes_waits_and_is_told_of_a_message_that_is_too_large() -> None:
    seen = []

    async def takes(request: bytes, _context: Any) -> bytes:
        seen.append(request)
        return partial(1)

    assert answered_by_grpc(takes) == Answer(Outcome.TAKEN, "没有空间", rejected=1)
    assert seen == [MESSAGE]
    answer = answered_by_grpc(fails(grpc.StatusCode.UNAVAILABLE, retry_s=9))
    assert (answer.outcome, answer.retry_after_s) == (Outcome.AGAIN, 9)
    large = traces_to_message([span(attributes={"text": "字" * 400_000})]).SerializeToString()
    assert answered_by_grpc(takes, large).outcome is Outcome.TOO_LARGE


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_no_refusal(web: Web, scheme: str) -> None:
    web.shutdown()
    web.server_close()
    answer = send(f"{scheme}://127.0.0.1:{web.server_port}", timeout_s=2)
    assert answer.outcome is Outcome.AGAIN
    assert answer.message


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4318", "ftp://h", "http://", "http://h:port", "grpc:/h"]
)
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--to"):
        sender_to(url, 1)
