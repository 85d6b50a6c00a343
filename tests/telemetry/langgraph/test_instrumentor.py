"""The instrumentor: on, off, harmless, and light."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypedDict

import pytest
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.pregel.main import Pregel
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from spanloom.telemetry.langgraph import LangGraphInstrumentor, context
from spanloom.telemetry.langgraph.instrument import SEAMS


class State(TypedDict, total=False):
    text: str


def compiled() -> Any:
    @tool
    def look(word: str) -> str:
        """Look."""
        return word

    builder = StateGraph(State)
    builder.add_node("a", lambda state: {"text": look.invoke({"word": "x"})})
    builder.add_edge(START, "a")
    return builder.compile(name="g")


def functions() -> list[Any]:
    """What stands at each seam now; an older LangGraph lacks some of the optional ones."""
    found = []
    for seam in SEAMS:
        try:
            module = import_module(seam.module)
        except ImportError:
            assert seam.optional
            continue
        owner = module if seam.owner is None else getattr(module, seam.owner)
        if seam.name in vars(owner) or not seam.optional:
            found.append(vars(owner)[seam.name])
    return found


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    yield InMemorySpanExporter()
    if LangGraphInstrumentor().is_instrumented_by_opentelemetry:
        LangGraphInstrumentor().uninstrument()


def provider(exporter: InMemorySpanExporter, **options: Any) -> TracerProvider:
    made = TracerProvider(**options)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def names(exporter: InMemorySpanExporter) -> list[str]:
    return sorted(span.name for span in exporter.get_finished_spans())


ALL = ["execute_tool look", "invoke_node a", "invoke_workflow g"]


def test_uninstrument_puts_every_original_back(exporter: InMemorySpanExporter) -> None:
    """Identity, not equality: nothing of ours stays."""
    before = functions()
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter))
    during = functions()
    LangGraphInstrumentor().uninstrument()
    assert all(a is b for a, b in zip(before, functions(), strict=True))
    assert not any(a is b for a, b in zip(before, during, strict=True))
    compiled().invoke({})
    assert names(exporter) == []


def test_graphs_compiled_before_and_after_are_traced(exporter: InMemorySpanExporter) -> None:
    """Patches are on what runs, not on what is compiled; off and on again works."""
    before = compiled()
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter))
    before.invoke({})
    assert names(exporter) == ALL
    exporter.clear()
    compiled().invoke({})
    assert names(exporter) == ALL
    LangGraphInstrumentor().uninstrument()
    exporter.clear()
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter))
    before.invoke({})
    assert names(exporter) == ALL


def test_what_somebody_else_patched_later_is_left_alone(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """A patch over ours stays; the log says so."""
    original = Pregel.stream
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter))
    ours = Pregel.stream

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(Pregel, "stream", theirs)
    LangGraphInstrumentor().uninstrument()
    assert Pregel.stream is theirs
    assert "stream was patched by somebody else" in caplog.text
    assert compiled().invoke({}) == {"text": "x"}
    monkeypatch.undo()
    Pregel.stream = original


def test_instrumenting_imports_nothing_of_langgraph() -> None:
    """A process that never uses LangGraph does not pay for it; one that does is traced."""
    code = """
import sys
from spanloom.telemetry.langgraph import LangGraphInstrumentor
LangGraphInstrumentor().instrument()
heavy = [m for m in sys.modules if m.split(".")[0] in ("langgraph", "langchain_core")]
assert heavy == [], heavy
import langgraph.graph
from langgraph.pregel.main import Pregel
assert Pregel.stream.__wrapped__
LangGraphInstrumentor().uninstrument()
assert not hasattr(Pregel.stream, "__wrapped__")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_silent_without_langgraph() -> None:
    """Not installed: no error, no log line, nothing on stderr."""
    code = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: (
    None if name.split(".")[0] in ("langgraph", "langchain_core") else find_spec(name, *a)
)
from spanloom.telemetry.langgraph import LangGraphInstrumentor
LangGraphInstrumentor().instrument()
LangGraphInstrumentor().uninstrument()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_it_is_an_entry_point() -> None:
    """`opentelemetry-instrument` finds it."""
    (point,) = entry_points(group="opentelemetry_instrumentor", name="spanloom-langgraph")
    assert point.load() is LangGraphInstrumentor


