"""The functional API: an entrypoint is a workflow, each task a node below who called it."""

import asyncio
from typing import Any

from langgraph.func import entrypoint, task
from langgraph.types import RetryPolicy
from opentelemetry import trace


def here() -> str:
    return str(getattr(trace.get_current_span(), "name", "none"))


async def test_async_entrypoint_and_tasks(recorded: Any, server: Any) -> None:
    """Tasks run at once, each current in its own body."""

    @task
    async def fetch(word: str) -> str:
        await server.aget(word)
        return here()

    @entrypoint()
    async def flow(words: list[str]) -> list[str]:
        found = await asyncio.gather(*(fetch(word) for word in words))
        return [*found, here()]

    result = await flow.ainvoke(["a", "b"])

    assert result == ["invoke_node fetch", "invoke_node fetch", "invoke_node flow"]
    assert recorded.tree() == [
        ["invoke_workflow flow", [["invoke_node flow", [["invoke_node fetch", ["GET"]]] * 2]]]
    ]
    assert {recorded.caller_of(h) for h in server.headers_by_path.values()} == {"invoke_node fetch"}


def test_sync_entrypoint_and_tasks(recorded: Any, server: Any) -> None:
    """The same in threads."""

    @task
    def fetch(word: str) -> str:
        server.get(word)
        return here()

    @entrypoint()
    def flow(words: list[str]) -> list[str]:
        return [future.result() for future in [fetch(word) for word in words]]

    assert flow.invoke(["a", "b"]) == ["invoke_node fetch"] * 2
    assert recorded.tree() == [
        ["invoke_workflow flow", [["invoke_node flow", [["invoke_node fetch", ["GET"]]] * 2]]]
    ]


async def test_a_task_that_is_retried(recorded: Any) -> None:
    """One span for each attempt of a task."""
    tries: list[int] = []

    @task(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False))
    async def flaky() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("once")
        return here()

    @entrypoint()
    async def flow(_: Any) -> str:
        return await flaky()

    assert await flow.ainvoke("go") == "invoke_node flaky"
    attempts = recorded.all("invoke_node flaky")
    assert [s.attributes["langgraph.attempt"] for s in attempts] == [1, 2]
    assert [s.attributes["spanloom.outcome"] for s in attempts] == ["error", "ok"]
    assert {recorded.parent(s) for s in attempts} == {"invoke_node flow"}
