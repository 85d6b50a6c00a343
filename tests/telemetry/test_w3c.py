"""The wire: what a service sends on for what it received, written by hand on a socket."""

import contextlib
import http.server
import re
import socket
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import pytest
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spanloom import semconv
from spanloom.telemetry.baggage import BaggagePropagator
from spanloom.telemetry.propagation import strictly_w3c
from spanloom.telemetry.tracecontext import TraceContextPropagator
from tests.telemetry.live import Receiver, Script, Service, wait_for

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"traceparent: 00-{TRACE}-{SPAN}-00"
PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


@dataclass(frozen=True)
class Sent:
    """The headers of one outgoing call."""

    headers: list[tuple[str, str]]

    def lines(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def parent(self) -> tuple[str, str, int]:
        (line,) = self.lines("traceparent")
        match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", line)
        assert match, line
        assert int(match[1], 16)
        assert int(match[2], 16)
        return match[1], match[2], int(match[3], 16)

    @property
    def state(self) -> str:
        return ",".join(self.lines("tracestate"))


class Callee:
    """The service that is called: it keeps the headers of each call by path."""

    def __init__(self) -> None:
        calls = self.calls = defaultdict[str, list[Sent]](list)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                calls[self.path].append(Sent(self.headers.items()))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def callee() -> Iterator[Callee]:
    callee = Callee()
    yield callee
    callee.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"), SILENT)
    yield service
    service.stop()


def request(service: Service, path: str, *lines: str | bytes) -> bytes:
    """Send header lines as they are; return the answer."""
    address = urlsplit(service.url)
    assert address.hostname
    assert address.port
    raw = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    head = [f"GET {path} HTTP/1.1".encode(), b"Host: probe", b"Connection: close", *raw]
    answer = b""
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):  # it was told enough to refuse
            while received := connection.recv(65_536):
                answer += received
    return answer


def make_calls(service: Service, callee: Callee, *lines: str | bytes) -> list[Sent]:
    """Let the service make its two calls for a request with these header lines."""
    path = f"/{uuid.uuid4()}"
    url = quote(f"http://127.0.0.1:{callee.port}{path}")
    assert request(service, f"/fetch?url={url}", *lines).startswith(b"HTTP/1.1 200 ")
    calls = callee.calls.pop(path)
    assert len(calls) == 2
    assert len({sent.parent[0] for sent in calls}) == 1
    assert len({sent.parent[1] for sent in calls} | {SPAN}) == 3
    assert calls[0].state == calls[1].state
    assert all(len(sent.lines("tracestate")) <= 1 for sent in calls)
    return calls


@pytest.fixture
def call(service: Service, callee: Callee) -> Callable[..., list[Sent]]:
    """Make the calls, of the one service and callee of this file."""

    def call(*lines: str | bytes) -> list[Sent]:
        return make_calls(service, callee, *lines)

    return call


Call = Callable[..., list[Sent]]


