"""Content of graphs, models and tools: absent unless asked for; then whole, hidden and bounded."""

import asyncio
import contextlib
import json
import logging
import operator
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from spanloom import semconv
from spanloom.telemetry import content
from spanloom.telemetry.content import ContentRules
from spanloom.telemetry.langgraph import LangGraphInstrumentor
from spanloom.telemetry.reference import attributes_of
from spanloom.telemetry.testing import Captured, capture, capture_spans

CHAT = "chat offline-small"
QUESTION = "机密的问题 sk-abcdef1234567890"
ASKED = [
    {"role": "user", "parts": [{"type": "text", "content": "机密的问题 [REDACTED]"}]},
]
ANSWERED = [{"role": "assistant", "parts": [{"type": "text", "content": "你好 world"}]}]


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], operator.add]


@pytest.fixture(params=[False, True], ids=["off", "on"])
def on(request: Any) -> Iterator[bool]:
    """Every test of this fixture runs without and with capture."""
    restore = content.use(ContentRules() if request.param else None)
    yield request.param
    restore()


@contextlib.contextmanager
def captured_content(*, on: bool) -> Iterator[Captured]:
    """Capture spans; off, not a word of the conversation is found in what would be sent."""
    with capture() as captured:
        yield captured
    sent = encode_spans(captured.spans).SerializeToString()
    for secret in ("abcdef1234567890", "hunter22"):
        assert secret.encode() not in sent
    carried: set[str] = set()
    for span in captured.spans:
        attributes = dict(span.attributes or {})
        always, possible = attributes_of(str(attributes["gen_ai.operation.name"]), content=on)
        assert always <= set(attributes) <= possible, span.name
        carried |= set(attributes)
    assert bool(carried & semconv.CONTENT_ATTRIBUTES) is on
    if not on:
        for word in ("机密", "你", "world", "树"):
            assert word.encode() not in sent


def of(captured: Captured, name: str, attribute: str) -> Any:
    return json.loads(captured.attributes(name)[attribute])


def check_chat(captured: Captured, *, on: bool, answered: Any = ANSWERED) -> None:
    if on:
        assert of(captured, CHAT, "gen_ai.input.messages") == ASKED
        assert of(captured, CHAT, "gen_ai.output.messages") == answered


@pytest.mark.filterwarnings("ignore:.*is in beta")
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "messages", "v3", "av3"])
async def test_every_way_to_a_model(server: Any, on: bool, way: str) -> None:
    """The same question and the same answer on the span, however it was asked for."""
    model = server.model()

    async def ask(state: State) -> State:
        if way == "invoke":
            await asyncio.to_thread(model.invoke, state["messages"])
        elif way in ("ainvoke", "messages"):
            await model.ainvoke(state["messages"])
        elif way == "stream":
            await asyncio.to_thread(lambda: list(model.stream(state["messages"])))
        elif way == "astream":
            [_ async for _ in model.astream(state["messages"])]
        elif way == "v3":
            await asyncio.to_thread(
                lambda: list(model.stream_events(state["messages"], version="v3"))
            )
        else:
            stream = await model.astream_events(state["messages"], version="v3")
            [_ async for _ in stream]
        return {}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(name="g")
    with captured_content(on=on) as captured:
        if way == "messages":
            async for _ in graph.astream(
                {"messages": [HumanMessage(QUESTION)]}, stream_mode="messages"
            ):
                pass
        else:
            await graph.ainvoke({"messages": [HumanMessage(QUESTION)]})
    check_chat(captured, on=on)


@pytest.mark.parametrize("messages", [QUESTION, [("user", QUESTION)]])
def test_what_langchain_would_convert(server: Any, on: bool, messages: Any) -> None:
    """A text and pairs, as `stream` is given them, are messages."""
    with captured_content(on=on) as captured:
        list(server.model().stream(messages))
    check_chat(captured, on=on)


def test_instructions_and_tools(server: Any, on: bool) -> None:
    """The system prompt apart, and the tools that the model may call."""

    @tool
    def look(word: str) -> str:
        """Look 机密."""
        return word

    with captured_content(on=on) as captured:
        server.model().bind_tools([look]).invoke(
            [SystemMessage("机密 password=hunter22"), HumanMessage(QUESTION)]
        )
    check_chat(captured, on=on)
    if on:
        assert of(captured, CHAT, "gen_ai.system_instructions") == [
            {"type": "text", "content": "机密 password=[REDACTED]"}
        ]
        (definition,) = of(captured, CHAT, "gen_ai.tool.definitions")
        assert definition["name"] == "look"
        assert definition["description"] == "Look 机密."
        assert definition["parameters"]["properties"] == {"word": {"type": "string"}}


