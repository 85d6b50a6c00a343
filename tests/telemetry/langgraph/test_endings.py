"""Endings are true: what failed, what was cut, what only paused."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import ToolException, tool
from langgraph import errors, types
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt
from opentelemetry import trace

from spanloom.telemetry.endings import deadline

# newer than the oldest LangGraph that is supported
NodeError: Any = getattr(errors, "NodeError", None)
NodeTimeoutError: Any = getattr(errors, "NodeTimeoutError", None)
TimeoutPolicy: Any = getattr(types, "TimeoutPolicy", None)
has_timeouts = pytest.mark.skipif(NodeTimeoutError is None, reason="LangGraph has no node timeouts")
has_node_cancelled = pytest.mark.skipif(
    not hasattr(errors, "NodeCancelledError"), reason="LangGraph takes it for its own cancel"
)
has_handlers = pytest.mark.skipif(NodeError is None, reason="LangGraph has no error handlers")


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]


def chain(name: str, *, checkpointer: Any = None, options: Any = None, **nodes: Any) -> Any:
    builder = StateGraph(State)
    before = START
    for node, body in nodes.items():
        builder.add_node(node, body, **(options or {}))
        builder.add_edge(before, node)
        before = node
    return builder.compile(name=name, checkpointer=checkpointer)


async def test_a_node_that_raises_is_named_and_has_the_only_exception_event(recorded: Any) -> None:
    """ERROR on node and run; the event on the innermost span that saw it."""

    async def bad(state: State) -> State:
        raise LookupError("nothing there")

    with pytest.raises(LookupError):
        await chain("g", bad=bad).ainvoke({})
    assert recorded.exceptions() == [("invoke_node bad", "LookupError")]
    assert recorded.outcome("invoke_node bad") == ("ERROR", "error")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "error")
    assert recorded.attributes("invoke_workflow g")["error.type"] == "LookupError"
    assert recorded.one("invoke_node bad").status.description == "nothing there"


def test_the_event_is_on_the_tool_where_the_tool_raised(recorded: Any) -> None:
    """Sync, through a sub-graph: one event for five spans."""

    @tool
    def broken(word: str) -> str:
        """Break."""
        raise ValueError("no")

    sub = chain("sub", inner=lambda state: broken.invoke({"word": "x"}))
    with pytest.raises(ValueError, match="no"):
        chain("outer", node=sub).invoke({})
    assert recorded.exceptions() == [("execute_tool broken", "ValueError")]
    assert {s.status.status_code.name for s in recorded.spans} == {"ERROR"}
    assert len(recorded.spans) == 5


async def test_a_failing_branch_cancels_the_others(recorded: Any) -> None:
    """The branch that failed is the error; those LangGraph cut are cancelled."""
    other_runs = asyncio.Event()

    async def bad(state: State) -> State:
        await other_runs.wait()
        raise LookupError("x")

    async def slow(state: State) -> State:
        other_runs.set()
        await asyncio.Event().wait()
        return {}

    builder = StateGraph(State)
    builder.add_node("bad", bad)
    builder.add_node("slow", slow)
    builder.add_edge(START, "bad")
    builder.add_edge(START, "slow")
    with pytest.raises(LookupError):
        await builder.compile(name="g").ainvoke({})
    assert recorded.outcome("invoke_node bad") == ("ERROR", "error")
    assert recorded.outcome("invoke_node slow") == ("ERROR", "cancelled")
    assert recorded.exceptions() == [("invoke_node bad", "LookupError")]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_each_attempt_of_a_retried_node_is_a_span(recorded: Any, asynchronous: bool) -> None:
    """Two failures, then success: three spans that say which attempt they are."""
    calls: list[int] = []

    def body(state: State) -> State:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError(f"try {len(calls)}")
        return {"seen": [str(getattr(trace.get_current_span(), "name", ""))]}

    async def abody(state: State) -> State:
        return body(state)

    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False)
    graph = chain("g", options={"retry_policy": policy}, flaky=abody if asynchronous else body)
    result = await graph.ainvoke({}) if asynchronous else graph.invoke({})

    assert result["seen"] == ["invoke_node flaky"]
    attempts = recorded.all("invoke_node flaky")
    assert [s.attributes["langgraph.attempt"] for s in attempts] == [1, 2, 3]
    assert [s.attributes["spanloom.outcome"] for s in attempts] == ["error", "error", "ok"]
    assert [len(s.events) for s in attempts] == [1, 1, 0]
    assert {recorded.parent(s) for s in attempts} == {"invoke_workflow g"}
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")


@has_timeouts
async def test_a_node_timeout_is_a_timeout_for_everything_it_cut(recorded: Any) -> None:
    """NodeTimeoutError: node, tool in it and run are timeouts; one event, on the node."""

    @tool
    async def slow(word: str) -> str:
        """Wait."""
        await asyncio.Event().wait()
        return ""

    async def node(state: State) -> State:
        await slow.ainvoke({"word": "x"})
        return {}

    graph = chain("g", options={"timeout": TimeoutPolicy(run_timeout=1.0)}, node=node)
    with pytest.raises(NodeTimeoutError):
        await graph.ainvoke({})
    await recorded.ended("invoke_node node")  # LangGraph does not wait for the body it cancelled

    for name in ("execute_tool slow", "invoke_node node", "invoke_workflow g"):
        assert recorded.outcome(name) == ("ERROR", "timeout"), name
    assert recorded.exceptions() == [("invoke_node node", "langgraph.errors.NodeTimeoutError")]
    assert recorded.attributes("invoke_node node")["spanloom.deadline_ms"] == 1_000
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node node", ["execute_tool slow"]]]]]


@has_timeouts
async def test_a_node_timeout_that_is_retried(recorded: Any) -> None:
    """The attempt that was given up is a timeout, the next one ok, and so the run."""
    calls: list[int] = []

    async def node(state: State) -> State:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return {}

    options = {
        "timeout": TimeoutPolicy(run_timeout=1.0),
        "retry_policy": RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False),
    }
    await chain("g", options=options, node=node).ainvoke({})
    attempts = recorded.all("invoke_node node")
    assert [s.attributes["spanloom.outcome"] for s in attempts] == ["timeout", "ok"]
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")


async def test_wait_for_around_a_run_cancels_it(recorded: Any) -> None:
    """The caller's own clock: cancelled everywhere below, no exception event."""

    async def slow(state: State) -> State:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(chain("g", slow=slow).ainvoke({}), 1)
    assert recorded.outcome("invoke_node slow") == ("ERROR", "cancelled")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "cancelled")
    assert recorded.exceptions() == []


