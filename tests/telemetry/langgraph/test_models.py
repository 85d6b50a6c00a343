"""Chat spans of a real client against a real endpoint: what was asked, what came, tokens once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import anthropic
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.trace import SpanKind

from spanloom.model import Usage
from spanloom.otlp.decode import decode_traces
from spanloom.telemetry import estimate, pricing


class State(TypedDict, total=False):
    text: str


def node_graph(body: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("ask", body)
    builder.add_edge(START, "ask")
    return builder.compile(name="g")


CHAT = "chat offline-small"
TREE = [["invoke_workflow g", [["invoke_node ask", [[CHAT, ["POST"]]]]]]]
USAGE = {
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.usage.cache_read.input_tokens": 3,
    "gen_ai.usage.reasoning.output_tokens": 2,
}
SUMS = {"spanloom.usage.input_tokens": 11, "spanloom.usage.output_tokens": 5}


def assert_wire(recorded: Any, server: Any) -> None:
    """The header names the HTTP span, which is a child of the chat span."""
    (header,) = server.chat_headers
    assert recorded.name_of(header) == "POST"
    assert recorded.parent(recorded.one("POST")) == CHAT


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_invoke(recorded: Any, server: Any, asynchronous: bool) -> None:
    """One request: its parameters, its answer, its tokens, its server."""
    model = server.model(temperature=0.5, max_tokens=64, top_p=0.9, seed=7)

    def ask(state: State) -> State:
        return {"text": str(model.invoke("问题", stop=["\n"]).content)}

    async def aask(state: State) -> State:
        return {"text": str((await model.ainvoke("问题", stop=["\n"])).content)}

    config = {"configurable": {"thread_id": "t"}}
    if asynchronous:
        result = await node_graph(aask).ainvoke({}, config)
    else:
        result = await asyncio.to_thread(node_graph(ask).invoke, {}, config)

    assert result["text"] == "你好 world"
    assert recorded.tree() == TREE
    assert_wire(recorded, server)
    assert recorded.one(CHAT).kind is SpanKind.CLIENT
    assert recorded.attributes(CHAT) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "offline-small",
        "gen_ai.conversation.id": "t",
        "server.address": "127.0.0.1",
        "server.port": server.server_port,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("\n",),
        "gen_ai.response.model": "offline-2026",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "spanloom.outcome": "ok",
        **USAGE,
    }
    for name in ("invoke_node ask", "invoke_workflow g"):
        assert SUMS.items() <= recorded.attributes(name).items()
        assert "gen_ai.usage.input_tokens" not in recorded.attributes(name)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("stream_usage", [True, False])
async def test_stream(recorded: Any, server: Any, asynchronous: bool, stream_usage: bool) -> None:
    """Streamed: chunks, time to the first one, and tokens where the endpoint sends them."""
    model = server.model(stream_usage=stream_usage)

    def ask(state: State) -> State:
        return {"text": "".join(str(chunk.content) for chunk in model.stream("hi"))}

    async def aask(state: State) -> State:
        return {"text": "".join([str(chunk.content) async for chunk in model.astream("hi")])}

    if asynchronous:
        result = await node_graph(aask).ainvoke({})
    else:
        result = await asyncio.to_thread(node_graph(ask).invoke, {})

    assert result["text"] == "你好 world"
    assert recorded.tree() == TREE
    assert_wire(recorded, server)
    chat = recorded.attributes(CHAT)
    assert chat.pop("gen_ai.response.time_to_first_chunk") > 0
    assert chat == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "offline-small",
        "gen_ai.request.stream": True,
        "server.address": "127.0.0.1",
        "server.port": server.server_port,
        "gen_ai.response.model": "offline-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "spanloom.stream.chunks": 4,
        "spanloom.outcome": "ok",
        **(USAGE if stream_usage else {}),
    }
    assert ("spanloom.usage.input_tokens" in recorded.attributes("invoke_node ask")) is stream_usage


@pytest.mark.parametrize("mode", ["messages", "events"])
async def test_streamed_by_the_graph(recorded: Any, server: Any, mode: Any) -> None:
    """An invoked model that the graph makes stream: one chat span, tokens once."""
    model = server.model(stream_usage=True)

    async def ask(state: State) -> State:
        return {"text": str((await model.ainvoke("hi")).content)}

    graph = node_graph(ask)
    if mode == "messages":
        async for _ in graph.astream({}, stream_mode="messages"):
            pass
    else:
        async for _ in graph.astream_events({}, version="v2"):
            pass
    assert recorded.tree() == TREE
    assert_wire(recorded, server)
    chat = recorded.attributes(CHAT)
    assert USAGE.items() <= chat.items()
    assert chat["spanloom.stream.chunks"] == 4
    assert chat["gen_ai.response.finish_reasons"] == ("stop",)
    assert SUMS.items() <= recorded.attributes("invoke_workflow g").items()


@pytest.mark.skipif(not hasattr(BaseChatModel, "_iter_v2_events"), reason="only v1 and v2")
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_stream_events_v3_of_a_model(recorded: Any, server: Any, asynchronous: bool) -> None:
    """The content-block protocol asked of the model itself."""
    model = server.model(stream_usage=True)
    if asynchronous:
        stream = await model.astream_events("hi", version="v3")
        assert "".join([text async for text in stream.text]) == "你好 world"
        await stream.output
    else:
        sync = model.stream_events("hi", version="v3")
        assert "".join(await asyncio.to_thread(list, sync.text)) == "你好 world"
        assert sync.output is not None
    assert recorded.tree() == [[CHAT, ["POST"]]]
    chat = recorded.attributes(CHAT)
    assert USAGE.items() <= chat.items()
    assert chat["spanloom.stream.chunks"] == 4
    assert chat["gen_ai.request.stream"] is True


async def test_anthropic(recorded: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Anthropic SDK has spans of its own: inside ours there is one model span all the same."""
    set_global(monkeypatch, recorded.provider)
    model = ChatAnthropic(
        model="claude-offline", base_url=server.url, api_key="none", max_retries=0, max_tokens=64
    )
    await model.ainvoke("hi")
    assert recorded.tree() == [["chat claude-offline", ["POST"]]]
    assert recorded.attributes("chat claude-offline") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-offline",
        "server.address": "127.0.0.1",
        "server.port": server.server_port,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.response.model": "claude-offline-2026",
        "gen_ai.response.id": "msg_1",
        "gen_ai.response.finish_reasons": ("end_turn",),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.cache_write.input_tokens": 2,
        "spanloom.outcome": "ok",
    }


