import contextlib
import http.server
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from spanloom import semconv
from tests.telemetry.live import Receiver, Service, attributes, wait_for

SERVER, CLIENT, ERROR = 2, 3, 2


class Caller(str):
    """A caller's trace id, with the header that goes with it."""

    __slots__ = ()

    def headers(self, flags: str = "01") -> dict[str, str]:
        return {"traceparent": f"00-{self}-00f067aa0ba902b7-{flags}"}


@pytest.fixture
def caller() -> Caller:
    return Caller(uuid.uuid4().hex)


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


def test_a_request_makes_one_server_span_with_current_names(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """A request has one SERVER span with route and stable HTTP names, in the caller's trace."""
    answer = service.client.get("/items/a?api_key=supersecret", headers=caller.headers())
    assert answer.json() == {"trace_id": caller, "flags": "01", "trusted": True}
    wait_for(lambda: len(backend.spans_of(caller)) >= 3)

    spans = {span.name: span for span in backend.spans_of(caller)}
    assert set(spans) == {"GET /items/{item}", "execute_tool calculator", "chat small"}
    server = spans["GET /items/{item}"]
    assert server.kind == SERVER
    assert server.parent_span_id.hex() == "00f067aa0ba902b7"
    found = attributes(server)
    assert found["http.route"] == "/items/{item}"
    assert found["http.request.method"] == "GET"
    assert found["http.response.status_code"] == 200
    assert found["server.address"] == "127.0.0.1"
    assert service.url.endswith(f":{found['server.port']}")
    assert "supersecret" not in str(found)
    assert spans["execute_tool calculator"].parent_span_id == server.span_id
    assert spans["chat small"].parent_span_id == spans["execute_tool calculator"].span_id
    assert spans["chat small"].kind == CLIENT
    resource = backend.resources[0]
    assert resource["service.name"] == "probe"
    assert resource["service.version"] == "1.2.3"
    assert resource["service.instance.id"]


def test_an_answer_before_the_body_was_read_leaves_nothing_behind(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """The next request on the connection is a SERVER span in its own caller's trace."""
    before = service.client.post("/unread", content=b"x" * 3_000_000).json()["trace_id"]

    answer = service.client.get("/items/a", headers=caller.headers())

    assert answer.json()["trace_id"] == caller != before
    spans = wait_for(
        lambda: [one for one in backend.spans_of(caller) if one.name == "GET /items/{item}"]
    )
    assert spans[0].kind == SERVER
    assert spans[0].parent_span_id.hex() == "00f067aa0ba902b7"


def test_an_unhandled_exception_is_one_redacted_event(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """The SERVER span of a failed request has one exception event, without the secret in it."""
    assert service.client.get("/boom", headers=caller.headers()).status_code == 500
    (span,) = wait_for(lambda: backend.spans_of(caller))

    (event,) = span.events
    assert event.name == "exception"
    assert attributes(event)["exception.type"] == "ValueError"
    assert "进程" in attributes(event)["exception.message"]
    assert span.status.code == ERROR
    assert "sk-abcdef" not in str(span)
    assert "sk-abcdef" not in service.stdout_path.read_text()
    line = wait_for(lambda: [one for one in service.lines() if "ASGI" in one["event"]])[0]
    assert line["trace_id"] == caller, "uvicorn logs it outside of the span"
    assert line["exception.type"] == "ValueError"
    assert "in boom" in line["exception.stacktrace"]


def test_every_stdout_line_is_json_and_names_its_trace(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """Lines of structlog, of stdlib loggers, of uvicorn's access log and of steps carry the ids."""
    service.client.get("/items/a?note=n&api_key=supersecret", headers=caller.headers())

    def lines_of_request() -> list[dict[str, Any]]:
        return [line for line in service.lines() if line.get("trace_id") == caller]

    mine = wait_for(lambda: lines if len(lines := lines_of_request()) == 5 else None)
    assert [line["logger"] for line in mine] == [
        "probe.app",
        "langchain.probe",
        "spanloom.steps",
        "spanloom.steps",
        "uvicorn.access",
    ]
    assert {line["service.name"] for line in service.lines()} == {"probe"}
    assert all(line["timestamp"].endswith("Z") for line in service.lines())
    first = mine[0]
    assert first["event"] == "chat_request"
    assert first["level"] == "info"
    assert first["trace_flags"] == "01"
    assert "检索增强生成" in service.stdout_path.read_text(encoding="utf-8")
    access = mine[-1]
    assert access["event"] == "http_request"
    assert (access["method"], access["status"]) == ("GET", 200)
    assert access["path"] == "/items/a?note=n&api_key=[REDACTED]"
    assert access["client"].startswith("127.0.0.1:")
    chat = next(line for line in mine if line.get("name") == "chat small")
    assert chat["event"] == "step"
    assert chat["outcome"] == "ok"
    assert chat["input_tokens"] == 7
    assert chat["duration_ms"] >= 0
    wait_for(lambda: len(backend.spans_of(caller)) == 3)
    spans = {span.span_id.hex(): span.name for span in backend.spans_of(caller)}
    assert spans[chat["span_id"]] == "chat small"
    assert spans[first["span_id"]] == "GET /items/{item}"


def test_each_line_is_one_otlp_record(caller: Caller, service: Service, backend: Receiver) -> None:
    """A line and its OTLP record say the same, once."""
    service.client.get("/items/a", headers=caller.headers())

    def mine() -> list[object]:
        return [one for one in list(backend.logs) if one.trace_id.hex() == caller]

    wait_for(lambda: len(mine()) == 5)
    bodies = [one.body.string_value for one in mine()]
    assert bodies.count("chat_request") == 1
    assert bodies.count("step") == 2
    assert bodies.count("from stdlib: 线程") == 1
    record = next(one for one in mine() if one.body.string_value == "chat_request")
    assert attributes(record) == {"query_len": 1, "note": "检索增强生成"}
    assert (record.severity_number, record.severity_text) == (9, "INFO")


def test_health_is_not_traced(caller: Caller, service: Service, backend: Receiver) -> None:
    """Polling the health endpoint leaves no spans."""
    service.client.get("/health", headers=caller.headers())
    later = service.client.get("/items/a").json()["trace_id"]
    wait_for(lambda: len(backend.spans_of(later)) == 3)

    assert backend.spans_of(caller) == []


def test_an_unsampled_caller_is_honoured_and_said(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """With the caller's flag 00 nothing is recorded, and the log lines say 00."""
    answer = service.client.get("/items/a", headers=caller.headers("00"))
    assert answer.json()["flags"] == "00"
    later = service.client.get("/items/a").json()["trace_id"]
    wait_for(lambda: len(backend.spans_of(later)) == 3)

    assert backend.spans_of(caller) == []
    flags = {line["trace_flags"] for line in service.lines() if line.get("trace_id") == caller}
    assert flags == {"00"}


def test_a_stream_keeps_its_span_to_the_end(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """What happens while a stream is sent belongs to the request's span."""
    answer = service.client.get("/stream", headers=caller.headers())
    assert answer.text.count("data:") == 3
    wait_for(lambda: len(backend.spans_of(caller)) == 4)

    spans = backend.spans_of(caller)
    server = next(span for span in spans if span.kind == SERVER)
    chunks = [span for span in spans if span.name == "chunk"]
    assert {span.parent_span_id for span in chunks} == {server.span_id}
    assert all(span.end_time_unix_nano <= server.end_time_unix_nano for span in chunks)


def test_a_deadline_is_told_from_a_cancellation(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """A span cut by the deadline ends as `timeout` and names the deadline."""
    service.client.get("/deadline", headers=caller.headers())
    wait_for(lambda: len(backend.spans_of(caller)) == 2)

    spans = {span.name: span for span in backend.spans_of(caller)}
    slow = attributes(spans["slow"])
    assert slow[semconv.SPANLOOM_OUTCOME] == "timeout"
    assert slow["error.type"] == "timeout"
    assert slow[semconv.SPANLOOM_DEADLINE_MS] == 50
    assert spans["slow"].status.code == ERROR
    assert attributes(spans["GET /deadline"])[semconv.SPANLOOM_DEADLINE_MS] == 50


@pytest.fixture
def holding(receiver: Receiver, start_service: Callable[..., Service]) -> Service:
    """A service whose spans wait for a minute before they are sent by themselves."""
    return start_service(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY="60000")


def test_sigterm_loses_nothing(caller: Caller, receiver: Receiver, holding: Service) -> None:
    """Spans still waiting in the queue are sent before SIGTERM ends the service."""
    holding.client.get("/items/a", headers=caller.headers())
    holding.stop()

    assert len(receiver.spans_of(caller)) == 3


def call_until_cut(service: Service, path: str, caller: Caller) -> threading.Thread:
    """Ask in a thread for what never answers by itself, and return once its handler has begun."""

    def call() -> None:
        with contextlib.suppress(httpx2.TransportError):
            httpx2.get(service.url + path, headers=caller.headers(), timeout=60)

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(lambda: any(line.get("event") == f"{path} began" for line in service.lines()))
    return thread


def test_sigterm_waits_for_requests_that_tidy_up(
    caller: Caller, receiver: Receiver, holding: Service
) -> None:
    """A cancelled request that still has to close something ends its spans before they are sent."""
    asking = call_until_cut(holding, "/tidy", caller)
    assert holding.stop() == -signal.SIGTERM
    asking.join()

    spans = {span.name: span for span in receiver.spans_of(caller)}
    assert set(spans) == {"GET /tidy", "tidying"}
    assert all(span.status.code == ERROR for span in spans.values())
    assert attributes(spans["tidying"])[semconv.SPANLOOM_OUTCOME] == semconv.OUTCOME_CANCELLED


def test_sigterm_does_not_wait_for_a_request_that_ignores_it(
    caller: Caller, receiver: Receiver, holding: Service
) -> None:
    """What is finished is sent, and the process ends."""
    holding.client.get("/items/a", headers=caller.headers())
    asking = call_until_cut(holding, "/stubborn", Caller(uuid.uuid4().hex))
    assert holding.process.poll() is None
    holding.process.terminate()
    wait_for(lambda: len(receiver.spans_of(caller)) == 3)
    holding.process.kill()  # asyncio waits for the tasks of a loop that it closes
    holding.process.wait(30)
    asking.join()


class Echo:
    """Remembers the headers of each request; /away redirects to another name of this host."""

    def __init__(self) -> None:
        echo = self
        self.headers: list[dict[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                echo.headers.append({k.lower(): v for k, v in self.headers.items()})
                away = self.path.startswith("/away")
                self.send_response(302 if away else 200)
                if away:
                    self.send_header("Location", f"http://localhost:{echo.port}/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.server.shutdown()
    echo.server.server_close()


def test_trace_context_goes_to_loopback_by_default(
    caller: Caller, service: Service, backend: Receiver, echo: Echo
) -> None:
    """Both httpx2 clients send the id of their own CLIENT span to a loopback host."""
    service.client.get(
        "/fetch", params={"url": f"http://127.0.0.1:{echo.port}/"}, headers=caller.headers()
    )
    wait_for(lambda: len(backend.spans_of(caller)) == 3)

    sent = [one["traceparent"].split("-") for one in echo.headers]
    clients = {one.span_id.hex() for one in backend.spans_of(caller) if one.kind == CLIENT}
    assert [one[1] for one in sent] == [caller, caller]
    assert {one[2] for one in sent} == clients


def test_trace_context_stays_away_from_hosts_not_listed(
    caller: Caller, receiver: Receiver, start_service: Callable[..., Service], echo: Echo
) -> None:
    """With an empty list no header leaves, but the call still has its span."""
    service = start_service(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, SPANLOOM_PROPAGATE_TO="none")
    service.client.get(
        "/fetch",
        params={"url": f"http://127.0.0.1:{echo.port}/"},
        headers={**caller.headers(), "baggage": "tenant=7"},
    )
    wait_for(lambda: len(receiver.spans_of(caller)) == 3)

    assert len(echo.headers) == 2
    assert not [h for h in echo.headers if {"traceparent", "tracestate", "baggage"} & set(h)]


def test_untrusted_callers_get_a_new_trace_with_a_link(
    caller: Caller, receiver: Receiver, start_service: Callable[..., Service]
) -> None:
    """With SPANLOOM_TRUST=none the caller's context is only a link, and baggage is dropped."""
    service = start_service(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, SPANLOOM_TRUST="none")
    answer = service.client.get(
        "/items/a", headers={**caller.headers(), "baggage": "a=b", "tracestate": "x=y"}
    ).json()
    assert answer["trusted"] is False
    assert answer["trace_id"] != caller
    wait_for(lambda: len(receiver.spans_of(answer["trace_id"])) == 3)

    spans = receiver.spans_of(answer["trace_id"])
    root = next(span for span in spans if span.kind == SERVER)
    assert root.parent_span_id == b""
    (link,) = root.links
    assert link.trace_id.hex() == caller
    assert attributes(link) == {semconv.SPANLOOM_LINK_KIND: semconv.LINK_UNTRUSTED_CALLER}


def test_garbage_in_context_headers_costs_nothing_but_the_trace(
    caller: Caller, service: Service, backend: Receiver
) -> None:
    """Whatever the headers hold, the request is answered in a new trace."""
    for garbage in ("", "00", "00-zz-zz-01", "x" * 6000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        answer = service.client.get(
            "/items/a",
            headers={"traceparent": garbage, "tracestate": "," * 5000, "baggage": "%ff=" * 2500},
        )
        assert answer.status_code == 200
        assert len(answer.json()["trace_id"]) == 32
        assert answer.json()["trace_id"] != caller


def test_the_service_answers_while_the_backend_is_down(
    start_service: Callable[..., Service],
) -> None:
    """With nothing at the endpoint requests succeed, and one line a minute complains at most."""
    service = start_service(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    for _ in range(20):
        assert service.client.get("/items/a").status_code == 200
    complaints = wait_for(
        lambda: [one for one in service.lines() if one["logger"].startswith("opentelemetry.")]
    )

    assert len(complaints) == 1
    assert "the service is not affected" in complaints[0]["hint"]
