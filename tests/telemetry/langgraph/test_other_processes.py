"""One trace across processes: a tool of an MCP server, and a second service that runs a graph."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import httpx2
import pytest
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph

mcp = pytest.importorskip("mcp", reason="the MCP SDK is not installed")
from mcp.client.stdio import StdioServerParameters  # noqa: E402 - after the check
from mcp.shared import _otel as mcp_tracing  # noqa: E402 - after the check

MCP_SERVER = """
import json
from mcp.server.mcpserver import MCPServer
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
server = MCPServer("words")

@server.tool()
def double(word: str) -> str:
    "Say it twice, and which span is current here."
    span = trace.get_current_span()
    said = {
        "word": word + word,
        "name": span.name,
        "trace": span.get_span_context().trace_id,
        "parent": span.parent.span_id if span.parent else None,
    }
    return json.dumps(said)

server.run("stdio")
"""

SERVICE = """
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from opentelemetry import context
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spanloom.telemetry.langgraph import LangGraphInstrumentor

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
LangGraphInstrumentor().instrument(tracer_provider=provider)

@tool
def look(word: str) -> str:
    "Look."
    return word

builder = StateGraph(dict)
builder.add_node("far", lambda state: {"text": look.invoke({"word": "你好"})})
builder.add_edge(START, "far")
graph = builder.compile(name="second")

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        token = context.attach(extract(dict(self.headers.items())))
        try:
            graph.invoke({})
        finally:
            context.detach(token)
        spans = [
            [s.name, s.context.trace_id, s.context.span_id, s.parent.span_id if s.parent else None]
            for s in exporter.get_finished_spans()
        ]
        body = json.dumps(spans).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


class State(TypedDict, total=False):
    text: str


def graph_of(body: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("near", body)
    builder.add_edge(START, "near")
    return builder.compile(name="first")


async def test_a_tool_of_an_mcp_server(
    recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context goes in `_meta`: our tool span, the SDK's client span, the server's span."""
    # its tracer is made at import; here it makes spans on this test's provider
    tracer = recorded.provider.get_tracer("mcp-python-sdk")
    monkeypatch.setattr(mcp_tracing, "_tracer", tracer)
    program = tmp_path / "words.py"
    program.write_text(MCP_SERVER, encoding="utf-8")
    command = StdioServerParameters(command=sys.executable, args=[str(program)])

    async with mcp.Client(command) as client:
        recorded.clear()  # what the SDK said to the server before

        @tool
        async def double(word: str) -> str:
            """Ask the server."""
            result = await client.call_tool("double", {"word": word})
            return str(result.content[0].text)

        async def node(state: State) -> State:
            return {"text": await double.ainvoke({"word": "你好"})}

        said = json.loads((await graph_of(node).ainvoke({}))["text"])

    (ours,) = recorded.all("execute_tool double")
    (sent,) = [span for span in recorded.spans if span.context.span_id == said["parent"]]
    assert said["word"] == "你好你好"
    assert said["name"] == "tools/call double"
    assert said["trace"] == ours.context.trace_id == sent.context.trace_id
    assert recorded.parent(sent) == "execute_tool double"
    assert sent.instrumentation_scope.name == "mcp-python-sdk"
    own = [s.name for s in recorded.spans if s.instrumentation_scope.name.startswith("spanloom")]
    assert sorted(own) == ["execute_tool double", "invoke_node near", "invoke_workflow first"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """A second process, traced by us too."""
    program = tmp_path / "second.py"
    program.write_text(SERVICE, encoding="utf-8")
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, str(program)], cwd=root, env={"PYTHONPATH": root}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        process.kill()


async def test_a_graph_in_a_second_service(recorded: Any, service: str) -> None:
    """Its workflow span is the child of our HTTP span, which is the child of our node."""

    async def node(state: State) -> State:
        async with httpx2.AsyncClient(timeout=60) as client:
            return {"text": (await client.get(service)).text}

    far = json.loads((await graph_of(node).ainvoke({}))["text"])

    http = recorded.one("GET")
    assert recorded.parent(http) == "invoke_node near"
    ids = {name: span_id for name, _, span_id, _ in far}
    assert {trace_id for _, trace_id, _, _ in far} == {http.context.trace_id}
    assert {name: parent for name, _, _, parent in far} == {
        "invoke_workflow second": http.context.span_id,
        "invoke_node far": ids["invoke_workflow second"],
        "execute_tool look": ids["invoke_node far"],
    }
