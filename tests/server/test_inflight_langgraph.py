"""A LangGraph agent whose tool hangs, in a process of its own, seen by every way to look."""

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from spanloom.model import OpenState, Trace, TraceQuery
from spanloom.sources.http import HttpReader
from spanloom.telemetry.inflight import MAX_ANNOUNCED
from tests.server.running import Client, running
from tests.telemetry.live import child_environment, wait_for

AGENT = """
import asyncio, os
import httpx2
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from spanloom.telemetry import setup

telemetry = setup("weather-agent")

@tool
async def forecast(city: str) -> str:
    "Ask the weather service, which answers when it likes."
    async with httpx2.AsyncClient(timeout=600) as client:
        return (await client.get(f"{os.environ['WEATHER']}/forecast/2026")).text

@tool
def sum_up(city: str) -> str:
    "Done at once."
    return city

def call(name):
    return {"name": name, "args": {"city": "北京"}, "id": f"call-{name}", "type": "tool_call"}

builder = StateGraph(MessagesState)
builder.add_node("plan", lambda state: {
    "messages": [AIMessage("", tool_calls=[call("forecast"), call("sum_up")])]
})
builder.add_node("tools", ToolNode([forecast, sum_up]))
builder.add_edge(START, "plan")
builder.add_edge("plan", "tools")
graph = builder.compile(name="weather")
config = {"configurable": {"thread_id": "t-1"}}
asyncio.run(graph.ainvoke({"messages": [("user", "天气?")]}, config))
telemetry.shutdown()
"""


class Weather:
    """Takes connections and a request on each, and answers only when it is told to."""

    def __init__(self) -> None:
        self._answer = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer_one, args=(connection,), daemon=True).start()

    def _answer_one(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(65_536)
            self._answer.wait(300)
            body = "晴".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body)

    def answer(self) -> None:
        self._answer.set()

    def close(self) -> None:
        self._answer.set()
        self._listening.close()


@pytest.fixture
def weather() -> Iterator[Weather]:
    weather = Weather()
    yield weather
    weather.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path) as client:
        yield client


@pytest.fixture
def agent(server: Client, weather: Weather) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT],
        env=child_environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=server.addresses.otlp_http,
            WEATHER=f"http://127.0.0.1:{weather.port}",
        ),
        stdout=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait()


def spanloom(server: Client, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spanloom", *arguments],
        env=child_environment(SPANLOOM_URL=server.addresses.query, COLUMNS="200"),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


ENDED = {"execute_tool sum_up", "invoke_node plan"}
HANGING = ["invoke_workflow weather", "invoke_node tools", "execute_tool forecast", "GET"]


def test_a_hanging_tool_is_named_with_what_it_waits_for(
    server: Client, weather: Weather, agent: subprocess.Popen[bytes]
) -> None:
    """In search, trace, Jaeger's JSON, page and `trace --watch`, until it answers after all."""
    with closing(HttpReader(server.addresses.query)) as reader:

        def hanging() -> Trace | None:
            assert agent.poll() is None
            query = TraceQuery(service="weather-agent", tags={"spanloom.in_flight": "true"})
            lines = reader.find_summaries(query)
            trace = reader.get_trace(lines[0].trace_id) if lines else None
            if trace is None or len(trace.open_spans) != len(HANGING):
                return None
            # What has ended comes by another way.
            return trace if {one.name for one in trace.spans} >= ENDED else None

        trace = wait_for(hanging, 60)
        spans = [one.span for one in trace.open_spans]
        assert [one.name for one in spans] == HANGING
        assert {one.state for one in trace.open_spans} == {OpenState.RUNNING}
        for above, below in itertools.pairwise(spans):
            assert below.parent_span_id == above.span_id
        tool, request = spans[2], spans[3]
        assert tool.attributes["gen_ai.tool.name"] == "forecast"
        assert tool.attributes["gen_ai.tool.call.id"] == "call-forecast"
        assert tool.attributes["gen_ai.conversation.id"] == "t-1"
        assert request.attributes["url.full"] == f"http://127.0.0.1:{weather.port}/forecast/2026"
        assert request.attributes["server.port"] == weather.port

        # by what it waits for, and by the tool
        for tags in ({"server.port": str(weather.port)}, {"gen_ai.tool.name": "forecast"}):
            found = reader.find_summaries(TraceQuery(tags=tags))
            assert [one.trace_id for one in found] == [trace.trace_id], tags
        (shown,) = server.json("/api/traces", service="weather-agent")["data"]
        assert {one["operationName"] for one in shown["spans"]} >= set(HANGING)
        page = server.query.get(f"/trace/{trace.trace_id}").text
        view = json.loads(page.split('id="trace-data">')[1].split("</script>")[0])
        open_rows = {row["name"] for row in view["rows"] if row.get("state") == "running"}
        assert open_rows == set(HANGING)

        with spanloom(server, "trace", trace.trace_id, "--watch") as watching:
            assert watching.stdout is not None
            begun: list[str] = []
            while len(begun) < len(HANGING):
                line = watching.stdout.readline()
                assert line, begun
                if line.split()[1] == "running":
                    begun.append(line)
            for name, line in zip(HANGING, begun, strict=True):
                assert name in line
            weather.answer()
            rest, _ = watching.communicate(timeout=60)
        assert watching.returncode == 0
        for name in HANGING:
            assert any(name in line and line.split()[1] == "ended" for line in rest.splitlines())

        assert agent.wait(60) == 0
        after = reader.get_trace(trace.trace_id)
        assert after is not None
        assert after.open_spans == ()
        assert not [one for one in after.spans if one.is_error]


MANY = """
import time
from opentelemetry import trace
from spanloom.telemetry import setup
setup("many")
tracer = trace.get_tracer("many")
with tracer.start_as_current_span("root"):
    kept = [tracer.start_span(f"span {number}") for number in range(10_000)]
    print("open", flush=True)
    time.sleep(600)
"""


def test_ten_thousand_open_spans_cost_the_backend_a_bounded_number(server: Client) -> None:
    """The backend shows as many as are announced, and hears of the others as a number."""
    process = subprocess.Popen(
        [sys.executable, "-c", MANY],
        env=child_environment(OTEL_EXPORTER_OTLP_ENDPOINT=server.addresses.otlp_http),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "open\n" in iter(process.stdout.readline, "")

        def shown() -> float:
            text = server.query.get("/metrics").text
            (line,) = [
                one for one in text.splitlines() if one.startswith("spanloom_inflight_spans")
            ]
            return float(line.split()[-1])

        wait_for(lambda: shown() >= MAX_ANNOUNCED, 60)
        before = server.json("/health")["store"]["logs"]
        time.sleep(3)  # heartbeats go on meanwhile
        assert shown() == MAX_ANNOUNCED
        assert process.poll() is None
        assert server.json("/health")["store"]["logs"] == before, "heartbeats are not log records"
    finally:
        process.kill()
        process.communicate()
