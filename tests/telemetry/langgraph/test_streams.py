"""Streams: current only while the graph works, ended truly however they are left."""

import asyncio
import contextlib
import gc
import threading
from typing import Any, Literal, TypedDict

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from opentelemetry import trace


class State(TypedDict, total=False):
    text: str


def here() -> str:
    return str(getattr(trace.get_current_span(), "name", "none"))


def model(text: str = "a b c") -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(content=text)] * 9))


def graph(*, gate: asyncio.Event | None = None) -> Any:
    """Talk (a model call, then a custom event) ▸ after (waits for the gate)."""

    async def talk(state: State) -> State:
        message = await model().ainvoke("hi")
        get_stream_writer()(here())
        return {"text": message.content}

    async def after(state: State) -> State:
        if gate is not None:
            await gate.wait()
        return {"text": here()}

    builder = StateGraph(State)
    builder.add_node("talk", talk)
    builder.add_node("after", after)
    builder.add_edge(START, "talk")
    builder.add_edge("talk", "after")
    return builder.compile(name="g")


WHOLE = [["invoke_workflow g", ["invoke_node after", ["invoke_node talk", ["chat"]]]]]


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom"])
async def test_astream_in_every_mode(recorded: Any, mode: Any) -> None:
    """The tree is the same in every mode, and nothing leaks to the caller between items."""
    with recorded.tracer.start_as_current_span("request"):
        items = []
        async for item in graph().astream({}, stream_mode=mode):
            assert here() == "request"
            items.append(item)
    assert items
    if mode == "custom":
        assert items == ["invoke_node talk"]
    assert recorded.tree() == [["request", WHOLE]]
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")


def test_stream_in_every_mode(recorded: Any) -> None:
    """The same for sync graphs, several modes at once."""
    builder = StateGraph(State)
    builder.add_node("talk", lambda state: {"text": model().invoke("hi").content})
    builder.add_edge(START, "talk")
    compiled = builder.compile(name="g")
    for mode in ("values", "updates", "messages", "custom", ["values", "messages"]):
        recorded.clear()
        for _ in compiled.stream({}, stream_mode=mode):
            assert here() == "none"
        assert recorded.tree() == [["invoke_workflow g", [["invoke_node talk", ["chat"]]]]]


async def test_messages_mode_counts_the_chunks_of_a_model_that_is_invoked(recorded: Any) -> None:
    """LangGraph makes an invoked model stream for `messages`: that is on the chat span."""
    chunks = [c async for c, _ in graph().astream({}, stream_mode="messages") if c.content]
    chat = recorded.attributes("chat")
    assert chat["spanloom.stream.chunks"] == len(chunks) == 5
    assert chat["gen_ai.request.stream"] is True
    assert chat["gen_ai.response.time_to_first_chunk"] > 0


async def test_astream_events(recorded: Any) -> None:
    """astream_events runs nodes as streams: one span for each thing all the same."""
    kinds = set()
    async for event in graph().astream_events({}, version="v2"):
        kinds.add(event["event"])
        assert here() == "none"
    assert "on_chat_model_stream" in kinds
    assert recorded.tree() == WHOLE
    assert recorded.attributes("invoke_node talk")["langgraph.attempt"] == 1


@pytest.mark.skipif(not hasattr(BaseChatModel, "_iter_v2_events"), reason="only v1 and v2")
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_astream_events_v3(recorded: Any) -> None:
    """The content-block protocol, too."""
    run = await graph().astream_events({}, version="v3")
    async for _ in run:
        pass
    assert recorded.tree() == WHOLE
    assert recorded.attributes("chat")["spanloom.stream.chunks"] > 0


async def test_a_stream_read_in_another_task(recorded: Any) -> None:
    """Asked for in one task, read in another one: same tree, no context lost."""

    async def drain(stream: Any) -> None:
        async for _ in stream:
            assert here() == "request"

    with recorded.tracer.start_as_current_span("request"):
        stream = graph().astream({}, stream_mode="messages")
        await asyncio.create_task(drain(stream))
    assert recorded.tree() == [["request", WHOLE]]


async def test_a_stream_read_by_several_tasks(recorded: Any) -> None:
    """Each item asked for by a task of its own, as some servers do."""
    stream = graph().astream({})
    with contextlib.suppress(StopAsyncIteration):
        while True:
            await asyncio.create_task(stream.__anext__())
    assert recorded.tree() == WHOLE


