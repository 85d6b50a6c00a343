"""Nodes of every kind: cached, deferred, with a runtime; and a run resumed by another process."""

import json
import operator
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.cache.memory import InMemoryCache
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy
from opentelemetry import trace


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]


def here() -> str:
    return str(getattr(trace.get_current_span(), "name", "none"))


async def test_a_node_answered_from_the_cache_did_not_run(recorded: Any, server: Any) -> None:
    """CachePolicy: a span for the execution, none for the answer from the cache."""

    async def slow(state: State) -> State:
        await server.aget("slow")
        return {"seen": [here()]}

    builder = StateGraph(State)
    builder.add_node("slow", slow, cache_policy=CachePolicy())
    builder.add_node("after", lambda state: {"seen": [here()]})
    builder.add_edge(START, "slow")
    builder.add_edge("slow", "after")
    graph = builder.compile(name="g", cache=InMemoryCache())

    first = await graph.ainvoke({"seen": []})
    assert recorded.tree() == [
        ["invoke_workflow g", ["invoke_node after", ["invoke_node slow", ["GET"]]]]
    ]
    assert recorded.caller_of(server.headers_by_path["slow"]) == "invoke_node slow"
    recorded.clear()
    assert await graph.ainvoke({"seen": []}) == first
    assert recorded.tree() == [["invoke_workflow g", ["invoke_node after"]]]
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")


async def test_a_deferred_node_runs_once_after_all_branches(recorded: Any, server: Any) -> None:
    """Deferred: one span, begun after those of the longer branch ended."""

    async def node(state: State) -> State:
        await server.aget(here())
        return {"seen": [here()]}

    builder = StateGraph(State)
    for name in ("short", "long", "longer"):
        builder.add_node(name, node)
    builder.add_node("join", node, defer=True)
    builder.add_edge(START, "short")
    builder.add_edge(START, "long")
    builder.add_edge("long", "longer")
    builder.add_edge("short", "join")
    builder.add_edge("longer", "join")
    await builder.compile(name="g").ainvoke({})

    names = [f"invoke_node {name}" for name in ("join", "long", "longer", "short")]
    assert recorded.tree() == [["invoke_workflow g", [[name, ["GET"]] for name in names]]]
    assert recorded.one("invoke_node join").start_time >= max(
        recorded.one(name).end_time for name in names[1:]
    )
    for header in server.headers_by_path.values():
        assert recorded.caller_of(header) in names


async def test_a_node_with_a_runtime(recorded: Any) -> None:
    """Context handed in by the caller arrives, and none of it is on a span."""

    @dataclass
    class Who:
        user: str

    async def node(state: State, runtime: Runtime[Who]) -> State:
        return {"seen": [here(), runtime.context.user]}

    builder = StateGraph(State, context_schema=Who)
    builder.add_node("a", node)
    builder.add_edge(START, "a")
    result = await builder.compile(name="g").ainvoke({}, context=Who("李雷"))
    assert result["seen"] == ["invoke_node a", "李雷"]
    assert recorded.tree() == [["invoke_workflow g", ["invoke_node a"]]]
    assert "李雷" not in str([dict(span.attributes or {}) for span in recorded.spans])


ASKS = """
import json, sys
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spanloom.telemetry.langgraph import LangGraphInstrumentor

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
LangGraphInstrumentor().instrument(tracer_provider=provider)
builder = StateGraph(dict)
builder.add_node("ask", lambda state: {"text": interrupt("which one?")})
builder.add_edge(START, "ask")
with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    graph = builder.compile(name="g", checkpointer=saver)
    given = Command(resume=sys.argv[2]) if len(sys.argv) > 2 else {}
    result = graph.invoke(given, {"configurable": {"thread_id": "t"}})
(run,) = [s for s in exporter.get_finished_spans() if s.name == "invoke_workflow g"]
print(json.dumps({
    "text": result.get("text"),
    "id": [run.context.trace_id, run.context.span_id],
    "links": [[link.context.trace_id, link.context.span_id] for link in run.links],
    "outcome": run.attributes["spanloom.outcome"],
    "waited": run.attributes.get("spanloom.resume.waited_ms"),
}))
"""


def test_resumed_by_another_process(tmp_path: Path) -> None:
    """The link names the run of the process that asked, which has ended long ago."""

    def run(*given: str) -> Any:
        command = [sys.executable, "-c", ASKS, str(tmp_path / "runs.sqlite"), *given]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
        return json.loads(done.stdout)

    asked = run()
    assert (asked["outcome"], asked["links"], asked["waited"]) == ("interrupted", [], None)
    resumed = run("这个")
    assert (resumed["outcome"], resumed["text"]) == ("ok", "这个")
    assert resumed["links"] == [asked["id"]]
    assert resumed["id"][0] != asked["id"][0]
    assert resumed["waited"] >= 0
