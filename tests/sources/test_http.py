import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from spanloom.contract import Reader
from spanloom.errors import (
    ConfigurationError,
    QueryError,
    SourceError,
    SourceResponseError,
    SourceUnavailableError,
    StoreClosedError,
)
from spanloom.model import (
    LogEvent,
    MetricKind,
    MetricPoint,
    MetricQuery,
    Operation,
    Resource,
    Scope,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
    TraceQuery,
    Usage,
)
from spanloom.sources.http import HttpReader
from tests.live_server import LiveServer, live_server

START = 1_790_000_000_000_000_000
ID = "0af7651916cd43dd8448eb211c80319c"
OTHER_ID = "0af7651916cd43dd8448eb211c80319d"
SERVICE = "检索/service a?b#c%20"

FULL = Span(
    trace_id=ID,
    span_id="b7ad6b7169203331",
    parent_span_id="00f067aa0ba902b7",
    name="搜索 'it'",
    start_time_unix_nano=START + 1,
    end_time_unix_nano=START + 2_000_000_007,
    trace_state="a=1,b=2",
    flags=0x301,
    kind=SpanKind.SERVER,
    attributes={
        "text": "值",
        "int": 2**62,
        "float": 1.5,
        "true": True,
        "bytes": b"\x00\xff",
        "none": None,
        "list": ("a", 1, (None,)),
        "map": {"k": {"deep": "v"}},
        "key:with=signs": "a:b=c",
    },
    dropped_attributes_count=3,
    events=(SpanEvent(START + 5, "event", {"e": "1"}, 2),),
    dropped_events_count=4,
    links=(SpanLink(OTHER_ID, "a" * 16, "x=y", {"l": True}, 1, 0x100),),
    dropped_links_count=5,
    status=Status(StatusCode.ERROR, "坏"),
    resource=Resource({"service.name": SERVICE, "host": "h"}, 1, (), "https://schema/r"),
    scope=Scope("scope", "1.2", {"s": 1}, 2, "https://schema/s"),
)
PLAIN = Span(
    trace_id=OTHER_ID,
    span_id="1" * 16,
    name="chat m",
    start_time_unix_nano=START + 10**12,
    end_time_unix_nano=START + 10**12 + 1000,
    attributes={
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "spanloom.cost.usd": 0.5,
    },
    resource=Resource({"service.name": "llm"}),
)
LOGS = [
    LogEvent(
        START + number,
        severity_number=9,
        body=f"第 {number} 行",
        attributes={"n": number},
        trace_id=ID,
        span_id=FULL.span_id,
        resource=FULL.resource,
    )
    for number in range(5)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("data")) as server:
        server.send_spans(FULL, PLAIN)
        server.send_logs(*LOGS)
        yield server


@pytest.fixture
def reader(server: LiveServer) -> Iterator[HttpReader]:
    with closing(HttpReader(server.url + "/")) as reader:
        yield reader


def test_it_is_a_reader(reader: HttpReader) -> None:
    """Whatever takes a store takes a server elsewhere."""
    assert isinstance(reader, Reader)


def test_a_whole_span_survives_the_way(reader: HttpReader) -> None:
    """Every field: kinds of values, events, links, resource, scope, counts of what was dropped."""
    trace = reader.get_trace(ID)

    assert trace is not None
    assert trace.spans == (FULL,)
    assert reader.get_trace("f" * 32) is None


def test_logs_come_in_order_and_limited(reader: HttpReader) -> None:
    """Oldest first; an unknown trace has none."""
    assert reader.trace_logs(ID) == LOGS
    assert [log.body for log in reader.trace_logs(ID, limit=2)] == ["第 0 行", "第 1 行"]
    assert reader.trace_logs("f" * 32) == []


def test_summaries_carry_everything_a_list_shows(reader: HttpReader) -> None:
    """Newest first, with tokens and cost."""
    newest, oldest = reader.find_summaries(TraceQuery())

    assert newest == next(iter(reader.find_traces(TraceQuery()))).summary()
    assert (newest.trace_id, newest.usage) == (OTHER_ID, Usage(7, 5, 0.5))
    assert (oldest.root_service, oldest.root_name) == (SERVICE, "搜索 'it'")
    assert oldest.duration_ns == FULL.duration_ns
    assert oldest.usage.cost_usd is None


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (TraceQuery(service=SERVICE), [ID]),
        (TraceQuery(operation="搜索 'it'"), [ID]),
        (TraceQuery(tags={"text": "值", "error": "true"}), [ID]),
        (TraceQuery(tags={"key:with=signs": "a:b=c"}), [ID]),
        (TraceQuery(start_ns=START + 2), [OTHER_ID]),
        (TraceQuery(end_ns=START + 2), [ID]),
        (TraceQuery(start_ns=START + 5, end_ns=START + 5), []),
        (TraceQuery(min_duration_ns=FULL.duration_ns), [ID]),
        (TraceQuery(max_duration_ns=1000), [OTHER_ID]),
        (TraceQuery(service="nobody"), []),
        (TraceQuery(limit=1), [OTHER_ID]),
    ],
)
def test_every_condition_reaches_the_server(
    reader: HttpReader, query: TraceQuery, found: list[str]
) -> None:
    """Services, names and tags may contain anything a URL or a `key:value` would trip over."""
    assert [summary.trace_id for summary in reader.find_summaries(query)] == found
    assert [trace.trace_id for trace in reader.find_traces(query)] == found


def test_services_and_operations(reader: HttpReader) -> None:
    """A service's name is part of the path, slashes and all."""
    assert reader.services() == sorted(["llm", SERVICE])
    assert reader.operations(SERVICE) == [Operation("搜索 'it'", SpanKind.SERVER)]
    assert reader.operations("nobody") == []