def test_a_stream_read_in_a_bare_thread_belongs_to_who_asked_for_it(recorded: Any) -> None:
    """A thread without any context reads what a request asked for."""
    builder = StateGraph(State)
    builder.add_node("a", lambda state: {"text": here()})
    builder.add_edge(START, "a")
    compiled = builder.compile(name="g")
    with recorded.tracer.start_as_current_span("request"):
        stream = compiled.stream({})
        thread = threading.Thread(target=lambda: list(stream))
        thread.start()
        thread.join()
    assert recorded.tree() == [["request", [["invoke_workflow g", ["invoke_node a"]]]]]


async def test_a_stream_never_read_leaves_no_span(recorded: Any) -> None:
    """Nothing ran, so there is nothing to show."""
    await graph().astream({}).aclose()
    del_me = graph().astream({})
    del del_me
    assert recorded.spans == []


async def test_a_closed_stream_was_abandoned(recorded: Any) -> None:
    """After the first item: UNSET, abandoned_stream; the node that finished stays ok."""
    stream = graph(gate=asyncio.Event()).astream({}, stream_mode="updates")
    await anext(stream)
    await stream.aclose()
    assert here() == "none"
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "abandoned_stream")
    assert recorded.outcome("invoke_node talk") == ("UNSET", "ok")
    assert recorded.exceptions() == []


def test_a_closed_sync_stream_was_abandoned(recorded: Any) -> None:
    """The same for generators; one that is dropped unclosed ends as well."""
    builder = StateGraph(State)
    builder.add_node("a", lambda state: {"text": "a"})
    builder.add_node("b", lambda state: {"text": "b"})
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    compiled = builder.compile(name="g")
    stream = compiled.stream({})
    next(stream)
    stream.close()
    stream = compiled.stream({})
    next(stream)
    del stream
    gc.collect()
    outcomes = [s.attributes["spanloom.outcome"] for s in recorded.all("invoke_workflow g")]
    assert outcomes == ["abandoned_stream"] * 2


async def test_a_reader_that_breaks_off_has_abandoned_the_stream(recorded: Any) -> None:
    """`break` leaves the generator to the event loop, which closes it in a task of its own."""

    async def read_one() -> None:
        async for _ in graph(gate=asyncio.Event()).astream({}):
            break

    await read_one()
    gc.collect()
    await recorded.ended("invoke_workflow g")
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "abandoned_stream")


async def test_a_reader_cancelled_while_the_graph_works(recorded: Any) -> None:
    """The client is gone: ERROR, cancelled, on the run and on the node it cut."""

    class Gate(asyncio.Event):
        async def wait(self) -> Literal[True]:
            reached.set()
            return await super().wait()

    async def read() -> None:
        async for _ in graph(gate=Gate()).astream({}, stream_mode="updates"):
            pass

    reached = asyncio.Event()
    task = asyncio.create_task(read())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "cancelled")
    assert recorded.outcome("invoke_node after") == ("ERROR", "cancelled")
    assert recorded.outcome("invoke_node talk") == ("UNSET", "ok")
    assert recorded.attributes("invoke_node after")["error.type"] == "cancelled"
    assert recorded.exceptions() == []


async def test_a_reader_cancelled_between_two_items(recorded: Any) -> None:
    """Cancelled while it writes an item to the client: still cancelled, not abandoned."""

    async def read() -> None:
        async with contextlib.aclosing(graph().astream({})) as stream:
            async for _ in stream:
                started.set()
                await asyncio.Event().wait()

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "cancelled")


async def test_a_model_stream_is_current_only_while_the_model_works(recorded: Any) -> None:
    """Between chunks the node is current, so its own requests are not the model's."""
    between: list[str] = []

    async def talk(state: State) -> State:
        between.extend([here() async for _ in model().astream("hi")])
        return {}

    builder = StateGraph(State)
    builder.add_node("talk", talk)
    builder.add_edge(START, "talk")
    await builder.compile(name="g").ainvoke({})
    assert set(between) == {"invoke_node talk"}
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node talk", ["chat"]]]]]
    assert recorded.attributes("chat")["spanloom.stream.chunks"] == 5


async def test_an_exception_thrown_into_a_stream_reaches_the_graph(recorded: Any) -> None:
    """What is thrown in arrives where the graph waits."""
    stream = graph(gate=asyncio.Event()).astream({}, stream_mode="updates")
    await anext(stream)
    with pytest.raises(KeyError):
        await stream.athrow(KeyError("x"))
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "error")
