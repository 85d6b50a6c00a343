"""Spans that stay alive after runs that finished and runs that were cancelled."""

import asyncio
import gc
import weakref
from typing import Any, TypedDict

from langgraph.graph import START, StateGraph
from opentelemetry.sdk.trace import Span, SpanProcessor

from overhead.in_process import instrumented
from overhead.recording import null_provider
from overhead.workload import InstantModel, lookup

_AT_ONCE = 100


class _State(TypedDict, total=False):
    text: str


class _Alive(SpanProcessor):
    """Weak references to every span that began and has not been collected."""

    def __init__(self) -> None:
        self.spans: weakref.WeakSet[Span] = weakref.WeakSet()
        self.started = 0

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        del parent_context
        self.spans.add(span)
        self.started += 1


async def _runs(finished: int, cancelled: int) -> None:
    model = InstantModel()
    gate = asyncio.Event()

    async def ask(state: _State) -> _State:
        if "text" in state:  # this run is to be cancelled inside its node
            await gate.wait()
        await lookup.ainvoke({"word": "cache"})
        message = await model.ainvoke("What does a KV cache save?")
        return {"text": str(message.content)}

    builder = StateGraph(_State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph: Any = builder.compile(name="rag")
    for _ in range(finished):
        await graph.ainvoke({})
    for _ in range(0, cancelled, _AT_ONCE):
        tasks = [asyncio.create_task(graph.ainvoke({"text": "wait"})) for _ in range(_AT_ONCE)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if not all(isinstance(result, asyncio.CancelledError) for result in results):
            raise SystemExit(f"runs were not cancelled: {results[0]!r}")


def count(finished: int, cancelled: int) -> tuple[int, int]:
    """How many spans began, and how many are alive when all is over."""
    provider, exporter = null_provider()
    alive = _Alive()
    provider.add_span_processor(alive)
    with instrumented(provider):
        asyncio.run(_runs(finished, cancelled))
    provider.force_flush()
    gc.collect()
    if exporter.count != alive.started:
        raise SystemExit(f"{alive.started} spans began and {exporter.count} ended")
    left = len(alive.spans)
    provider.shutdown()
    return alive.started, left
