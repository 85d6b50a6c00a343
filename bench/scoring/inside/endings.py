"""Scenarios that end otherwise than well, or not yet."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from langchain_core.tools import tool
from langgraph import types
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, RetryPolicy, interrupt

from scoring.inside.bench import Bench, NotPossibleError
from scoring.inside.parts import State, chain

CUT_AFTER_S = 5
"""Long enough for a node to have begun, also where the machine is busy."""


async def raised_by(work: Awaitable[Any]) -> str:
    """Name the type of what comes out of a piece of work."""
    try:
        await work
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is compared
        return type(exc).__name__
    return "nothing"


async def raises(bench: Bench) -> None:
    async def charge_card(state: State) -> State:
        await bench.awork("charge_card")
        raise LookupError("no such card")

    with bench.request():
        raised = await raised_by(
            chain({"charge_card": charge_card}).ainvoke({"seen": []}, bench.config())
        )
    bench.expect(raised, "LookupError")


async def retry(bench: Bench) -> None:
    attempts: list[int] = []

    async def flaky_call(state: State) -> State:
        attempts.append(1)
        await bench.awork("flaky_call")
        if len(attempts) < 3:
            raise ConnectionError(f"attempt {len(attempts)}")
        return {"seen": ["done"]}

    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False)
    graph = chain({"flaky_call": flaky_call}, options={"retry_policy": policy})
    with bench.request():
        result = await graph.ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["done"]})


def slow(bench: Bench) -> Any:
    """A node that never comes back."""

    async def slow_query(state: State) -> State:
        await bench.awork("slow_query")
        await asyncio.Event().wait()
        return {}

    return slow_query


async def timeout(bench: Bench) -> None:
    policy = getattr(types, "TimeoutPolicy", None)
    if policy is None:
        raise NotPossibleError("this LangGraph has no timeouts of nodes")
    options = {"timeout": policy(run_timeout=CUT_AFTER_S)}
    with bench.request():
        work = chain({"slow_query": slow(bench)}, options=options).ainvoke(
            {"seen": []}, bench.config()
        )
        raised = await raised_by(work)
    bench.expect(raised, "NodeTimeoutError")


async def wait_for(bench: Bench) -> None:
    with bench.request():
        work = chain({"slow_query": slow(bench)}).ainvoke({"seen": []}, bench.config())
        raised = await raised_by(asyncio.wait_for(work, CUT_AFTER_S))
    bench.expect(raised, "TimeoutError")


async def interrupted(bench: Bench) -> None:
    async def ask_human(state: State) -> State:
        await bench.awork("ask_human")
        return {"seen": [interrupt("which one?")]}

    graph = chain({"ask_human": ask_human}, checkpointer=InMemorySaver())
    with bench.request():
        config = bench.config(thread_id="conversation-7")
        paused = await graph.ainvoke({"seen": []}, config)
    bench.expect([one.value for one in paused["__interrupt__"]], ["which one?"])
    with bench.request():
        config = bench.config(thread_id="conversation-7")
        result = await graph.ainvoke(Command(resume="this one"), config)
    bench.expect(result["seen"], ["this one"])


async def hangs(bench: Bench) -> None:
    @tool
    async def wait_long(word: str) -> str:
        """Wait for what does not come."""
        await bench.awork("wait_long")
        await bench.hang("wait_long")
        return "came"

    async def fetch_stock(state: State) -> State:
        return {"seen": [await wait_long.ainvoke({"word": "x"})]}

    with bench.request():
        result = await chain({"fetch_stock": fetch_stock}).ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["came"]})