def test_a_tracer_that_fails_never_breaks_the_application(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """A provider whose spans cannot start: the graph runs, one warning."""
    made = provider(exporter)
    monkeypatch.setattr(context, "_warned", set())

    class Broken(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            tracer = made.get_tracer("x")
            monkeypatch.setattr(tracer, "start_span", lambda *a, **k: 1 / 0)
            return tracer

    LangGraphInstrumentor().instrument(tracer_provider=Broken())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert compiled().invoke({}) == {"text": "x"}
    warnings = [record for record in caplog.records if "span cannot be started" in record.message]
    assert len(warnings) == 1


def test_a_processor_that_fails_never_breaks_the_application(
    exporter: InMemorySpanExporter, monkeypatch: Any
) -> None:
    """A span processor that raises in on_start or on_end costs spans, nothing else."""
    monkeypatch.setattr(context, "_warned", set())
    made = provider(exporter)

    class Bad(SimpleSpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if span.name == "invoke_node a":
                raise KeyError(None)

        def on_end(self, span: Any) -> None:
            raise KeyError(None)

    made.add_span_processor(Bad(InMemorySpanExporter()))
    LangGraphInstrumentor().instrument(tracer_provider=made)
    assert compiled().invoke({}) == {"text": "x"}


def test_a_seam_that_a_newer_version_lacks(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """Without run_with_retry there are no node spans, one warning, and everything else."""
    runner = import_module("langgraph.pregel._runner")
    monkeypatch.setattr(context, "_warned", set())
    run_with_retry = runner.run_with_retry
    monkeypatch.delattr(runner, "run_with_retry")
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter))
    monkeypatch.setattr(runner, "run_with_retry", run_with_retry, raising=False)
    assert compiled().invoke({}) == {"text": "x"}
    assert names(exporter) == ["execute_tool look", "invoke_workflow g"]
    assert "has no langgraph.pregel._runner.run_with_retry" in caplog.text


def test_an_unsampled_trace_stays_unsampled(exporter: InMemorySpanExporter) -> None:
    """Nothing recorded, nothing exported, results as ever."""
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter, sampler=ALWAYS_OFF))
    assert compiled().invoke({}) == {"text": "x"}
    assert names(exporter) == []


def test_suppressed_instrumentation_is_respected(exporter: InMemorySpanExporter) -> None:
    """Inside suppress_instrumentation() no span is made."""
    LangGraphInstrumentor().instrument(tracer_provider=provider(exporter))
    with suppress_instrumentation():
        assert compiled().invoke({}) == {"text": "x"}
    assert names(exporter) == []


EVERYTHING = """
import asyncio, importlib, pkgutil, sys, types
import langchain_core.language_models, langchain_core.tools, langchain_openai, langgraph.prebuilt
import langgraph.func
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph

@tool
def look(word: str) -> str:
    "Look."
    return word

builder = StateGraph(dict)
builder.add_node("a", lambda state: {"text": look.invoke({"word": "x"})})
builder.add_edge(START, "a")
graph = builder.compile(name="g")

def run():
    graph.invoke({})
    asyncio.run(graph.ainvoke({}))
    list(graph.stream({}, stream_mode=["values", "messages"]))

def held(owner):
    # numbers are counters of LangGraph's own
    return {
        name: id(value)
        for name, value in vars(owner).items()
        if not (name.startswith("_abc_") or isinstance(value, int))
    }

def everything():
    '''Identity of each attribute of each module and class of LangGraph, LangChain and Anthropic.'''
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] not in {"langgraph", "langchain_core", "langchain_openai"}:
            continue
        found[name] = held(module)
        for attribute, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == name:
                found[name, attribute] = held(value)
    return found

from spanloom.telemetry.langgraph import LangGraphInstrumentor
run()  # imports and caches of its own
before = everything()
LangGraphInstrumentor().instrument()
during = everything()
run()
LangGraphInstrumentor().uninstrument()
after = everything()
changed = {owner for owner in before if before[owner] != during[owner]}
left = {
    (owner, name)
    for owner in before
    for name in before[owner].keys() | after[owner].keys()
    if before[owner].get(name) != after[owner].get(name)
}
print(len(before), len(changed), sorted(left, key=str))
assert len(changed) >= 5, changed
assert not left
"""


def test_uninstrument_leaves_everything_as_it_was() -> None:
    """No attribute of any module or class of LangGraph and LangChain is another object."""
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING], timeout=100, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
