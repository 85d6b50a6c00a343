"""Graphs behind a real HTTP server: clients that go away, and the metrics of what ran."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypedDict

import httpx2
import pytest
import uvicorn
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from spanloom.telemetry import estimate, metrics


class State(TypedDict, total=False):
    text: str


async def endless(state: State) -> State:
    writer = get_stream_writer()
    while True:
        writer("tick")
        await asyncio.sleep(0.01)


async def answer(request: Request) -> StreamingResponse:
    builder = StateGraph(State)
    builder.add_node("endless", endless)
    builder.add_edge(START, "endless")
    graph = builder.compile(name="g")

    queue: asyncio.Queue[str] = asyncio.Queue()

    async def read() -> None:
        async for item in graph.astream({}, stream_mode="custom"):
            await queue.put(str(item))

    async def body() -> AsyncIterator[str]:
        # A task of its own, because Starlette's cancel scope cancels again and again, which cuts
        # LangGraph's own clean-up short: the node would run on for ever, as its open span shows.
        run = asyncio.create_task(read())
        try:
            while True:
                yield await queue.get()
        finally:
            run.cancel()

    return StreamingResponse(body())


async def ask_the_model(request: Request) -> StreamingResponse:
    """The model's tokens as they come, read in a task of its own or by the answer itself."""
    model = request.app.state.model

    async def talk(state: State) -> State:
        try:
            return {"text": (await model.ainvoke("hi")).text}
        finally:
            request.app.state.over.set()

    builder = StateGraph(State)
    builder.add_node("talk", talk)
    builder.add_edge(START, "talk")
    graph = builder.compile(name="g")

    async def tokens() -> AsyncIterator[str]:
        stream: AsyncIterator[Any] = graph.astream({}, stream_mode="messages")
        async for message, _ in stream:
            if message.content:
                yield str(message.content)

    async def from_a_task() -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()

        async def read() -> None:
            async for token in tokens():
                await queue.put(token)

        run = asyncio.create_task(read())
        try:
            while True:
                yield await queue.get()
        finally:
            run.cancel()

    own_task = request.path_params["how"] == "task"
    return StreamingResponse(from_a_task() if own_task else tokens())


@pytest.fixture
def over() -> threading.Event:
    """Set when the body of the node that asks the model has been left, however that was."""
    return threading.Event()


@pytest.fixture
def url(server: Any, over: threading.Event) -> Iterator[str]:
    app = Starlette(routes=[Route("/", answer), Route("/model/{how}", ask_the_model)])
    app.state.model = server.model(model="stalling", stream_usage=True)
    app.state.over = over
    config = uvicorn.Config(app, port=0, log_level="warning")
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    while not serving.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = serving.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    serving.should_exit = True
    thread.join(10)


async def test_a_client_that_disconnects_cancels_the_run(recorded: Any, url: str) -> None:
    """The connection is closed mid-stream: run and node end as cancelled, ERROR."""
    async with httpx2.AsyncClient() as client, client.stream("GET", url) as response:
        async for _ in response.aiter_text():
            break
    await recorded.ended("invoke_workflow g")
    assert recorded.outcome("invoke_node endless") == ("ERROR", "cancelled")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "cancelled")


async def read_two_tokens(url: str) -> None:
    async with httpx2.AsyncClient() as client, client.stream("GET", url) as response:
        text = ""
        async for part in response.aiter_text():
            text += part
            if text == "你好":
                break  # the model says no more, and nobody waits for it


async def test_a_client_that_disconnects_in_a_model_call(recorded: Any, url: str) -> None:
    """Everything it cut is cancelled, and the chat span keeps what had been streamed until then."""
    loading = estimate.load()
    assert loading is not None
    loading.join()
    await read_two_tokens(f"{url}model/task")
    run = await recorded.ended("invoke_workflow g")
    chat = await recorded.ended("chat stalling")
    for name in ("invoke_workflow g", "invoke_node talk", "chat stalling"):
        assert recorded.outcome(name) == ("ERROR", "cancelled")
    assert recorded.exceptions() == []
    assert chat.context.trace_id == run.context.trace_id
    assert recorded.parent(chat) == "invoke_node talk"
    assert chat.attributes["spanloom.stream.chunks"] == 2
    assert chat.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert chat.attributes["spanloom.usage.estimated"] is True
    assert run.attributes["spanloom.usage.output_tokens"] > 0


async def test_what_goes_on_without_its_client_is_shown_as_going_on(
    recorded: Any, url: str, server: Any, over: threading.Event
) -> None:
    """The run is over, and its node is when it is.

    Where the graph's stream is the answer itself, Starlette's cancelling cuts LangGraph's own
    clean-up short, and the node stays in its model call.
    """
    await read_two_tokens(f"{url}model/answer")
    run = await recorded.ended("invoke_workflow g")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "cancelled")
    assert bool(recorded.all("invoke_node talk")) is over.is_set()
    server.release.set()  # the model ends what it says, and the node learns of it
    node = await recorded.ended("invoke_node talk")
    assert over.is_set()
    assert node.parent.span_id == run.context.span_id
    assert recorded.parent(recorded.one("chat stalling")) == "invoke_node talk"


async def test_metrics_point_to_the_span_that_was_measured(recorded: Any) -> None:
    """The exemplar of a tool's counter is the tool's own span."""

    @tool
    async def measured_here_only(word: str) -> str:
        """Do nothing."""
        return word

    await measured_here_only.ainvoke({"word": "x"})
    body, _ = metrics.render("application/openmetrics-text; version=1.0.0")
    (line,) = re.findall(
        r'agent_tool_calls_total\{status="ok",tool="measured_here_only".*', body.decode()
    )
    context = recorded.one("execute_tool measured_here_only").context
    assert f'trace_id="{context.trace_id:032x}"' in line
    assert f'span_id="{context.span_id:016x}"' in line