def test_a_model_that_fails(server: Any, on: bool) -> None:
    """The question is there, an answer is not."""
    with captured_content(on=on) as captured, pytest.raises(Exception, match="500"):
        server.model(model="failing").invoke(QUESTION)
    if on:
        assert of(captured, "chat failing", "gen_ai.input.messages") == ASKED
        assert "gen_ai.output.messages" not in captured.attributes("chat failing")


class Heard(AsyncCallbackHandler):
    """Says when all has come that the stalling model says.

    Not before: Python 3.11's `wait_for`, through which LangChain reads, forgets that it was
    cancelled where its next piece is just there.
    """

    def __init__(self) -> None:
        self.text = ""
        self.all = asyncio.Event()

    async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.text += token
        if self.text == "你好":
            self.all.set()


@pytest.mark.parametrize("way", ["stream", "invoke"])
async def test_a_cut_stream(server: Any, on: bool, way: str) -> None:
    """What came of the answer until then; inside `generate` too."""
    model = server.model(model="stalling", **({"streaming": True} if way == "invoke" else {}))
    heard = Heard()

    async def read() -> None:
        if way == "invoke":
            await model.ainvoke(QUESTION, {"callbacks": [heard]})
        else:
            [_ async for _ in model.astream(QUESTION, {"callbacks": [heard]})]

    with captured_content(on=on) as captured:
        task = asyncio.create_task(read())
        async with asyncio.timeout(60):
            await heard.all.wait()
        # The HTTP span may be open below the chat span, and before it in the list.
        assert any(
            "gen_ai.response.time_to_first_chunk" in (span.attributes or {})
            for span in captured.open_spans
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    server.release.set()
    if on:
        ((message),) = of(captured, "chat stalling", "gen_ai.output.messages")
        ((part),) = message["parts"]
        assert part["type"] == "text"
        assert part["content"] in ("你", "你好")  # the second may not have been handed on yet


class Piecemeal(GenericFakeChatModel):
    """Streams thought, text, a picture and two tool calls in pieces."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        def calls(*pieces: tuple[int, str | None, str | None, str]) -> AIMessageChunk:
            return AIMessageChunk(
                "",
                tool_call_chunks=[
                    {"index": i, "id": id_, "name": name, "args": args, "type": "tool_call_chunk"}
                    for i, id_, name, args in pieces
                ],
            )

        for message in (
            AIMessageChunk("", additional_kwargs={"reasoning_content": "想"}),
            AIMessageChunk([{"type": "thinking", "thinking": "一", "index": 0}]),
            AIMessageChunk([{"type": "thinking", "thinking": "想", "index": 0}]),
            AIMessageChunk([{"type": "text", "text": "大", "index": 1}]),
            AIMessageChunk([{"type": "text", "text": "树", "index": 1}]),
            AIMessageChunk([{"type": "image", "base64": "AAAA", "mime_type": "image/png"}]),
            calls((0, "1", "look", '{"word": '), (1, "2", "look", "{")),
            calls((0, None, None, '"树"}'), (1, None, None, '"api_key": "hunter22"}')),
        ):
            yield ChatGenerationChunk(message=message)


def test_parts_of_a_streamed_answer(on: bool) -> None:
    """Thought, text, media and tool calls are put together from their pieces."""
    with captured_content(on=on) as captured:
        list(Piecemeal(messages=iter(())).stream(QUESTION))
    if on:
        ((message),) = of(captured, "chat", "gen_ai.output.messages")
        call = {"type": "tool_call", "name": "look"}
        assert message == {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "想"},
                {"type": "reasoning", "content": "一想"},
                {"type": "text", "content": "大树"},
                {"type": "blob", "modality": "image", "mime_type": "image/png", "size": 3},
                {**call, "id": "1", "arguments": {"word": "树"}},
                {**call, "id": "2", "arguments": {"api_key": "[REDACTED]"}},
            ],
        }


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_tools(on: bool, asynchronous: bool) -> None:
    """Arguments and results, without the state that LangGraph injects; artifacts stay out."""

    @tool(response_format="content_and_artifact")
    def look(word: str, state: Annotated[dict[str, Any], InjectedState]) -> tuple[str, Any]:
        """Look."""
        assert state["messages"]
        return f"{word}: password=hunter22", "机密 artifact"

    @tool
    async def count(words: list[str]) -> dict[str, Any]:
        """Count."""
        return {"树": len(words), "token": "hunter22"}

    asked = [
        {"name": "look", "args": {"word": "树"}, "id": "1", "type": "tool_call"},
        {"name": "count", "args": {"words": ["树"]}, "id": "2", "type": "tool_call"},
    ]
    builder = StateGraph(State)
    builder.add_node("tools", ToolNode([look, count] if asynchronous else [look]))
    builder.add_edge(START, "tools")
    graph = builder.compile(name="g")
    start: State = {
        "messages": [AIMessage("机密", tool_calls=asked if asynchronous else asked[:1])]
    }
    with captured_content(on=on) as captured:
        result = await graph.ainvoke(start) if asynchronous else graph.invoke(start)
    assert result["messages"][1].artifact == "机密 artifact"
    if on:
        look_span = captured.attributes("execute_tool look")
        assert json.loads(look_span["gen_ai.tool.call.arguments"]) == {"word": "树"}
        assert json.loads(look_span["gen_ai.tool.call.result"]) == "树: password=[REDACTED]"
    if on and asynchronous:
        counted = captured.attributes("execute_tool count")
        assert json.loads(counted["gen_ai.tool.call.arguments"]) == {"words": ["树"]}
        # the tool makes a message of what the function returns: JSON as text
        assert json.loads(counted["gen_ai.tool.call.result"]) == '{"树": 1, "token": [REDACTED]}'


def test_a_tool_that_fails(on: bool) -> None:
    """The arguments are there, a result is not."""

    @tool
    def look(word: str) -> str:
        """Look."""
        raise ValueError("broken")

    with captured_content(on=on) as captured, pytest.raises(ValueError, match="broken"):
        look.invoke({"word": "树 sk-abcdef1234567890"})
    if on:
        carried = captured.attributes("execute_tool look")
        assert json.loads(carried["gen_ai.tool.call.arguments"]) == {"word": "树 [REDACTED]"}
        assert "gen_ai.tool.call.result" not in carried


def test_a_tool_of_blocks() -> None:
    """Blocks of content, as MCP tools return them, are parts; pictures are placeholders."""

    @tool
    def draw(word: str) -> ToolMessage:
        """Draw."""
        blocks: list[Any] = [
            {"type": "text", "text": word},
            {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        ]
        return ToolMessage(blocks, tool_call_id="1")

    restore = content.use(ContentRules())
    with capture() as captured:
        draw.invoke({"word": "树"})
    restore()
    assert of(captured, "execute_tool draw", "gen_ai.tool.call.result") == [
        {"type": "text", "content": "树"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "size": 3},
    ]


def ask_alone(**arguments: Any) -> Captured:
    """Instrument without `setup`, ask once, take it off again."""
    with capture_spans() as captured:
        LangGraphInstrumentor().instrument(tracer_provider=captured.provider, **arguments)
        try:
            GenericFakeChatModel(messages=iter([AIMessage("机密的回答")])).invoke("机密的问题")
        finally:
            LangGraphInstrumentor().uninstrument()
    return captured


def test_the_instrumentor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its argument or by the environment; uninstrumented, all is as before."""
    monkeypatch.setattr(content, "_is_decided", False)
    asked = "gen_ai.input.messages"
    assert asked not in ask_alone().attributes("chat")
    by_argument = ask_alone(
        capture_content=True, content_limit=64, redact_content=lambda text: text.replace("机密", "")
    )
    assert of(by_argument, "chat", asked)[0]["parts"][0]["content"] == "的问题"
    assert asked not in ask_alone().attributes("chat")
    monkeypatch.setattr(content, "_is_decided", False)
    monkeypatch.setenv("SPANLOOM_CAPTURE_CONTENT", "true")
    assert asked in ask_alone().attributes("chat")
    assert asked not in ask_alone(capture_content=False).attributes("chat")
    content.use(None)


def test_a_no_of_the_environment_holds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever runs the program decides, and is told that the argument was ignored."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "NO_CONTENT")
    with caplog.at_level(logging.WARNING):
        captured = ask_alone(capture_content=True)
    assert not semconv.CONTENT_ATTRIBUTES & captured.attributes("chat").keys()
    assert "the environment says no" in caplog.text


def test_what_is_not_sampled_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that is dropped costs no reading of messages."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF  # noqa: PLC0415

    monkeypatch.setattr(ContentRules, "text", lambda *_: pytest.fail("was read"))
    restore = content.use(ContentRules())
    with capture(ALWAYS_OFF) as captured:
        GenericFakeChatModel(messages=iter([AIMessage("a")])).invoke("q")
    restore()
    assert captured.spans == []
