"""A release of LangGraph or LangChain in which a seam is gone, or is called otherwise.

In a process of its own, where each seam is broken in turn; the program must not notice.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from spanloom.telemetry.langgraph.instrument import SEAMS

# Every seam is passed by what runs here: nodes, a tool, a model that is invoked and streamed, sync
# and async, a checkpointer.
PROGRAM = """
import asyncio, functools, importlib, json, logging, sys, warnings

warnings.simplefilter("ignore")
import langchain_core.language_models.chat_models, langgraph.pregel.main
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spanloom.telemetry.langgraph import LangGraphInstrumentor, context
from spanloom.telemetry.langgraph.instrument import SEAMS

State = dict
@tool
def look(word: str) -> str:
    "Look."
    return word + word

def model():
    return GenericFakeChatModel(messages=iter([AIMessage(content="a b")] * 4))

def sync_node(state):
    said = "".join(chunk.content for chunk in model().stream("x"))
    return {"text": look.invoke({"word": model().invoke("x").content}) + said}

async def async_node(state):
    said = "".join([chunk.content async for chunk in model().astream("x")])
    return {"text": await look.ainvoke({"word": (await model().ainvoke("x")).content}) + said}

def graph(node):
    builder = StateGraph(State)
    builder.add_node("n", node)
    builder.add_edge(START, "n")
    return builder.compile(name="g", checkpointer=InMemorySaver())

async def run_both():
    config = {"configurable": {"thread_id": "t"}}
    return [
        await asyncio.to_thread(graph(sync_node).invoke, {}, config),
        await graph(async_node).ainvoke({}, config),
    ]

class Heard(logging.Handler):
    def emit(self, record):
        heard.append(record.getMessage())

heard = []
logging.getLogger().addHandler(Heard(logging.WARNING))

def run(break_it):
    heard.clear()
    context._warned.clear()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    mend = break_it(provider)
    try:
        results = asyncio.run(run_both())
    finally:
        LangGraphInstrumentor().uninstrument()
        mend()
    names = sorted(span.name for span in exporter.get_finished_spans())
    return {"results": results, "names": names, "heard": list(heard)}

def instrument(provider):
    LangGraphInstrumentor().instrument(tracer_provider=provider)
    return lambda: None

def gone(owner, name):
    # Looked for and not found, while the program itself, built for that release, works.
    def break_it(provider):
        original = vars(owner)[name]
        delattr(owner, name)
        LangGraphInstrumentor().instrument(tracer_provider=provider)
        setattr(owner, name, original)
        return lambda: setattr(owner, name, original)
    return break_it

class Odd:
    # Whatever is handed on has nothing of what we know.
    __slots__ = ("real",)

def odd(owner, name):
    # Its callers hand over something unknown, which the new function itself understands.
    def break_it(provider):
        original = vars(owner)[name]
        def understands(*args, newer, **kwargs):
            assert newer == 1
            return original(*args[-1].real[0], **args[-1].real[1])
        setattr(owner, name, understands)
        LangGraphInstrumentor().instrument(tracer_provider=provider)
        ours = vars(owner)[name]
        assert ours is not understands
        def caller(*args, **kwargs):
            handed_on = Odd()
            handed_on.real = (args, kwargs)
            bound = args[:1] if isinstance(owner, type) else ()
            return ours(*bound, handed_on, newer=1)
        setattr(owner, name, caller)
        def mend():
            setattr(owner, name, original)
        return mend
    return break_it

found = {"whole": run(instrument)}
for seam in SEAMS:
    try:
        module = importlib.import_module(seam.module)
    except ImportError:
        continue
    owner = module if seam.owner is None else getattr(module, seam.owner)
    if seam.name in vars(owner):
        for kind in (gone, odd):
            found[f"{kind.__name__} {seam.owner}.{seam.name}"] = run(kind(owner, seam.name))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def found() -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], timeout=110, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.xdist_group("newer_versions")
def test_without_a_break_all_is_there(found: Any) -> None:
    """What the broken ones are compared with."""
    whole = found["whole"]
    assert whole["heard"] == []
    assert whole["results"] == [{"text": "a ba ba b"}] * 2
    assert whole["names"] == sorted(
        ["invoke_workflow g", "invoke_node n", "execute_tool look", "chat", "chat"] * 2
    )


@pytest.mark.xdist_group("newer_versions")
@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: f"{seam.owner}.{seam.name}")
@pytest.mark.parametrize("kind", ["gone", "odd"])
def test_a_broken_seam_costs_spans_and_one_warning(found: Any, seam: Any, kind: str) -> None:
    """The program's results are the same; no span is invented; at most one warning."""
    case = found.get(f"{kind} {seam.owner}.{seam.name}")
    if case is None:
        assert seam.optional
        pytest.skip("not in this version")
    whole = found["whole"]
    assert case["results"] == whole["results"]
    missing = list(whole["names"])
    for name in case["names"]:
        assert name in missing, f"{name} is one too many"
        missing.remove(name)
    warnings = [line for line in case["heard"] if "somebody else" not in line]
    assert len(warnings) <= 1, warnings
    if kind == "gone" and not seam.optional:
        assert len(warnings) == 1
        assert seam.name in warnings[0]
    if missing:
        assert len(warnings) == 1, f"{missing} are missing and nothing was said"
