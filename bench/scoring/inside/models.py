"""Scenarios of agents and of real model clients."""

import asyncio
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from scoring.inside.bench import Bench
from scoring.inside.parts import State, chain, model
from scoring.inside.server import ANSWER, STALLING


async def agent(bench: Bench) -> None:
    @tool
    async def fetch_page(word: str) -> str:
        """Fetch."""
        return await bench.awork("fetch_page")

    @tool
    def sum_up(word: str) -> str:
        """Sum up, in a thread."""
        return bench.work("sum_up")

    asks = [
        {"name": name, "args": {"word": "x"}, "id": f"call-{name}", "type": "tool_call"}
        for name in ("fetch_page", "sum_up")
    ]
    helper = create_agent(model((7, 2), asks=asks), [fetch_page, sum_up], name="helper")
    with bench.request():
        result = await helper.ainvoke({"messages": [("user", "hi")]}, bench.config())
    said = sorted(message.text for message in result["messages"] if message.type == "tool")
    bench.expect(said, ["fetch_page", "sum_up"])


def _client(bench: Bench, name: str) -> Any:
    return ChatOpenAI(
        model=name,
        api_key="none",
        base_url=f"{bench.server.url}/v1",
        max_retries=0,
        stream_usage=True,
    )


async def openai(bench: Bench) -> None:
    async def reply(state: State) -> State:
        parts = [part.text async for part in _client(bench, "offline-small").astream("hi")]
        return {"seen": ["".join(parts)]}

    with bench.request():
        result = await chain({"reply": reply}).ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["".join(ANSWER)]})


async def openai_cut(bench: Bench) -> None:
    parts: list[str] = []
    three = asyncio.Event()

    async def reply(state: State) -> State:
        async for part in _client(bench, STALLING).astream("hi"):
            parts.append(part.text)
            if "".join(parts) == "".join(ANSWER[:3]):
                three.set()
        return {}

    async def respond() -> None:
        with bench.request():
            await chain({"reply": reply}).ainvoke({"seen": []}, bench.config())

    bench.server.release.clear()
    response = asyncio.create_task(respond())
    try:
        await asyncio.wait_for(three.wait(), 30)
        response.cancel()
        await asyncio.wait([response], timeout=30)
    finally:
        bench.server.release.set()
    bench.expect((response.cancelled(), "".join(parts)), (True, "".join(ANSWER[:3])))
