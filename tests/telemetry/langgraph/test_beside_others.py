"""Beside other instrumentations of the same call: ours is there once, and the header is right.

Runs where the others are installed, which are the environments `beside` and `beside-v2` of
`make test-versions`: one needs a release of a library that the others do not go with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypedDict

import pytest
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from spanloom.telemetry.langgraph import LangGraphInstrumentor

OTHERS = {
    "genai-openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
    "openinference-openai": ("openinference.instrumentation.openai", "OpenAIInstrumentor"),
    "openinference": ("openinference.instrumentation.langchain", "LangChainInstrumentor"),
    "genai-langchain": ("opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
    "openai-v2": ("opentelemetry.instrumentation.openai_v2", "OpenAIInstrumentor"),
}
ALONE = "openai-v2"
"""2.4b0 imports what `opentelemetry-util-genai` has had no more since 1.0."""


class State(TypedDict, total=False):
    text: str


def here() -> str:
    return str(getattr(trace.get_current_span(), "name", "none"))


def is_ours(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name == "spanloom.telemetry.langgraph"


@contextmanager
def active(recorded: Any, other: str, *, first: bool) -> Iterator[None]:
    """The other instrumentation beside ours, switched on before or after it."""
    module, name = OTHERS[other]
    instrumentor = getattr(pytest.importorskip(module, reason="not installed here"), name)()
    if first:
        LangGraphInstrumentor().uninstrument()
    instrumentor.instrument(tracer_provider=recorded.provider)
    if first:
        LangGraphInstrumentor().instrument(tracer_provider=recorded.provider)
    try:
        yield
    finally:
        if first:  # in reverse, else the outer patch would hold the inner one
            LangGraphInstrumentor().uninstrument()
        instrumentor.uninstrument()
        if first:
            LangGraphInstrumentor().instrument(tracer_provider=recorded.provider)


async def answer(server: Any, *, streamed: bool) -> Any:
    """A node that makes a request, calls a tool that does, and asks the model."""

    @tool
    async def look(word: str) -> str:
        """Look it up."""
        await server.aget("tool")
        return here()

    async def node(state: State) -> State:
        await server.aget("node")
        assert [here(), await look.ainvoke({"word": "x"}), here()] == [
            "invoke_node ask",
            "execute_tool look",
            "invoke_node ask",
        ]
        model = server.model(stream_usage=True)
        if streamed:
            return {"text": "".join([part.text async for part in model.astream("hi")])}
        return {"text": (await model.ainvoke("hi")).text}

    builder = StateGraph(State)
    builder.add_node("ask", node)
    builder.add_edge(START, "ask")
    return await builder.compile(name="g").ainvoke({})


def above(recorded: Any, header: str) -> list[ReadableSpan]:
    """The span that a header names, and all those around it."""
    by_id = {span.context.span_id: span for span in recorded.spans}
    found = [by_id[int(header.split("-")[2], 16)]]
    while found[-1].parent is not None:
        found.append(by_id[found[-1].parent.span_id])
    return found


@pytest.mark.parametrize("streamed", [False, True], ids=["invoke", "stream"])
@pytest.mark.parametrize("first", [False, True], ids=["after_us", "before_us"])
@pytest.mark.parametrize("other", OTHERS)
async def test_one_model_span_of_ours(
    recorded: Any, server: Any, other: str, first: bool, streamed: bool
) -> None:
    """Tokens once on ours and in its sums; the HTTP spans stay, and their headers name them."""
    with active(recorded, other, first=first):
        assert await answer(server, streamed=streamed) == {"text": "你好 world"}

    ours = {span.name: span for span in recorded.spans if is_ours(span)}
    assert sorted(span.name for span in recorded.spans if is_ours(span)) == sorted(ours)
    chat = "chat offline-small"
    assert set(ours) == {chat, "execute_tool look", "invoke_node ask", "invoke_workflow g"}
    assert (ours[chat].attributes or {})["gen_ai.usage.input_tokens"] == 11
    for name in ("invoke_node ask", "invoke_workflow g"):
        assert (ours[name].attributes or {})["spanloom.usage.input_tokens"] == 11
        assert (ours[name].attributes or {})["spanloom.usage.output_tokens"] == 5

    # what left from node and tool names them: nothing of the other one is in between
    for path, unit in (("node", "invoke_node ask"), ("tool", "execute_tool look")):
        http, parent, *_ = above(recorded, server.headers_by_path[path])
        assert (http.name, parent) == ("GET", ours[unit])

    # what the model was asked by is below our chat span, and that below our node
    (header,) = server.chat_headers
    http, *around = above(recorded, header)
    assert http.name == "POST"
    assert around.index(ours[chat]) < around.index(ours["invoke_node ask"])
    assert {span.context.trace_id for span in recorded.spans} == {http.context.trace_id}


def test_all_of_them_are_installed_where_they_are_to_be_tested() -> None:
    """An environment that has one of them has all that go together; elsewhere there is none."""
    found = set()
    for name, (module, _) in OTHERS.items():
        try:
            import_module(module)
        except ImportError:
            continue
        found.add(name)
    assert found in (set(), {ALONE}, set(OTHERS) - {ALONE})
