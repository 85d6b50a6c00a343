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

from spanloom.telemetry import metrics


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


@pytest.fixture
def url() -> Iterator[str]:
    config = uvicorn.Config(Starlette(routes=[Route("/", answer)]), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


async def test_a_client_that_disconnects_cancels_the_run(recorded: Any, url: str) -> None:
    """The connection is closed mid-stream: run and node end as cancelled, ERROR."""
    async with httpx2.AsyncClient() as client, client.stream("GET", url) as response:
        async for _ in response.aiter_text():
            break
    for _ in range(500):
        if recorded.all("invoke_workflow g"):
            break
        await asyncio.sleep(0.01)
    assert recorded.outcome("invoke_node endless") == ("ERROR", "cancelled")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "cancelled")


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