@pytest.mark.parametrize(
    "lines",
    [
        [PARENT],
        [PARENT.replace("traceparent", "TraceParent")],
        [PARENT.replace("traceparent", "TrAcEpArEnT")],
        [PARENT.replace("traceparent", "TRACEPARENT")],
        [f"traceparent:  00-{TRACE}-{SPAN}-01"],
        [f"traceparent:\t00-{TRACE}-{SPAN}-01"],
        [f"{PARENT} "],
        [f"{PARENT}\t"],
        [f"traceparent:\t 00-{TRACE}-{SPAN}-01 \t"],
        [f"traceparent: cc-{TRACE}-{SPAN}-01"],
        [f"traceparent: cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"],
        [PARENT, "tracestate: "],
        [PARENT, "tracestate: foo=1", "tracestate: @"],
        [PARENT, b"tracestate: \xff\\x"],
        [PARENT, "tracestate: " + "a=b," * 10_000],
        [PARENT, "baggage: " + "a=b," * 10_000],
        [PARENT, b"user-agent: \xff\\x"],
    ],
)
def test_a_valid_parent_is_continued(call: Call, lines: list[str | bytes]) -> None:
    """Both outgoing calls belong to the caller's trace, each below a span of its own."""
    for sent in call(*lines):
        assert sent.parent[0] == TRACE
        assert sent.parent[2] & 1


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["tracestate: foo=1"],
        [PARENT, f"traceparent: 00-{TRACE[:-1]}1-{SPAN}-01"],
        [PARENT, PARENT],
        [PARENT, "accept: */*", PARENT.replace("traceparent", "TraceParent")],
        [PARENT, "traceparent: "],
        [f"{PARENT},00-{TRACE}-{SPAN}-01"],
        [f"trace-parent: 00-{TRACE}-{SPAN}-01"],
        [f"trace.parent: 00-{TRACE}-{SPAN}-01"],
        [f"{PARENT}."],
        [f"{PARENT}-what-the-future-will-be-like"],
        [f"traceparent: cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like"],
        [f"traceparent: ff-{TRACE}-{SPAN}-01"],
        [f"traceparent: .0-{TRACE}-{SPAN}-01"],
        [f"traceparent: 0.-{TRACE}-{SPAN}-01"],
        [f"traceparent: 000-{TRACE}-{SPAN}-01"],
        [f"traceparent: 0000-{TRACE}-{SPAN}-01"],
        [f"traceparent: 0-{TRACE}-{SPAN}-01"],
        [f"traceparent: 00-{'0' * 32}-{SPAN}-01"],
        [f"traceparent: 00-.{TRACE[1:]}-{SPAN}-01"],
        [f"traceparent: 00-{TRACE[:-1]}.-{SPAN}-01"],
        [f"traceparent: 00-{TRACE}3-{SPAN}-01"],
        [f"traceparent: 00-{TRACE[:-1]}-{SPAN}-01"],
        [f"traceparent: 00-{TRACE}-{'0' * 16}-01"],
        [f"traceparent: 00-{TRACE}-.{SPAN[1:]}-01"],
        [f"traceparent: 00-{TRACE}-{SPAN[:-1]}.-01"],
        [f"traceparent: 00-{TRACE}-{SPAN}7-01"],
        [f"traceparent: 00-{TRACE}-{SPAN[:-1]}-01"],
        [f"traceparent: 00-{TRACE}-{SPAN}-.0"],
        [f"traceparent: 00-{TRACE}-{SPAN}-0."],
        [f"traceparent: 00-{TRACE}-{SPAN}-001"],
        [f"traceparent: 00-{TRACE}-{SPAN}-1"],
        [f"traceparent: 00-{TRACE[:-1]}A-{SPAN}-01"],
        [f"traceparent: 00-{TRACE[1:]}\u0663-{SPAN}-01".encode()],
        [b"traceparent: \xff\\x"],
        [b"traceparent: " + bytes(range(0x80, 0x100))],
        ["traceparent: " + "0" * 40_000],
    ],
)
def test_anything_else_starts_a_new_trace(call: Call, lines: list[str | bytes]) -> None:
    """No id of the caller's is used, and its state is not carried on."""
    for sent in call(*lines, "tracestate: bar=2"):
        assert sent.parent[0][:31] not in {TRACE[:31], f".{TRACE[1:31]}"}
        assert sent.parent[0] != "0" * 32
        assert sent.state == ""
        assert sent.parent[2] & 2, "the ids of our own traces are random, and the flag says so"


