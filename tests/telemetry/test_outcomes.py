import asyncio
import contextlib
import http.server
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from spanloom.telemetry.outcomes import OutcomeMiddleware
from tests.telemetry.live import Receiver, Service, attributes, wait_for

UNSET, ERROR = 0, 2
SERVER, CLIENT = 2, 3


@pytest.fixture(scope="module")
def backend() -> Iterator[Receiver]:
    backend = Receiver()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def service(backend: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(
        tmp_path_factory.mktemp("service"), {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.url}
    )
    yield service
    service.stop()


@pytest.fixture
def span_of(service: Service, backend: Receiver) -> Callable[..., Any]:
    """Sends a request (reading `chunks` of the answer, if that is given); its span of a kind."""

    def ask(path: str, *, kind: int = SERVER, chunks: int | None = None) -> Any:
        trace_id = uuid.uuid4().hex
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        with service.client.stream("GET", path, headers=headers) as answer:
            if chunks is None:
                answer.read()
            else:
                parts = answer.iter_raw()
                for _ in range(chunks):
                    next(parts)

        def found() -> list[Any]:
            return [span for span in backend.spans_of(trace_id) if span.kind == kind]

        return wait_for(found)[0]

    return ask


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/items/a", UNSET, {"spanloom.outcome": "ok"}),
        ("/stream", UNSET, {"spanloom.outcome": "ok"}),
        ("/status/404", UNSET, {"spanloom.outcome": "ok"}),
        ("/status/503", ERROR, {"spanloom.outcome": "error", "error.type": "503"}),
        ("/boom", ERROR, {"spanloom.outcome": "error"}),
        ("/late", ERROR, {"spanloom.outcome": "timeout"}),
        ("/told", ERROR, {"spanloom.outcome": "timeout", "error.type": "timeout"}),
    ],
)
def test_a_server_span_says_how_its_request_ended(
    span_of: Callable[..., Any], path: str, status: int, expected: dict[str, str]
) -> None:
    """By the status, the exception, or what the application has said itself."""
    span = span_of(path)

    assert span.status.code == status
    found = attributes(span)
    assert expected.items() <= found.items()
    assert status == ERROR or "error.type" not in found


def test_a_client_that_leaves_a_stream_has_cancelled_it(span_of: Callable[..., Any]) -> None:
    """The headers said 200; the span says that nobody waited for the end."""
    span = span_of("/endless", chunks=2)

    assert span.status.code == ERROR
    found = attributes(span)
    assert found["http.response.status_code"] == 200
    assert found["spanloom.outcome"] == found["error.type"] == "cancelled"


class Slow(http.server.BaseHTTPRequestHandler):
    """Answers /now at once and /never not before the test ends."""

    end = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/never":
            self.end.wait(30)
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Slow.end.set()
    server.shutdown()
    server.server_close()


def test_an_http_call_cut_by_a_deadline_says_so(span_of: Callable[..., Any], slow: str) -> None:
    """Its CLIENT span ends as a timeout with the deadline, not as if all were well."""
    span = span_of(f"/cut-fetch?url={slow}/never", kind=CLIENT)

    assert span.status.code == ERROR
    found = attributes(span)
    assert found["spanloom.outcome"] == found["error.type"] == "timeout"
    assert found["spanloom.deadline_ms"] == 200
    assert not span.events


@pytest.mark.parametrize(("path", "outcome"), [("/now", "ok"), ("/none", "error")])
def test_an_http_call_that_was_answered_says_so(
    span_of: Callable[..., Any], slow: str, path: str, outcome: str
) -> None:
    """By its status, as contrib's CLIENT spans have it: 404 is an error of the caller."""
    span = span_of(f"/fetch?url={slow}{path}", kind=CLIENT)

    assert attributes(span)["spanloom.outcome"] == outcome


async def run(application: Any) -> Any:
    """Run an ASGI application below a SERVER span of contrib's; returns the ended span."""

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.request"}

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("opentelemetry.instrumentation.asgi")
    with (
        tracer.start_as_current_span("GET /", kind=SpanKind.SERVER) as span,
        contextlib.suppress(asyncio.CancelledError),
    ):
        await OutcomeMiddleware(application)({"type": "http"}, nothing, nothing)
    return span


async def test_a_cancelled_request_says_so() -> None:
    """A server that cancels the task of a client that is gone."""

    async def application(*_: Any) -> None:
        raise asyncio.CancelledError

    span = await run(application)

    assert span.attributes["spanloom.outcome"] == span.attributes["error.type"] == "cancelled"
    assert span.status.status_code.value == ERROR


async def test_a_request_that_was_not_answered_is_an_error() -> None:
    """The application returned in the middle of its answer, and the client was still there."""

    async def application(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    span = await run(application)

    assert json.loads(span.to_json())["attributes"] == {
        "spanloom.outcome": "error",
        "error.type": "incomplete_response",
    }


async def test_a_file_that_the_server_sends_is_an_answer() -> None:
    """The pathsend extension has no body message."""

    async def application(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.pathsend", "path": "/some/file"})

    span = await run(application)

    assert dict(span.attributes) == {"spanloom.outcome": "ok"}


async def test_what_the_application_has_said_is_kept() -> None:
    """Its own outcome stands, whatever the answer looks like."""

    async def application(_: Any, __: Any, send: Any) -> None:
        trace.get_current_span().set_attribute("spanloom.outcome", "cancelled")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    span = await run(application)

    assert dict(span.attributes) == {"spanloom.outcome": "cancelled"}