def set_global(monkeypatch: pytest.MonkeyPatch, provider: Any) -> None:
    """Let libraries that ask for the global provider have this one."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)


@pytest.mark.skipif(
    not hasattr(anthropic._base_client, "start_api_call_span"), reason="this SDK makes no spans"
)
async def test_the_anthropic_sdk_by_itself_keeps_its_span(
    recorded: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Used without LangChain, its own span is the only one that knows the tokens."""
    set_global(monkeypatch, recorded.provider)
    sdk = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    with recorded.tracer.start_as_current_span("request"):
        await sdk.messages.create(
            model="claude-offline", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        )
    assert recorded.tree() == [["request", [["anthropic.messages.create", ["POST"]]]]]


async def cut_after(model: Any, text: str) -> None:
    """Read a stream until it has said `text`, and leave."""
    texts = []
    stream = model.astream("hi")
    async for chunk in stream:
        texts.append(str(chunk.content))
        if "".join(texts) == text:
            break
    await stream.aclose()


async def test_a_cut_stream_keeps_what_it_had(recorded: Any, server: Any) -> None:
    """The reader leaves in the middle: chunks and tokens counted, finish reason lost."""
    estimate.load().join()

    async def ask(state: State) -> State:
        await cut_after(server.model(model="stalling", stream_usage=True), "你好")
        return {}

    await node_graph(ask).ainvoke({})
    chat = recorded.attributes("chat stalling")
    assert recorded.outcome("chat stalling") == ("UNSET", "abandoned_stream")
    assert chat["spanloom.stream.chunks"] == 2
    assert chat["gen_ai.response.finish_reasons"] == ("error",)
    assert chat["gen_ai.response.time_to_first_chunk"] > 0
    assert chat["gen_ai.usage.output_tokens"] == 1, "o200k_base has a token for 你好"
    assert chat["spanloom.usage.estimated"] is True
    assert "gen_ai.usage.input_tokens" not in chat
    for name in ("invoke_node ask", "invoke_workflow g"):
        assert recorded.outcome(name) == ("UNSET", "ok")
        assert recorded.attributes(name)["spanloom.usage.output_tokens"] == 1
        assert recorded.attributes(name)["spanloom.usage.estimated"] is True
    texts = [str(value) for span in recorded.spans for value in (span.attributes or {}).values()]
    assert not [text for text in texts if "你" in text], "counted, not recorded"