@pytest.mark.parametrize("flags", range(4))
def test_the_callers_flags_are_carried_on(call: Call, flags: int) -> None:
    """Sampled and random, each by itself."""
    for sent in call(f"traceparent: 00-{TRACE}-{SPAN}-{0xF0 + flags:02x}"):
        assert sent.parent[0] == TRACE
        assert sent.parent[2] == flags


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1,bar=2", "rojo=1,congo=2", "baz=3"], "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        (["foo=1", ""], "foo=1"),
        (["", "foo=1"], "foo=1"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
        (["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], "foo=1,bar=2,baz=3"),
        (["\t foo=1 \t"], "foo=1"),
        (["foo=1,foo=1"], "foo=1"),
        (["foo=1,foo=2"], "foo=1"),
        (["foo=1", "foo=2"], "foo=1"),
        ([f"abcdefghijklmnopqrstuvwxyz0123456789_-*/@a={PRINTABLE}"],) * 2,
        (["foo@=1,bar=2"],) * 2,
        (["foo@@bar=1,bar=2"],) * 2,
        (["foo@bar@baz=1,bar=2"],) * 2,
        (["foo=1", "z" * 256 + "=1"], "foo=1," + "z" * 256 + "=1"),
        (["foo=1", "t" * 241 + "@" + "v" * 14 + "=1"], None),
        (["foo=1", "t" * 242 + "@v=1"], None),
        (["foo=1", "t@" + "v" * 15 + "=1"], None),
        ([f"bar{number:02}={number}" for number in range(32)], None),
        ([f"bar{number:02}={number}" for number in range(33)], ""),
        (["@foo=1,bar=2"], ""),
        (["foo=1", "z" * 257 + "=1"], ""),
        (["foo =1"], ""),
        (["FOO=1"], ""),
        (["foo.bar=1"], ""),
        (["foo=bar=baz"], ""),
        (["foo=,bar=3"], ""),
    ],
)
def test_the_state_is_carried_on_whole_or_not_at_all(
    call: Call, lines: list[str], state: str | list[str] | None
) -> None:
    """By the grammar of Level 2, in the caller's order; expected None: as it was sent."""
    expected = state if isinstance(state, str) else ",".join(lines)
    for sent in call(UNSAMPLED, *(f"tracestate: {line}" for line in lines)):
        assert sent.parent[0] == TRACE
        assert sent.state == expected


@pytest.mark.parametrize("name", ["TraceState", "TrAcEsTaTe", "TRACESTATE"])
def test_the_name_of_the_state_may_be_written_in_any_case(call: Call, name: str) -> None:
    """Header names are not case-sensitive; other names are other headers."""
    assert call(PARENT, f"{name}: foo=1")[0].state == "foo=1"
    assert call(PARENT, "trace-state: foo=1", "trace.state: foo=1")[0].state == ""


def test_all_baggage_lines_are_carried_on_with_their_properties(call: Call) -> None:
    """In order, as one header."""
    for sent in call("baggage: userId=Am%C3%A9lie;ttl=3", "Baggage: b = 2 , bad entry, c=1+1"):
        assert sent.lines("baggage") == ["userId=Am%C3%A9lie;ttl=3,b=2,c=1%2B1"]


def test_baggage_that_is_too_long_loses_whole_members(call: Call) -> None:
    """The last of these does not fit; the ones before it stay."""
    members = [f"k{number}=" + "v" * 2_000 for number in range(5)]

    assert call(*(f"baggage: {member}" for member in members))[0].lines("baggage") == [
        ",".join(members[:4])
    ]


HOSTILE: list[list[str | bytes]] = [
    [PARENT, "tracestate: a=1\r\n x-injected: 1"],  # a folded line, obsolete but legal
    [PARENT, "tracestate: a=1\rx-injected: 1"],
    [PARENT, b"tracestate: a=1\x00"],
    [PARENT, b"tracestate: \x1b[31mred"],
    [PARENT, b"baggage: a=\xff\xfe\\x,%0d%0ax-injected%3a=1,b=%0d%0ax-injected: 1"],
    [PARENT, "baggage: a=1%0d%0ax-injected:%201"],
    [PARENT, *["tracestate: a=b"] * 90],
    [PARENT, *["baggage: a=b"] * 90],
    [PARENT, "tracestate: " + ",".join(f"k{n}=v" for n in range(5_000))],
    [b"user-agent: \xff\\N{x"],
    [b'user-agent: \xff\\n{"level": "info"}'],
    [b"x-request-id: \xff\\x"],
    ['traceparent: {jndi:x}"\\n'],
]


@pytest.mark.parametrize("lines", HOSTILE)
def test_hostile_headers_neither_break_the_service_nor_reach_anybody(
    service: Service, callee: Callee, lines: list[str | bytes]
) -> None:
    """Answered as usual, or refused by the server; no header is injected, no log line forged."""
    path = f"/{uuid.uuid4()}"
    url = quote(f"http://127.0.0.1:{callee.port}{path}")
    answer = request(service, f"/fetch?url={url}", *lines)

    assert answer[:12] in {b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 431"}
    for sent in callee.calls.pop(path, []):
        assert not sent.lines("x-injected")
        assert sent.parent
        for _, value in sent.headers:
            assert value.isascii()
            assert value.isprintable()
    text = service.stdout_path.read_text(encoding="utf-8")
    assert all(isinstance(line, dict) for line in service.lines())
    for trace_of_it in ("injected", "\x1b", "jndi", "k4999"):
        assert trace_of_it not in text


def test_a_strangers_context_is_a_link_and_two_are_none(
    receiver: Receiver, start_service: Callable[..., Service], callee: Callee
) -> None:
    """The boundary reads headers by the same rules as everybody inside."""
    service = start_service(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, SPANLOOM_TRUST="none")

    def links(*lines: str) -> list[str]:
        path = f"/{uuid.uuid4()}"
        url = quote(f"http://127.0.0.1:{callee.port}{path}")
        assert request(service, f"/fetch?url={url}", *lines).startswith(b"HTTP/1.1 200 ")
        calls = callee.calls.pop(path)
        assert all(sent.parent[0] != TRACE for sent in calls)
        assert not any(sent.state or sent.lines("baggage") for sent in calls)
        trace_id = calls[0].parent[0]
        (root,) = wait_for(
            lambda: [span for span in receiver.spans_of(trace_id) if not span.parent_span_id]
        )
        for link in root.links:
            (kind,) = link.attributes
            assert kind.value.string_value == semconv.LINK_UNTRUSTED_CALLER
        return [link.trace_id.hex() for link in root.links]

    assert links(PARENT, "tracestate: foo@=1", "baggage: a=b") == [TRACE]
    assert links(PARENT, PARENT) == []
    assert links(PARENT, f"traceparent: 00-{TRACE[:-1]}1-{SPAN}-01") == []
    assert links("tracestate: foo=1") == []


def test_hosts_that_are_not_listed_get_no_state_either(
    start_service: Callable[..., Service], callee: Callee
) -> None:
    """With nobody listed, none of the three headers leaves, whatever came in."""
    service = start_service(**SILENT, SPANLOOM_PROPAGATE_TO="none")
    path = f"/{uuid.uuid4()}"
    url = quote(f"http://127.0.0.1:{callee.port}{path}")
    request(service, f"/fetch?url={url}", PARENT, "tracestate: foo@=1", "baggage: a=b;c")
    calls = callee.calls.pop(path)

    assert len(calls) == 2
    for sent in calls:
        assert not {name.lower() for name, _ in sent.headers} & {
            "traceparent",
            "tracestate",
            "baggage",
        }


class OwnTraceContext(TraceContextTextMapPropagator):
    """Somebody's variant."""


def test_only_the_stock_propagators_are_replaced() -> None:
    """In their place and order; a subclass was chosen on purpose."""
    own = OwnTraceContext()
    replaced = strictly_w3c(
        CompositePropagator([own, W3CBaggagePropagator(), TraceContextTextMapPropagator()])
    )

    assert isinstance(replaced, CompositePropagator)
    assert [type(member) for member in replaced._propagators] == [
        OwnTraceContext,
        BaggagePropagator,
        TraceContextPropagator,
    ]
    assert strictly_w3c(own) is own
    assert type(strictly_w3c(TraceContextTextMapPropagator())) is TraceContextPropagator
    assert propagate.get_global_textmap() is not replaced


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (" baggage, tracecontext", "BaggagePropagator TraceContextPropagator"),
        ("none", ""),
    ],
)
def test_otel_propagators_chooses(script: Script, named: str, expected: str) -> None:
    """The variable is honoured; what it names W3C's is ours."""
    result = script.run(
        """
from opentelemetry import propagate
from spanloom.telemetry import setup
setup("x")
inner = propagate.get_global_textmap().inner
print("chosen:", *(type(member).__name__ for member in inner._propagators))
""",
        **SILENT,
        OTEL_PROPAGATORS=named,
    )

    assert f"chosen: {expected}".strip() in [line.strip() for line in result.stdout.splitlines()]
