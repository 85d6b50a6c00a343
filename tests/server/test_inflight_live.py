"""The telemetry library in a process of its own, and the backend, by real OTLP."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spanloom.model import OpenState, Trace, TraceQuery
from spanloom.sources.http import HttpReader
from tests.server.running import WAIT_S, Client, running
from tests.telemetry.live import child_environment

HANG = """
import sys
from spanloom.telemetry import setup, step, tool
telemetry = setup("agent-api")
with step("POST /chat", question="你好"):
    with step("done before"):
        pass
    with tool("weather"):
        print("hanging", flush=True)
        sys.stdin.readline()
telemetry.shutdown()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path, reap_after_s=3.0) as client:
        yield client


@pytest.fixture
def reader(server: Client) -> Iterator[HttpReader]:
    with closing(HttpReader(server.addresses.query)) as reader:
        yield reader


@pytest.fixture
def start(server: Client) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HANG],
            env=child_environment(OTEL_EXPORTER_OTLP_ENDPOINT=server.addresses.otlp_http),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert "hanging\n" in iter(process.stdout.readline, "")  # log lines come before it
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[[], subprocess.Popen[str]]


def eventually(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (seen := look()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)
    return seen


def in_flight(reader: HttpReader) -> Trace | None:
    """The one trace with both its open spans, and the ended one, which comes by another way."""
    lines = reader.find_summaries(TraceQuery(tags={"spanloom.in_flight": "true"}))
    if not lines or lines[0].open_span_count < 2:
        return None
    trace = reader.get_trace(lines[0].trace_id)
    return trace if trace is not None and trace.spans else None


def test_a_hanging_tool_is_seen_everywhere_while_it_hangs(
    server: Client, reader: HttpReader, start: Start
) -> None:
    """In search, trace, Jaeger's JSON, page and terminal, with the name of what it waits for."""
    start()
    trace = eventually(lambda: in_flight(reader))

    assert [one.span.name for one in trace.open_spans] == ["POST /chat", "execute_tool weather"]
    assert {one.state for one in trace.open_spans} == {OpenState.RUNNING}
    assert trace.open_spans[1].span.parent_span_id == trace.open_spans[0].span.span_id
    assert trace.open_spans[0].span.attributes["question"] == "你好"
    assert [one.name for one in trace.spans] == ["done before"]
    assert not [one for one in reader.trace_logs(trace.trace_id) if "spanloom." in one.event_name]

    (shown,) = server.json("/api/traces", service="agent-api")["data"]
    assert len(shown["spans"]) == 3
    page = server.query.get(f"/trace/{trace.trace_id}").text
    view = json.loads(page.split('id="trace-data">')[1].split("</script>")[0])
    assert [row.get("state") for row in view["rows"]] == ["running", None, "running"]
    assert "in flight" in server.query.get("/").text
    terminal = subprocess.run(
        [sys.executable, "-m", "spanloom", "trace", trace.trace_id],
        env=child_environment(SPANLOOM_URL=server.addresses.query),
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert terminal.count("running") == 2
    # Heartbeats came all the while; what the service itself logs is a line for each step.
    lines = eventually(lambda: reader.trace_logs(trace.trace_id))
    assert [one.attributes["name"] for one in lines] == ["done before"]
    assert server.json("/health")["store"]["logs"] == len(lines)


def test_kill_9_leaves_a_trace_that_says_what_was_open(reader: HttpReader, start: Start) -> None:
    """ERROR, incomplete, ended at the last heartbeat; the finished part stands beside it."""
    process = start()
    trace_id = eventually(lambda: in_flight(reader)).trace_id
    killed_at = time.time_ns()
    process.send_signal(signal.SIGKILL)

    def ended() -> Trace | None:
        trace = reader.get_trace(trace_id)
        return trace if trace is not None and not trace.open_spans else None

    spans = {one.name: one for one in eventually(ended).spans}
    assert set(spans) == {"POST /chat", "done before", "execute_tool weather"}
    for name in ("POST /chat", "execute_tool weather"):
        assert spans[name].is_error
        assert spans[name].attributes["spanloom.incomplete"] is True
        assert spans[name].attributes["error.type"] == "process_died"
        assert spans[name].end_time_unix_nano <= killed_at + 1_000_000_000
    assert not spans["done before"].is_error


def test_what_ends_in_order_is_never_reaped(
    server: Client, reader: HttpReader, start: Start
) -> None:
    """The true end takes the place of the open span, and the goodbye changes nothing."""
    process = start()
    trace_id = eventually(lambda: in_flight(reader)).trace_id
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(WAIT_S) == 0

    trace = reader.get_trace(trace_id)
    assert trace is not None
    assert trace.open_spans == ()
    assert [one.is_error for one in trace.spans] == [False, False, False]
    assert "spanloom_inflight_spans 0.0" in server.query.get("/metrics").text
