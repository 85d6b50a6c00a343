"""A tracer provider of its own, the instrumentor on it, and a real loopback server to call."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from langchain_openai import ChatOpenAI
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spanloom import semconv
from spanloom.telemetry.langgraph import LangGraphInstrumentor
from spanloom.telemetry.reference import attributes_of
from tests.telemetry.langgraph.probing import Probe
from tests.telemetry.langgraph.situations import Bodies


class Recorded:
    """The spans that ended so far, as questions a test asks."""

    def __init__(self, exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
        self._exporter = exporter
        self.provider = provider
        self.tracer = provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def clear(self) -> None:
        self._exporter.clear()

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.all(name)
        assert len(found) == 1, f"{len(found)} spans {name!r} among {[s.name for s in self.spans]}"
        return found[0]

    async def ended(self, name: str, times: int = 1) -> ReadableSpan:
        """The first of that name, once so many have ended: some outlive what the test awaits."""
        for _ in range(3_000):
            if len(found := self.all(name)) >= times:
                return found[0]
            await asyncio.sleep(0.02)
        raise AssertionError(f"{name} has not ended {times} times")

    def attributes(self, name: str) -> dict[str, Any]:
        return dict(self.one(name).attributes or {})

    def outcome(self, name: str) -> tuple[str, str]:
        """Status code and spanloom.outcome."""
        span = self.one(name)
        return span.status.status_code.name, str((span.attributes or {})["spanloom.outcome"])

    def exceptions(self) -> list[tuple[str, str]]:
        """Span name and exception type of each exception event."""
        return [
            (span.name, str((event.attributes or {})["exception.type"]))
            for span in self.spans
            for event in span.events
            if event.name == "exception"
        ]

    def parent(self, span: ReadableSpan) -> str | None:
        if span.parent is None:
            return None
        return next(
            (s.name for s in self.spans if s.context.span_id == span.parent.span_id), "(not ended)"
        )

    def tree(self) -> list[Any]:
        """Nested [name, [children]], siblings by name; every span once."""
        spans = self.spans
        ids = {span.context.span_id for span in spans}
        children: dict[int | None, list[ReadableSpan]] = {}
        for span in spans:
            parent = span.parent.span_id if span.parent and span.parent.span_id in ids else None
            children.setdefault(parent, []).append(span)

        def below(parent: int | None) -> list[Any]:
            found = []
            for span in children.get(parent, []):
                inner = below(span.context.span_id)
                found.append([span.name, inner] if inner else span.name)
            return sorted(found, key=lambda node: str(node if isinstance(node, list) else [node]))

        return below(None)

    def name_of(self, traceparent: str) -> str:
        """The span a `traceparent` header names."""
        _, trace_id, span_id, _ = traceparent.split("-")
        for span in self.spans:
            if span.context.span_id == int(span_id, 16):
                assert span.context.trace_id == int(trace_id, 16)
                return span.name
        raise AssertionError(f"no span {span_id} among {[s.name for s in self.spans]}")

    def caller_of(self, traceparent: str) -> str | None:
        """Which unit made a request: the parent of the HTTP client span the header names."""
        _, _, span_id, _ = traceparent.split("-")
        (http,) = [s for s in self.spans if s.context.span_id == int(span_id, 16)]
        assert http.name == "GET"
        return self.parent(http)


class Server(ThreadingHTTPServer):
    """GET /mark/{anything} notes the traceparent; POST answers as OpenAI or Anthropic would."""

    daemon_threads = True
    request_queue_size = 1_024  # hundreds of callers at once: beyond it the kernel drops some

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.headers_by_path: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.chat_headers: list[str] = []
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def get(self, path: str) -> None:
        """What application code does to reach another service."""
        with httpx2.Client(timeout=60) as client:
            client.get(f"{self.url}/mark/{path}")

    def model(self, **options: Any) -> ChatOpenAI:
        """A client of this server's chat completions."""
        defaults = {"model": "offline-small", "api_key": "none", "max_retries": 0}
        return ChatOpenAI(**{"base_url": f"{self.url}/v1", **defaults, **options})

    async def aget(self, path: str) -> None:
        async with httpx2.AsyncClient(timeout=60) as client:
            await client.get(f"{self.url}/mark/{path}")


_ANTHROPIC_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-offline-2026",
    "content": [{"type": "text", "text": "你好 world"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 6,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 2,
        "output_tokens": 5,
    },
}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.headers_by_path[self.path.removeprefix("/mark/")] = self.headers.get(
            "traceparent", ""
        )
        self._send(b"{}")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.chat_headers.append(self.headers.get("traceparent", ""))
        if request["model"] == "failing":
            self.send_response(500)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        if self.path == "/v1/messages":
            self._send(json.dumps(_ANTHROPIC_ANSWER).encode())
            return
        usage = {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
        head = {"id": "chatcmpl-1", "created": 1, "model": "offline-2026"}
        if not request.get("stream"):
            message = {"role": "assistant", "content": "你好 world"}
            finish_reason = "length" if request["model"] == "wordy" else "stop"
            choice = {"index": 0, "message": message, "finish_reason": finish_reason}
            body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            self._send(json.dumps(body).encode())
            return
        self._stream(request, head, usage)

    def _stream(self, request: dict[str, Any], head: dict[str, Any], usage: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        with_usage = request.get("stream_options", {}).get("include_usage")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": part} for part in ("你", "好", " ", "world")]
        for index, delta in enumerate(deltas):
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if index == 2 and request["model"] == "stalling":
                self.server.release.wait(60)
                return
        self._event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if with_usage:
            self._event({**head, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        data["object"] = "chat.completion.chunk"
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def recorded(caplog: pytest.LogCaptureFixture) -> Iterator[Recorded]:
    """Instrument for one test; at its end no context was lost and nothing was complained of.

    And each span carries what docs/telemetry.md says of it, nothing else.
    """
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # older model SDKs use httpx, newer ones httpx2
    clients = (HTTPX2ClientInstrumentor(), HTTPXClientInstrumentor())
    for client in clients:
        client.instrument(tracer_provider=provider)
    LangGraphInstrumentor().instrument(tracer_provider=provider)
    yield Recorded(exporter, provider)
    LangGraphInstrumentor().uninstrument()
    for client in clients:
        client.uninstrument()
    assert not trace.get_current_span().get_span_context().is_valid, "a span leaked to the caller"
    complaints = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("opentelemetry.context", "spanloom"))
    ]
    assert complaints == []
    for span in exporter.get_finished_spans():
        scope = span.instrumentation_scope
        if scope is not None and scope.name.startswith("spanloom."):
            carried = dict(span.attributes or {})
            # a hand-written step() names no operation
            if operation := carried.get(semconv.GEN_AI_OPERATION_NAME):
                always, possible = attributes_of(str(operation))
                assert always <= set(carried) <= possible, span.name


@pytest.fixture
def probe(recorded: Recorded, server: Server) -> Probe:
    """What a body saw, what was recorded and what left the process, all in one picture."""
    return Probe(recorded, server)


@pytest.fixture
def bodies(probe: Probe, asynchronous: bool) -> Bodies:
    return Bodies(probe, asynchronous=asynchronous)
