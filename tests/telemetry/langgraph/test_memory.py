"""Bounded memory: a run that is over leaves nothing behind, however it ended."""

import asyncio
import gc
import weakref
from typing import Any, TypedDict

from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from opentelemetry.sdk.trace import Span, SpanProcessor


class State(TypedDict, total=False):
    text: str


class Alive(SpanProcessor):
    """Weak references to every span ever started."""

    def __init__(self) -> None:
        self.spans: weakref.WeakSet[Span] = weakref.WeakSet()
        self.started = 0

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.spans.add(span)
        self.started += 1


async def test_no_span_is_alive_after_finished_and_cancelled_runs(recorded: Any) -> None:
    """200 finished and 100 cancelled runs: 0 spans alive, without waiting for anything."""
    alive = Alive()
    recorded.provider.add_span_processor(alive)
    gate = asyncio.Event()

    @tool
    async def wait(word: str) -> str:
        """Wait."""
        await gate.wait()
        return word

    async def ask(state: State) -> State:
        return {"text": await wait.ainvoke({"word": "x"})}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(name="g")

    cut = [asyncio.create_task(graph.ainvoke({})) for _ in range(100)]
    async with asyncio.timeout(60):
        while alive.started < 300:  # noqa: ASYNC110  # run, node and tool of each wait
            await asyncio.sleep(0.01)
    for task in cut:
        task.cancel()
    await asyncio.gather(*cut, return_exceptions=True)
    gate.set()
    for _ in range(200):
        await graph.ainvoke({})

    assert alive.started == 900
    outcomes = [s.attributes["spanloom.outcome"] for s in recorded.all("invoke_workflow g")]
    assert sorted(outcomes) == ["cancelled"] * 100 + ["ok"] * 200
    cut.clear()
    del task
    recorded.clear()
    gc.collect()
    assert len(alive.spans) == 0
