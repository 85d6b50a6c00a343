"""A graph that runs elsewhere: RemoteGraph is one node here, and the trace goes on over there.

The first tests speak to a small server that answers as LangGraph's API does. The last one speaks to
LangGraph's API itself (`langgraph dev`), where that is installed: `remote` of `make test-versions`.
"""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command

from tests.free_ports import free_port
from tests.telemetry.live import Receiver, attributes, child_environment, wait_for

RemoteException: Any = pytest.importorskip("langgraph.pregel.remote").RemoteException
THREAD = "1b6a4b3e-0a43-4a04-8d2b-3f0c7a1f2c55"
both = pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])


class State(TypedDict, total=False):
    text: str


class Remote(ThreadingHTTPServer):
    """Answers `POST …/runs/stream` with the events it was told, and keeps the headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: list[tuple[str, Any]] = [("values", {"text": "远"})]
        self.seen: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Remote
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("traceparent", "")))
        body = "".join(
            f"event: {event}\ndata: {json.dumps(data)}\n\n" for event, data in self.server.events
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def remote() -> Iterator[Remote]:
    remote = Remote()
    thread = threading.Thread(target=remote.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield remote
    remote.shutdown()
    remote.server_close()


def graph(url: str, **options: Any) -> Any:
    """`near`, a node of this process, then `far`, which is a graph of another."""
    builder = StateGraph(State)
    builder.add_node("near", lambda state: {"text": "近"})
    builder.add_node("far", RemoteGraph("far", url=url))
    builder.add_edge(START, "near")
    builder.add_edge("near", "far")
    return builder.compile(name="g", **options)


async def run(graph: Any, given: Any, asynchronous: bool) -> Any:
    config = {"configurable": {"thread_id": THREAD}}
    return await graph.ainvoke(given, config) if asynchronous else graph.invoke(given, config)


TREE = [["invoke_workflow g", [["invoke_node far", ["POST"]], "invoke_node near"]]]


@both
async def test_a_remote_graph_is_one_node(
    recorded: Any, remote: Remote, asynchronous: bool
) -> None:
    """One span, the request below it, and the header names that request."""
    result = await run(graph(remote.url), {}, asynchronous)
    assert result == {"text": "远"}
    assert recorded.tree() == TREE
    ((path, header),) = remote.seen
    assert path.endswith("/runs/stream")
    assert recorded.name_of(header) == "POST"
    assert recorded.outcome("invoke_node far") == ("UNSET", "ok")
    assert recorded.attributes("invoke_node far")["langgraph.step"] == 2


@both
async def test_a_remote_graph_that_fails(recorded: Any, remote: Remote, asynchronous: bool) -> None:
    """What failed there is an error of the node here, with the only event."""
    remote.events = [("error", {"error": "ValueError", "message": "no"})]
    with pytest.raises(RemoteException):
        await run(graph(remote.url), {}, asynchronous)
    assert recorded.tree() == TREE
    assert recorded.outcome("invoke_node far") == ("ERROR", "error")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "error")
    (event,) = recorded.exceptions()
    assert event == ("invoke_node far", "langgraph.pregel.remote.RemoteException")


@both
async def test_a_remote_graph_that_asks_a_human(
    recorded: Any, remote: Remote, asynchronous: bool
) -> None:
    """Interrupted there is interrupted here; resumed, the run is linked to this one."""
    asked = {"value": "which?", "id": "i-1"}
    remote.events = [("updates", {"__interrupt__": [asked]})]
    paused = graph(remote.url, checkpointer=InMemorySaver())
    await run(paused, {}, asynchronous)
    assert recorded.tree() == TREE
    assert recorded.outcome("invoke_node far") == ("UNSET", "interrupted")
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "interrupted")
    assert recorded.exceptions() == []
    before = recorded.one("invoke_workflow g").context.span_id
    recorded.clear()

    remote.events = [("values", {"text": "这个"})]
    assert await run(paused, Command(resume="这个"), asynchronous) == {"text": "这个"}
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node far", ["POST"]]]]]
    (link,) = recorded.one("invoke_workflow g").links
    assert link.context.span_id == before


@both
async def test_a_remote_graph_that_hands_over(
    recorded: Any, remote: Remote, asynchronous: bool
) -> None:
    """A command to the parent graph, sent by the other process, is a handoff out of this one."""
    command = {"graph": Command.PARENT, "goto": "other", "update": {"text": "x"}, "resume": None}
    remote.events = [("command", command)]
    builder = StateGraph(State)
    builder.add_node("agent", graph(remote.url), destinations=("other",))
    builder.add_node("other", lambda state: {"text": "other"})
    builder.add_edge(START, "agent")
    outer = builder.compile(name="outer")
    assert await run(outer, {}, asynchronous) == {"text": "other"}
    assert recorded.tree() == [
        ["invoke_workflow outer", [["invoke_node agent", TREE], "invoke_node other"]]
    ]
    for name in ("invoke_node far", "invoke_workflow g", "invoke_node agent"):
        assert recorded.outcome(name) == ("UNSET", "handoff")
    assert recorded.outcome("invoke_workflow outer") == ("UNSET", "ok")
    assert recorded.exceptions() == []


FAR = """
import os
from typing import TypedDict
from fastapi import FastAPI
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from spanloom.telemetry import setup