async def test_a_deadline_around_a_run_is_a_timeout(recorded: Any) -> None:
    """`deadline()` says so on each span it cuts."""

    async def slow(state: State) -> State:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(TimeoutError):
        async with deadline(1):
            await chain("g", slow=slow).ainvoke({})
    for name in ("invoke_node slow", "invoke_workflow g"):
        assert recorded.outcome(name) == ("ERROR", "timeout")
        assert recorded.attributes(name)["spanloom.deadline_ms"] == 1_000


@has_node_cancelled
async def test_a_node_that_raises_cancelled_itself_has_failed_for_the_run(recorded: Any) -> None:
    """LangGraph turns it into NodeCancelledError; the node says what it saw."""

    async def node(state: State) -> State:
        raise asyncio.CancelledError

    with pytest.raises(Exception, match="CancelledError"):
        await chain("g", node=node).ainvoke({})
    assert recorded.outcome("invoke_node node") == ("ERROR", "cancelled")
    assert recorded.outcome("invoke_workflow g") == ("ERROR", "error")


async def test_interrupt_and_resume_are_no_error(recorded: Any) -> None:
    """Human in the loop: node and run are interrupted, UNSET; the resumed run is ok."""

    async def ask(state: State) -> State:
        return {"seen": [interrupt("which one?")]}

    graph = chain("g", checkpointer=InMemorySaver(), ask=ask)
    config = {"configurable": {"thread_id": "t"}}
    paused = await graph.ainvoke({}, config)
    assert "__interrupt__" in paused
    assert recorded.outcome("invoke_node ask") == ("UNSET", "interrupted")
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "interrupted")
    assert recorded.exceptions() == []

    recorded.clear()
    result = await graph.ainvoke(Command(resume="this"), config)
    assert result["seen"] == ["this"]
    assert recorded.tree() == [["invoke_workflow g", ["invoke_node ask"]]]
    assert recorded.outcome("invoke_node ask") == ("UNSET", "ok")
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")


@pytest.mark.parametrize("mode", ["values", "custom"])
def test_an_interrupt_in_a_sub_graph_pauses_the_whole_run(recorded: Any, mode: Any) -> None:
    """Sync, as a stream that does not show the interrupt: all four spans are interrupted."""
    sub = chain("sub", ask=lambda state: {"seen": [interrupt("?")]})
    graph = chain("outer", checkpointer=InMemorySaver(), node=sub)
    list(graph.stream({}, {"configurable": {"thread_id": "t"}}, stream_mode=mode))
    assert len(recorded.spans) == 4
    assert {s.attributes["spanloom.outcome"] for s in recorded.spans} == {"interrupted"}
    assert {s.status.status_code.name for s in recorded.spans} == {"UNSET"}


