"""Beside other instrumentations of the same call: ours is there once, and the header is right.

Runs where the others are installed, which is the environment `beside` of `make test-versions`.
"""

from importlib import import_module
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from opentelemetry.sdk.trace import ReadableSpan

from spanloom.telemetry.langgraph import LangGraphInstrumentor

OTHERS = {
    "genai-openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
    "openinference-openai": ("openinference.instrumentation.openai", "OpenAIInstrumentor"),
    "openinference": ("openinference.instrumentation.langchain", "LangChainInstrumentor"),
    "genai-langchain": ("opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
}

REPLACES_CONTEXT = "genai-langchain"
"""Runs each model call in a context of its own making: without our sums, and with its own model
span above the request (docs/adr/005)."""


class State(TypedDict, total=False):
    text: str


def is_ours(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name == "spanloom.telemetry.langgraph"


@pytest.mark.parametrize("streamed", [False, True], ids=["invoke", "stream"])
@pytest.mark.parametrize("first", [False, True], ids=["after_us", "before_us"])
@pytest.mark.parametrize("other", OTHERS)
async def test_one_model_span_of_ours(
    recorded: Any, server: Any, other: str, first: bool, streamed: bool
) -> None:
    """Tokens once on ours and in its sums; the HTTP span stays, and its header names it."""
    module, name = OTHERS[other]
    instrumentor = getattr(pytest.importorskip(module, reason="not installed here"), name)()
    if first:
        LangGraphInstrumentor().uninstrument()
    instrumentor.instrument(tracer_provider=recorded.provider)
    if first:
        LangGraphInstrumentor().instrument(tracer_provider=recorded.provider)
    try:

        async def node(state: State) -> State:
            model = server.model(stream_usage=True)
            if streamed:
                return {"text": "".join([part.text async for part in model.astream("hi")])}
            return {"text": (await model.ainvoke("hi")).text}

        builder = StateGraph(State)
        builder.add_node("ask", node)
        builder.add_edge(START, "ask")
        result = await builder.compile(name="g").ainvoke({})
    finally:
        if first:  # in reverse, else the outer patch would hold the inner one
            LangGraphInstrumentor().uninstrument()
        instrumentor.uninstrument()
        if first:
            LangGraphInstrumentor().instrument(tracer_provider=recorded.provider)

    assert result == {"text": "你好 world"}
    ours = [span for span in recorded.spans if is_ours(span)]
    assert sorted(span.name for span in ours) == [
        "chat offline-small",
        "invoke_node ask",
        "invoke_workflow g",
    ]
    (chat,) = [span for span in ours if span.name.startswith("chat")]
    assert (chat.attributes or {})["gen_ai.usage.input_tokens"] == 11
    for span in ours:
        if span is not chat and other != REPLACES_CONTEXT:
            assert (span.attributes or {})["spanloom.usage.input_tokens"] == 11
            assert (span.attributes or {})["spanloom.usage.output_tokens"] == 5

    # the header names the HTTP span, and above it is our chat span
    by_id = {span.context.span_id: span for span in recorded.spans}
    (header,) = server.chat_headers
    above = by_id[int(header.split("-")[2], 16)]
    assert above.name == "POST"
    assert {span.context.trace_id for span in recorded.spans} == {int(header.split("-")[1], 16)}
    while above is not chat and other != REPLACES_CONTEXT:
        assert above.parent is not None, "the HTTP span is not below our chat span"
        above = by_id[above.parent.span_id]


def test_all_of_them_are_installed_where_they_are_to_be_tested() -> None:
    """The environment `beside` has every one of them; elsewhere there may be none."""
    found = []
    for module, _ in OTHERS.values():
        try:
            import_module(module)
        except ImportError:
            continue
        found.append(module)
    assert len(found) in {0, len(OTHERS)}, found