async def test_a_cut_stream_without_the_tokenizer(
    recorded: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra `tokens`: chunks and time to the first one, no invented count."""
    monkeypatch.setattr(estimate, "is_installed", lambda: False)
    await cut_after(server.model(model="stalling"), "你好")
    chat = recorded.attributes("chat stalling")
    assert chat["spanloom.stream.chunks"] == 2
    assert chat["gen_ai.response.time_to_first_chunk"] > 0
    assert "gen_ai.usage.output_tokens" not in chat
    assert "spanloom.usage.estimated" not in chat


async def test_a_cancelled_stream_keeps_what_it_had(recorded: Any, server: Any) -> None:
    """The client is gone while the model stalls: cancelled all the way, chunks counted."""
    estimate.load().join()
    model = server.model(model="stalling")
    arrived = asyncio.Event()

    async def ask(state: State) -> State:
        count = 0
        async for chunk in model.astream("hi"):
            count += bool(chunk.content)
            if count == 2:
                arrived.set()
        return {}

    task = asyncio.create_task(node_graph(ask).ainvoke({}))
    await arrived.wait()
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for name in ("chat stalling", "invoke_node ask", "invoke_workflow g"):
        assert recorded.outcome(name) == ("ERROR", "cancelled")
    chat = recorded.attributes("chat stalling")
    assert (chat["spanloom.stream.chunks"], chat["gen_ai.usage.output_tokens"]) == (2, 1)
    assert chat["error.type"] == "cancelled"
    assert recorded.exceptions() == []


async def test_an_endpoint_that_fails(recorded: Any, server: Any) -> None:
    """HTTP 500: the chat span has the SDK's error, and the finish reason is lost."""
    with pytest.raises(openai.InternalServerError) as raised:
        await server.model(model="failing").ainvoke("hi")
    chat = recorded.attributes("chat failing")
    assert recorded.outcome("chat failing") == ("ERROR", "error")
    assert chat["error.type"] == f"{raised.type.__module__}.{raised.type.__qualname__}"
    assert chat["gen_ai.response.finish_reasons"] == ("error",)
    assert recorded.exceptions() == [("chat failing", chat["error.type"])]


@pytest.mark.usefixtures("own_prices")
async def test_an_answer_that_the_sdk_does_not_hand_on_is_counted(
    recorded: Any, server: Any
) -> None:
    """JSON that reached the token limit came whole and is billed, though the call raises."""
    schema = {"title": "answer", "type": "object", "properties": {}, "required": []}
    model = server.model(model="wordy").with_structured_output(schema, method="json_schema")

    async def ask(state: State) -> State:
        with pytest.raises(openai.LengthFinishReasonError):
            await model.ainvoke("hi")
        return {}

    await node_graph(ask).ainvoke({})
    chat = recorded.attributes("chat wordy")
    assert recorded.outcome("chat wordy") == ("ERROR", "error")
    assert {key: chat[key] for key in USAGE} == USAGE
    assert chat["gen_ai.response.model"] == "offline-2026"
    assert chat["gen_ai.response.finish_reasons"] == ("length",)
    assert {key: recorded.attributes("invoke_node ask")[key] for key in SUMS} == SUMS
    names = ("chat wordy", "invoke_node ask", "invoke_workflow g")
    assert costs(recorded) == dict.fromkeys(names, (pytest.approx(COST, rel=1e-9), None))


async def test_each_request_of_a_batch_is_a_span(recorded: Any, server: Any) -> None:
    """Abatch and generate: one span for each request, tokens added up."""
    model = server.model()

    async def ask(state: State) -> State:
        await model.abatch(["a", "b", "c"])
        return {}

    await node_graph(ask).ainvoke({})
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node ask", [[CHAT, ["POST"]]] * 3]]]]
    assert recorded.attributes("invoke_node ask")["spanloom.usage.input_tokens"] == 33


async def test_an_answer_from_the_cache_used_no_tokens(recorded: Any, server: Any) -> None:
    """The second answer costs nothing, so it counts nothing."""
    model = server.model(cache=InMemoryCache())
    await model.ainvoke("hi")
    await model.ainvoke("hi")
    first, second = recorded.all(CHAT)
    assert first.attributes["gen_ai.usage.input_tokens"] == 11
    assert "gen_ai.usage.input_tokens" not in second.attributes
    assert len(server.requests) == 1


PRICES = """
[[price]]  # 每百万 token 的美元
provider = "openai"
model = "offline-2026"
input = 1
output = 10
cache_read = 0.5
"""
COST = 8e-6 + 3 * 0.5e-6 + 50e-6
"""Of 8 tokens of input, 3 cached ones and 5 of output."""


@pytest.fixture
def own_prices(tmp_path: Path) -> Iterator[None]:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES, encoding="utf-8")
    pricing.use_price_file(path)
    yield
    pricing.use_price_file(None)