async def test_a_static_breakpoint_pauses_the_run(recorded: Any) -> None:
    """interrupt_before: no node saw it, the run is interrupted."""

    async def node(state: State) -> State:
        return {}

    graph = chain("g", checkpointer=InMemorySaver(), a=node, b=node)
    await graph.ainvoke({}, {"configurable": {"thread_id": "t"}}, interrupt_before=["b"])
    assert recorded.tree() == [["invoke_workflow g", ["invoke_node a"]]]
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "interrupted")
    assert recorded.outcome("invoke_node a") == ("UNSET", "ok")


async def test_a_handoff_to_the_parent_graph_is_no_error(recorded: Any) -> None:
    """Command(graph=PARENT) leaves the sub-graph: handoff, UNSET, and the target runs."""

    async def leave(state: State) -> Command[Any]:
        return Command(goto="other", graph=Command.PARENT, update={"seen": ["left"]})

    sub = chain("sub", leave=leave)
    builder = StateGraph(State)
    builder.add_node("agent", sub, destinations=("other",))
    builder.add_node("other", lambda state: {"seen": ["other"]})
    builder.add_edge(START, "agent")
    result = await builder.compile(name="g").ainvoke({})

    assert result["seen"] == ["left", "other"]
    assert recorded.tree() == [
        [
            "invoke_workflow g",
            [
                ["invoke_node agent", [["invoke_workflow sub", ["invoke_node leave"]]]],
                "invoke_node other",
            ],
        ]
    ]
    for name in ("invoke_node leave", "invoke_workflow sub", "invoke_node agent"):
        assert recorded.outcome(name) == ("UNSET", "handoff"), name
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")


async def test_too_many_steps_is_an_error_of_the_run(recorded: Any) -> None:
    """GraphRecursionError: no node failed, the run did."""
    builder = StateGraph(State)
    builder.add_node("a", lambda state: {"seen": ["a"]})
    builder.add_edge(START, "a")
    builder.add_edge("a", "a")
    with pytest.raises(GraphRecursionError):
        await builder.compile(name="g").ainvoke({}, {"recursion_limit": 3})
    assert recorded.exceptions() == [("invoke_workflow g", "langgraph.errors.GraphRecursionError")]
    assert {s.attributes["spanloom.outcome"] for s in recorded.all("invoke_node a")} == {"ok"}


@has_handlers
async def test_an_error_handler_runs_as_a_node(recorded: Any) -> None:
    """The node failed, its handler ran, the run is ok."""

    async def bad(state: State) -> State:
        raise LookupError("x")

    async def handler(state: State, error: NodeError) -> State:
        return {"seen": ["handled"]}

    graph = chain("g", options={"error_handler": handler}, bad=bad)
    result = await graph.ainvoke({})
    assert result["seen"] == ["handled"]
    assert recorded.outcome("invoke_node bad") == ("ERROR", "error")
    assert recorded.outcome("invoke_workflow g") == ("UNSET", "ok")
    assert len(recorded.spans) == 3


async def test_a_tool_that_reports_its_error_has_failed(recorded: Any) -> None:
    """handle_tool_error: the caller gets a message with status error, the span is an error."""

    @tool
    async def refuse(word: str) -> str:
        """Refuse."""
        raise ToolException("not today")

    refuse.handle_tool_error = True
    call = {"type": "tool_call", "id": "call-1", "name": "refuse", "args": {"word": "x"}}
    message = await refuse.ainvoke(call)
    assert message.status == "error"
    assert recorded.outcome("execute_tool refuse") == ("ERROR", "error")
    assert recorded.attributes("execute_tool refuse")["gen_ai.tool.call.id"] == "call-1"
    assert recorded.attributes("execute_tool refuse")["error.type"] == "tool_error"


class FailingModel(GenericFakeChatModel):
    """A model whose second chunk never comes."""

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        yield ChatGenerationChunk(message=AIMessageChunk(content="a"))
        raise ConnectionError("reset by peer")

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("refused")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_model_that_fails_has_the_exception_event(recorded: Any, streamed: bool) -> None:
    """ERROR on chat, node and run; a cut stream keeps the chunks it had."""
    model = FailingModel(messages=iter([AIMessage(content="a b")]))

    async def node(state: State) -> State:
        if streamed:
            async for _ in model.astream("hi"):
                pass
        else:
            await model.ainvoke("hi")
        return {}

    with pytest.raises(ConnectionError):
        await chain("g", node=node).ainvoke({})
    chat = recorded.attributes("chat")
    assert chat["gen_ai.response.finish_reasons"] == ("error",)
    assert chat["error.type"] == "ConnectionError"
    assert chat.get("spanloom.stream.chunks") == (1 if streamed else None)
    assert recorded.exceptions() == [("chat", "ConnectionError")]
    assert {s.status.status_code.name for s in recorded.spans} == {"ERROR"}