def test_metrics_come_back(server: LiveServer, reader: HttpReader) -> None:
    """Points of one metric, oldest first, by service and time."""
    points = [
        MetricPoint(
            "队列/长度",
            MetricKind.GAUGE,
            START + number,
            value=number,
            unit="1",
            resource=Resource({"service.name": "llm"}),
        )
        for number in range(4)
    ]
    server.send_metrics(*points)

    assert reader.metric_names() == ["队列/长度"]
    assert reader.metric_names("nobody") == []
    assert reader.metric_points(MetricQuery("队列/长度")) == points
    bounded = MetricQuery("队列/长度", "llm", START + 1, START + 3)
    assert reader.metric_points(bounded) == points[1:3]
    assert reader.metric_points(MetricQuery("unknown")) == []


@pytest.mark.parametrize("wrong", ["", "abc", "F" * 32, ID + "0", ID[:-1] + "g", "../" * 10])
def test_what_is_no_trace_id_is_refused_before_it_is_sent(wrong: str) -> None:
    """A path can not be smuggled into the request; nothing needs to listen."""
    with closing(HttpReader("http://127.0.0.1:1")) as reader:
        for ask in (reader.get_trace, reader.trace_logs):
            with pytest.raises(QueryError, match="is not a trace id"):
                ask(wrong)


def test_the_server_s_own_refusal_is_passed_on(reader: HttpReader) -> None:
    """A 400 arrives as the QueryError it was, with the server's sentence."""
    with pytest.raises(QueryError, match="limit"):
        reader.find_summaries(TraceQuery(limit=10**6))


def test_a_closed_reader_says_so(server: LiveServer) -> None:
    """As the contract asks; closing twice is allowed."""
    reader = HttpReader(server.url)
    reader.close()
    reader.close()
    for ask in (reader.services, lambda: reader.get_trace(ID), reader.metric_names):
        with pytest.raises(StoreClosedError):
            ask()


def test_many_threads_may_share_a_reader(reader: HttpReader) -> None:
    """The contract's readers are safe to call from several threads at once."""
    with ThreadPoolExecutor(8) as pool:
        traces = list(pool.map(lambda _: reader.get_trace(ID), range(40)))

    assert all(trace is not None and trace.spans == (FULL,) for trace in traces)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:16686", "ftp://x", "http://", "http://[::1", "http://x:1y", "http://x:99999"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """The message says how one is written."""
    with pytest.raises(ConfigurationError, match="is not an address"):
        HttpReader(url)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that always gives one answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


ASK: list[Callable[[HttpReader], object]] = [
    lambda reader: reader.get_trace(ID),
    lambda reader: reader.trace_logs(ID),
    lambda reader: reader.find_summaries(TraceQuery()),
    lambda reader: reader.services(),
    lambda reader: reader.operations("a"),
    lambda reader: reader.metric_names(),
    lambda reader: reader.metric_points(MetricQuery("m")),
]


KEYS = "trace traces services operations metrics resourceLogs resourceMetrics"
WRONG_TYPES = dict.fromkeys(KEYS.split(), 3)
WRONG_INSIDE = {
    "trace": {"resourceSpans": [{"scopeSpans": "x"}]},
    "traces": [{}],
    "services": None,
    "operations": [{}],
    "metrics": None,
    "resourceLogs": [{"scopeLogs": 1}],
    "resourceMetrics": ["x"],
}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>hello</html>"),
        (200, b"[]"),
        (200, json.dumps(WRONG_TYPES).encode()),
        (200, json.dumps(WRONG_INSIDE).encode()),
        (404, b"<html>not here</html>"),
        (500, b'{"error": "Internal error"}'),
        (302, b""),
    ],
)
def test_a_stranger_s_answer_is_recognised(status: int, body: bytes) -> None:
    """Whatever answers there, it does not pass for an empty store, and nothing else is raised."""
    with answering(status, body) as url, closing(HttpReader(url)) as reader:
        for ask in ASK:
            with pytest.raises(SourceResponseError, match=r"check --url or SPANLOOM_URL"):
                ask(reader)


def test_a_server_that_cannot_answer_now_is_unavailable() -> None:
    """503 carries the server's own sentence."""
    body = json.dumps({"error": "the store is closed"}).encode()
    with answering(503, body) as url, closing(HttpReader(url)) as reader:
        for ask in ASK:
            with pytest.raises(SourceUnavailableError, match="the store is closed"):
                ask(reader)


def test_nobody_there_says_what_to_start() -> None:
    """Connection refused is the commonest mistake of all."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with (
            closing(HttpReader(url)) as reader,
            pytest.raises(SourceUnavailableError, match=r"is `spanloom serve` or"),
        ):
            reader.services()


def test_silence_ends_in_time() -> None:
    """A server that takes the connection and says nothing does not hang the command."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with (
            closing(HttpReader(url, timeout_s=0.2)) as reader,
            pytest.raises(SourceUnavailableError, match="does not answer in time"),
        ):
            reader.services()


def test_half_an_answer_is_unavailable() -> None:
    """A server that dies in the middle of its answer."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()

        def answer_half() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        thread = threading.Thread(target=answer_half)
        thread.start()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with closing(HttpReader(url)) as reader, pytest.raises(SourceError):
            reader.services()
        thread.join()


def test_a_proxy_is_not_asked_for_this_machine(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY of a company network does not break the local backend."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with closing(HttpReader(server.url)) as reader:
        assert reader.services()