def costs(recorded: Any) -> dict[str, tuple[Any, ...]]:
    """Cost and its mark by name of span, of the spans that have one."""
    found = ("spanloom.cost.usd", "spanloom.cost.partial")
    return {
        span.name: tuple(span.attributes.get(name) for name in found)
        for span in recorded.spans
        if not set(found).isdisjoint(span.attributes)
    }


@pytest.mark.usefixtures("own_prices")
@pytest.mark.parametrize("streamed", [True, False])
async def test_costs_add_up_along_the_tree(recorded: Any, server: Any, streamed: bool) -> None:
    """Each chat span has its cost, each span around it the sum, over sub-graphs and tools."""
    model = server.model(stream_usage=True)

    @tool
    async def look_up(word: str) -> str:
        """Look a word up."""
        return str((await model.ainvoke(word)).content)

    async def inner(state: State) -> State:
        return {"text": await look_up.ainvoke({"word": "hi"})}

    async def ask(state: State) -> State:
        if streamed:
            return {"text": "".join([str(chunk.content) async for chunk in model.astream("hi")])}
        return {"text": str((await model.ainvoke("hi")).content)}

    builder = StateGraph(State)
    builder.add_node("first", ask)
    builder.add_node("below", node_graph(inner))
    builder.add_edge(START, "first")
    builder.add_edge("first", "below")
    await builder.compile(name="outer").ainvoke({})

    once, twice = (pytest.approx(COST, rel=1e-9), None), (pytest.approx(2 * COST, rel=1e-9), None)
    assert costs(recorded) == {
        CHAT: once,
        "invoke_node first": once,
        "execute_tool look_up": once,
        "invoke_node ask": once,
        "invoke_workflow g": once,
        "invoke_node below": once,
        "invoke_workflow outer": twice,
    }


