from typing import Any

import httpx
import httpx2
import pytest
from opentelemetry.instrumentation import httpx as contrib_httpx
from opentelemetry.instrumentation._semconv import _StabilityMode
from opentelemetry.instrumentation.asgi import ASGIGetter

from spanloom.telemetry import contrib_http
from spanloom.telemetry.trust import TRUSTED_KEY, _decodable
from tests.telemetry.live import Script

HEADERS = [
    (b"host", b"a"),
    (b"x-many", b"1"),
    (b"x-many", b"2"),
    (b"X-Many", b"3"),
    (b"empty", b""),
    (b"chinese", "中文".encode()),
    (b"latin", b"caf\xe9"),
    (b"\xff", b"odd"),
]
GETTER_AS_IT_CAME = ASGIGetter.get
EXTRACT_AS_IT_CAME = contrib_httpx._extract_parameters


@pytest.mark.parametrize(
    "name", ["host", "HOST", "x-many", "empty", "chinese", "latin", "missing", "中文"]
)
def test_headers_are_found_as_contrib_finds_them(name: str) -> None:
    """Same values, in the same order, whatever the case and the bytes."""
    getter = ASGIGetter()
    for carrier in ({"headers": HEADERS}, {"headers": []}, {}):
        assert contrib_http._header_of(getter, carrier, name) == GETTER_AS_IT_CAME(
            getter, carrier, name
        )
    admitted = {"headers": _decodable(HEADERS), TRUSTED_KEY: True}
    assert contrib_http._header_of(getter, admitted, name) == GETTER_AS_IT_CAME(
        getter, admitted, name
    )


HTTP_CLIENT = """
import httpx, threading, http.server, sys
from spanloom.telemetry import setup
setup('client')

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('X-Answer', 'yes')
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *_): pass

server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
httpx.get(f'http://127.0.0.1:{server.server_port}/', headers={'X-Asked': '问, b'.encode()})
(span,) = exporter.get_finished_spans()
print({key: value for key, value in span.attributes.items() if '.header.' in key})
print(span.attributes['http.response.status_code'], span.name, span.kind.name)
"""


def test_headers_are_captured_where_they_are_asked_for(script: Script) -> None:
    """Contrib's variables hold, each for itself; without them the span is the same otherwise."""
    names = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_"
    none = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    asked = script.run(HTTP_CLIENT, **none, **{f"{names}REQUEST": "x-asked"})
    answered = script.run(HTTP_CLIENT, **none, **{f"{names}RESPONSE": "x-answer"})
    neither = script.run(HTTP_CLIENT, **none)

    heads = {}
    for name, done in (("asked", asked), ("answered", answered), ("neither", neither)):
        assert done.returncode == 0, done.stderr
        heads[name], rest = done.stdout.splitlines()
        assert rest == "200 GET CLIENT"
    assert heads["asked"] == "{'http.request.header.x_asked': ('问', 'b')}"
    assert heads["answered"] == "{'http.response.header.x_answer': ('yes',)}"
    assert heads["neither"] == "{}"


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8001/search?q=%E4%BD%A0&key=a#part",
        "https://user:secret@例え.jp/文?b=中文",
        "http://[::1]/",
    ],
)
def test_a_request_s_attributes_are_those_that_contrib_writes(library: Any, url: str) -> None:
    """Read from the request as it is, or as contrib does, from its text."""
    request = library.Request("post", url, headers={"a": "1"})

    found = contrib_http._parameters((request,), {}, library)
    by_contrib = EXTRACT_AS_IT_CAME((request,), {}, library)

    assert found == by_contrib
    written: list[dict[str, Any]] = [{}, {}]
    for attributes, (method, seen, *_) in zip(written, (found, by_contrib), strict=True):
        contrib_httpx._apply_request_client_attributes_to_span(
            attributes, {}, seen, method.decode(), _StabilityMode.HTTP, library
        )
    assert written[0] == written[1]
    assert written[0]["url.full"]
    assert "secret" not in written[0]["url.full"]


def test_what_is_no_request_is_left_to_contrib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of httpx before 0.20."""
    monkeypatch.setitem(contrib_http._replaced, "_extract_parameters", EXTRACT_AS_IT_CAME)
    old = (b"GET", (b"http", b"a", None, b"/"), [], None, {})

    assert contrib_http._parameters(old, {}, httpx2) == old


def test_a_contrib_that_has_changed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is gone is not missed, nor put there."""
    monkeypatch.delattr(contrib_httpx, "_normalize_headers")
    contrib_http.spare_client_requests()
    assert not hasattr(contrib_httpx, "_normalize_headers")
    contrib_http._replace("opentelemetry.no_such_module", "x", None)
