"""The test kit itself."""

import asyncio
import logging
from inspect import cleandoc
from typing import Any, TypedDict

import pytest
import structlog
from langgraph.graph import START, StateGraph
from langgraph.pregel.main import Pregel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from spanloom.telemetry import get_logger, llm_call, step, tool
from spanloom.telemetry.langgraph import LangGraphInstrumentor
from spanloom.telemetry.testing import SteppedClock, capture, capture_spans


class State(TypedDict, total=False):
    text: str


def compiled() -> Any:
    async def think(state: State) -> State:
        with llm_call("小模型", provider="openai") as call:
            call.usage(input_tokens=7, output_tokens=3)
        return {}

    builder = StateGraph(State)
    builder.add_node("think", think)
    builder.add_edge(START, "think")
    return builder.compile(name="g")


def test_graphs_are_captured_without_anything_global() -> None:
    """LangGraph is traced in the block only, whatever the global provider is."""
    provider, original = trace.get_tracer_provider(), Pregel.astream
    graph = compiled()
    with capture() as captured:
        asyncio.run(graph.ainvoke({}))
    asyncio.run(graph.ainvoke({}))

    assert captured.tree("gen_ai.usage.output_tokens", "absent") == cleandoc("""
        invoke_workflow g
          invoke_node think
            chat 小模型 {gen_ai.usage.output_tokens=3}
    """)
    assert trace.get_tracer_provider() is provider
    assert Pregel.astream is original


def test_an_instrumented_graph_goes_back_to_its_provider() -> None:
    """Inside the block spans go to the test, before and after it where they went."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    LangGraphInstrumentor().instrument(tracer_provider=provider)
    try:
        graph = compiled()
        with capture() as captured:
            asyncio.run(graph.ainvoke({}))
        assert exporter.get_finished_spans() == ()
        asyncio.run(graph.ainvoke({}))
    finally:
        LangGraphInstrumentor().uninstrument()
    assert [span.name for span in exporter.get_finished_spans()] == [
        "invoke_node think",
        "invoke_workflow g",
    ]
    assert len(captured.spans) == 3


def test_logs_are_captured_with_their_spans() -> None:
    """Records of structlog and stdlib, from INFO upwards, and logging is as before afterwards."""
    handlers, level = list(logging.root.handlers), logging.root.level
    configured, configuration = structlog.is_configured(), structlog.get_config()
    with capture() as captured:
        get_logger("my.app").info("outside", query="问")
        with step("work"):
            logging.getLogger("my.stdlib").info("from %s", "线程")
            logging.getLogger("my.stdlib").debug("too fine")
    get_logger("my.app").info("later")

    assert [log.log_record.body for log in captured.logs] == ["outside", "from 线程"]
    assert dict(captured.logs[0].log_record.attributes or {})["query"] == "问"
    (inside,) = captured.logs_of(captured.one("work"))
    assert inside.log_record.body == "from 线程"
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert (structlog.is_configured(), structlog.get_config()) == (configured, configuration)


def test_the_tree_shows_endings() -> None:
    """What is not ok says why; what has not ended is there as well."""
    with capture_spans() as captured, step("request"):
        with pytest.raises(ValueError, match="x"), tool("failing"):
            raise ValueError("x")
        with pytest.raises(asyncio.CancelledError), tool("cut"):
            raise asyncio.CancelledError
        tree = captured.tree()
        assert [span.name for span in captured.open_spans] == ["request"]

    assert tree == cleandoc("""
        request [not ended]
          execute_tool failing [error: ValueError]
          execute_tool cut [cancelled]
    """)
    assert captured.tree().startswith("request\n")
    captured.clear()
    assert captured.tree() == ""
    assert captured.picture() == "no spans"


def test_times_come_from_the_stepped_clock() -> None:
    """Starts, ends and events; `advance` is a slow call; the picture repeats exactly."""

    def draw() -> str:
        clock = SteppedClock(step_ms=2)
        with capture_spans(clock=clock) as captured, step("a"), step("b"):
            clock.advance(1.5)
        return captured.picture()

    assert draw() == cleandoc(f"""
        trace 10000000000000000000000000000001
        a{"1506.0 ms":>63}
          b{"1502.0 ms":>61}
    """)
    assert draw() == draw()
    with capture_spans() as captured, step("now"):
        pass
    assert (captured.one("now").start_time or 0) > SteppedClock()()


def test_unsampled_spans_are_not_captured() -> None:
    """As with any exporter: neither ended nor open."""
    with capture_spans(ALWAYS_OFF) as captured, step("x"):
        assert captured.open_spans == []
    assert captured.spans == []


def test_a_deep_trace_can_be_drawn() -> None:
    """An agent that calls itself is no reason to fail in the report of its failure."""

    def nest(depth: int) -> None:
        with step(str(depth)):
            if depth:
                nest(depth - 1)

    with capture_spans() as captured:
        nest(100)
        parent = captured.provider.get_tracer("x")
        context = None
        for number in range(3000):
            span = parent.start_span(f"deep {number}", context=context)
            context = trace.set_span_in_context(span)
            span.end()
    assert captured.tree().count("\n") == 3100
    assert "deep 2999" in captured.picture()