@pytest.mark.usefixtures("own_prices")
async def test_a_sum_without_every_price_says_so(recorded: Any, server: Any) -> None:
    """One model has a price and one has none: the node's sum is partial."""
    unpriced = ChatAnthropic(
        model="claude-offline", base_url=server.url, api_key="none", max_retries=0, max_tokens=64
    )

    async def ask(state: State) -> State:
        await server.model().ainvoke("hi")
        await unpriced.ainvoke("hi")
        return {}

    await node_graph(ask).ainvoke({})
    partial = (pytest.approx(COST, rel=1e-9), True)
    assert costs(recorded) == {
        CHAT: (pytest.approx(COST, rel=1e-9), None),
        "invoke_node ask": partial,
        "invoke_workflow g": partial,
    }


@pytest.mark.usefixtures("own_prices")
async def test_what_the_cache_and_errors_cost(recorded: Any, server: Any) -> None:
    """An answer from the cache and a refused request are free, so the sum is whole."""
    model = server.model(cache=InMemoryCache())

    async def ask(state: State) -> State:
        await model.ainvoke("hi")
        await model.ainvoke("hi")
        with pytest.raises(openai.InternalServerError):
            await server.model(model="failing").ainvoke("hi")
        return {}

    await node_graph(ask).ainvoke({})
    assert costs(recorded)["invoke_node ask"] == (pytest.approx(COST, rel=1e-9), None)
    assert len([span for span in recorded.all(CHAT) if "spanloom.cost.usd" in span.attributes]) == 1


@pytest.mark.usefixtures("own_prices")
async def test_what_is_stored_counts_each_cost_once(recorded: Any, server: Any) -> None:
    """Sums stand beside the requests they are made of; a reader adds up the requests only."""

    async def ask(state: State) -> State:
        await server.model().abatch(["a", "b"])
        return {}

    await node_graph(ask).ainvoke({})
    assert recorded.attributes("invoke_workflow g")["spanloom.cost.usd"] == pytest.approx(2 * COST)
    body = encode_spans(recorded.spans).SerializeToString()
    stored = decode_traces(body, "application/x-protobuf")
    usage = sum(map(Usage.of_span, stored.items), Usage())
    assert (usage.input_tokens, usage.output_tokens) == (22, 10)
    assert usage.cost_usd == pytest.approx(2 * COST)


async def test_structured_output_says_json(recorded: Any, server: Any) -> None:
    """response_format is the output type."""
    bound = server.model().bind(response_format={"type": "json_object"})
    await bound.ainvoke("give json")
    assert recorded.attributes(CHAT)["gen_ai.output.type"] == "json"


async def test_the_model_of_the_call_wins(recorded: Any, server: Any) -> None:
    """A model bound for one call is the model asked."""
    await server.model().bind(model="offline-large").ainvoke("hi")
    assert recorded.attributes("chat offline-large")["gen_ai.request.model"] == "offline-large"


async def test_a_chain_as_a_node(recorded: Any, server: Any) -> None:
    """A chain of runnables as a node: node span, chat span, nothing for the runnables."""
    asked = RunnableLambda(lambda state: "hi") | server.model()
    parsed = asked | StrOutputParser() | RunnableLambda(lambda text: {"text": text})
    result = await node_graph(parsed).ainvoke({})
    assert result["text"] == "你好 world"
    assert recorded.tree() == TREE


def test_no_content_is_captured(recorded: Any, server: Any) -> None:
    """No attribute or event holds a word of question or answer."""
    server.model().invoke("a secret question")
    texts = [
        str(value)
        for span in recorded.spans
        for value in (*(span.attributes or {}).values(), span.name)
    ]
    assert not [text for text in texts if "secret" in text or "你好" in text]
    assert trace.get_current_span().get_span_context().is_valid is False