app = FastAPI()
setup("far").instrument_fastapi(app)

class State(TypedDict, total=False):
    text: str

@tool
def look(word: str) -> str:
    "Look."
    return word + word

builder = StateGraph(State)
builder.add_node("inside", lambda state: {"text": look.invoke({"word": state["text"]})})
builder.add_edge(START, "inside")
graph = builder.compile(name="far")
"""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[tuple[str, Receiver]]:
    """LangGraph's API server with a graph that `setup` traces, and where its spans arrive."""
    if find_spec("langgraph_cli") is None or find_spec("langgraph_api") is None:
        pytest.skip("LangGraph's API server is not installed here")
    (tmp_path / "far.py").write_text(FAR, encoding="utf-8")
    (tmp_path / "langgraph.json").write_text(
        json.dumps(
            {
                "dependencies": ["."],
                "graphs": {"far": "./far.py:graph"},
                "http": {"app": "./far.py:app"},
            }
        ),
        encoding="utf-8",
    )
    receiver = Receiver()
    number = free_port()
    environment = child_environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        LANGGRAPH_CLI_NO_ANALYTICS="1",
        LANGSMITH_TRACING="false",
    )
    environment = {k: v for k, v in environment.items() if not k.startswith("LANGSMITH_API")}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [
                *(sys.executable, "-c", "from langgraph_cli.cli import cli; cli()", "dev"),
                "--no-browser",
                "--no-reload",
                *("--allow-blocking", "--host", "127.0.0.1", "--port", str(number)),
            ],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        url = f"http://127.0.0.1:{number}"

        def is_up() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            try:
                with urllib.request.urlopen(f"{url}/ok", timeout=10) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        try:
            wait_for(is_up, 120)
            yield url, receiver
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, 9)
            receiver.close()


@both
async def test_langgraphs_own_server(
    recorded: Any, platform: tuple[str, Receiver], asynchronous: bool
) -> None:
    """One trace: node ▸ request ▸ server ▸ the server's own run span ▸ workflow ▸ node ▸ tool."""
    url, receiver = platform
    assert (await run(graph(url), {}, asynchronous))["text"] == "近近"
    node = recorded.one("invoke_node far")
    # the run is asked for, and what came of it is asked for again where the stream was resumed
    assert {recorded.parent(s) for s in recorded.spans if s.name in {"POST", "GET"}} == {node.name}
    trace_id = f"{node.context.trace_id:032x}"

    def there() -> dict[str, Any]:
        return {span.name: span for span in receiver.spans_of(trace_id)}

    request = "POST /threads/{thread_id}/runs/stream"
    wait_for(lambda: {request, "invoke_workflow far"} <= set(there()))
    far = there()
    assert far[request].parent_span_id.hex() == f"{recorded.one('POST').context.span_id:016x}"
    parents = {
        name: span.parent_span_id
        for name, span in far.items()
        if not name.startswith(("POST", "GET"))
    }
    assert parents == {
        "worker.stream_run": far[request].span_id,
        "invoke_workflow far": far["worker.stream_run"].span_id,
        "invoke_node inside": far["invoke_workflow far"].span_id,
        "execute_tool look": far["invoke_node inside"].span_id,
    }
    assert attributes(far["invoke_workflow far"])["spanloom.outcome"] == "ok"
