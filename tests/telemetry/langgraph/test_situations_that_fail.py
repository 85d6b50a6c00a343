"""Nodes that raise, are tried again, run out of time or are cut, drawn as in test_situations."""

import asyncio
from typing import Any

import pytest
from langgraph import errors, types
from langgraph.types import RetryPolicy

from tests.telemetry.langgraph.probing import Probe
from tests.telemetry.langgraph.situations import TRIES, Bodies, State, both, chain, drawn

# newer than the oldest LangGraph that is supported
NodeError: Any = getattr(errors, "NodeError", None)
NodeTimeoutError: Any = getattr(errors, "NodeTimeoutError", None)
TimeoutPolicy: Any = getattr(types, "TimeoutPolicy", None)
has_timeouts = pytest.mark.skipif(NodeTimeoutError is None, reason="LangGraph has no node timeouts")
has_handlers = pytest.mark.skipif(NodeError is None, reason="LangGraph has no error handlers")


@both
async def test_a_node_that_raises(bodies: Bodies) -> None:
    """ERROR up to the root, the event where it happened; what ran before is ok."""
    probe = bodies.probe

    def bad(state: State) -> State:
        probe("bad")
        raise LookupError("没有")

    async def abad(state: State) -> State:
        await probe.a("bad")
        raise LookupError("没有")

    sub = chain("sub", good=bodies("good"), bad=abad if bodies.asynchronous else bad)
    with pytest.raises(LookupError):
        await bodies.run(chain("g", sub=sub), {})
    assert probe.picture() == drawn("""
        invoke_workflow g [error LookupError]
          invoke_node sub [error LookupError]
            invoke_workflow sub [error LookupError]
              invoke_node bad [error LookupError event]
                > bad
              invoke_node good
                > good
    """)


@both
async def test_a_node_that_is_tried_again(bodies: Bodies) -> None:
    """Each attempt is a span, current in that attempt only."""
    probe, tries = bodies.probe, iter(range(1, 9))

    def flaky(state: State) -> State:
        number = next(tries)
        probe(f"try-{number}")
        if number < 3:
            raise ConnectionError(number)
        return {}

    async def aflaky(state: State) -> State:
        number = next(tries)
        await probe.a(f"try-{number}")
        if number < 3:
            raise ConnectionError(number)
        return {}

    options = {"flaky": {"retry_policy": TRIES}}
    body = aflaky if bodies.asynchronous else flaky
    await bodies.run(chain("g", options=options, flaky=body, after=bodies("after")), {})
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node after
            > after
          invoke_node flaky #2 [error ConnectionError event]
            > try-2
          invoke_node flaky #3
            > try-3
          invoke_node flaky [error ConnectionError event]
            > try-1
    """)


@both
async def test_a_node_that_fails_at_every_try(bodies: Bodies) -> None:
    """The run has the error of the last attempt, and no event of its own."""
    probe, tries = bodies.probe, iter(range(1, 9))

    def down(state: State) -> State:
        probe(f"try-{next(tries)}")
        raise ConnectionError

    async def adown(state: State) -> State:
        await probe.a(f"try-{next(tries)}")
        raise ConnectionError

    options = {"down": {"retry_policy": TRIES}}
    with pytest.raises(ConnectionError):
        await bodies.run(
            chain("g", options=options, down=adown if bodies.asynchronous else down), {}
        )
    assert probe.picture() == drawn("""
        invoke_workflow g [error ConnectionError]
          invoke_node down #2 [error ConnectionError event]
            > try-2
          invoke_node down #3 [error ConnectionError event]
            > try-3
          invoke_node down [error ConnectionError event]
            > try-1
    """)


@has_timeouts
@pytest.mark.parametrize("kind", ["run_timeout", "idle_timeout"])
@pytest.mark.parametrize("retried", [False, True])
async def test_a_node_with_a_timeout(probe: Probe, kind: str, retried: bool) -> None:
    """What LangGraph gives up is a timeout, with the deadline; the next try is current anew."""
    tries = iter(range(1, 9))

    async def slow(state: State) -> State:
        number = next(tries)
        await probe.a(f"try-{number}")
        if number == 1:
            await asyncio.Event().wait()
        return {}

    policy = RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False)
    # long enough for the request before the hang, on a busy machine too
    options: dict[str, Any] = {"timeout": TimeoutPolicy(**{kind: 2.0})}
    if retried:
        options["retry_policy"] = policy
    graph = chain("g", options={"slow": options}, slow=slow)
    if retried:
        await graph.ainvoke({})
        expected = """
            invoke_workflow g
              invoke_node slow #2
                > try-2
              invoke_node slow [timeout event]
                > try-1
        """
    else:
        with pytest.raises(NodeTimeoutError):
            await graph.ainvoke({})
        expected = """
            invoke_workflow g [timeout]
              invoke_node slow [timeout event]
                > try-1
        """
    # LangGraph does not wait for the body it cancelled.
    first = await probe._recorded.ended("invoke_node slow", times=1 + retried)
    assert probe.picture() == drawn(expected)
    assert first.attributes["spanloom.deadline_ms"] == 2_000


@has_timeouts
async def test_a_node_that_keeps_its_timeout(probe: Probe) -> None:
    """A timeout that is not reached leaves no mark."""
    options = {"a": {"timeout": TimeoutPolicy(run_timeout=60.0)}}
    bodies = Bodies(probe, asynchronous=True)
    await chain("g", options=options, a=bodies("a")).ainvoke({})
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node a
            > a
    """)


@has_handlers
@both
@pytest.mark.parametrize("fails_too", [False, True], ids=["handled", "handler_fails"])
async def test_an_error_handler(bodies: Bodies, fails_too: bool) -> None:
    """It runs as a node of its own, current in its body; the node that failed stays an error."""
    probe = bodies.probe

    def bad(state: State) -> State:
        probe("bad")
        raise LookupError("x")

    async def abad(state: State) -> State:
        return bad(state)

    def handler(state: State, error: NodeError) -> State:
        assert error.node == "bad"
        probe("handler")
        if fails_too:
            raise KeyError("y")
        return {"seen": ["handled"]}

    async def ahandler(state: State, error: NodeError) -> State:
        return handler(state, error)

    options = {"bad": {"error_handler": ahandler if bodies.asynchronous else handler}}
    graph = chain("g", options=options, bad=abad if bodies.asynchronous else bad)
    if fails_too:
        with pytest.raises(KeyError):
            await bodies.run(graph, {})
        run, end = " [error KeyError]", " [error KeyError event]"
    else:
        assert (await bodies.run(graph, {}))["seen"] == ["handled"]
        run = end = ""
    assert probe.picture() == drawn(f"""
        invoke_workflow g{run}
          invoke_node __error_handler__bad{end}
            > handler
          invoke_node bad [error LookupError event]
            > bad
    """)


async def test_wait_for_around_a_run(probe: Probe) -> None:
    """The caller's own clock: what was running is cancelled, what had ended stays ok."""
    reached = asyncio.Event()

    async def slow(state: State) -> State:
        await probe.a("slow")
        reached.set()
        await asyncio.Event().wait()
        return {}

    graph = chain("g", first=Bodies(probe, asynchronous=True)("first"), slow=slow)

    async def run() -> None:
        await graph.ainvoke({})

    running = asyncio.create_task(run())
    await reached.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running, 0.01)
    assert probe.picture() == drawn("""
        invoke_workflow g [cancelled]
          invoke_node first
            > first
          invoke_node slow [cancelled]
            > slow
    """)
