"""Tools as ToolNode runs them: in parallel, in threads, with errors handled or not."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent
from langgraph.types import interrupt
from opentelemetry import trace


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], operator.add]


def here() -> str:
    return str(getattr(trace.get_current_span(), "name", "none"))


def calls(*names: str) -> State:
    """A state in which a model has asked for these tools."""
    tool_calls = [
        {"name": name, "args": {"word": str(index)}, "id": f"call-{index}", "type": "tool_call"}
        for index, name in enumerate(names)
    ]
    return {"messages": [AIMessage(content="", tool_calls=tool_calls)]}


def tool_graph(*tools: BaseTool, **options: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("tools", ToolNode(list(tools), **options))
    builder.add_edge(START, "tools")
    return builder.compile(name="g")


async def test_parallel_tool_calls(recorded: Any, server: Any) -> None:
    """Three calls at once, async and sync (in threads): each current in its own body."""

    @tool
    async def fetch(word: str) -> str:
        """Fetch."""
        await asyncio.sleep(0.01)
        await server.aget(f"fetch-{word}")
        return here()

    @tool
    def compute(word: str) -> str:
        """Compute."""
        server.get(f"compute-{word}")
        return here()

    result = await tool_graph(fetch, compute).ainvoke(calls("fetch", "compute", "fetch"))

    contents = [message.content for message in result["messages"][1:]]
    assert contents == ["execute_tool fetch", "execute_tool compute", "execute_tool fetch"]
    below = [["execute_tool compute", ["GET"]], *([["execute_tool fetch", ["GET"]]] * 2)]
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node tools", below]]]]
    assert {path: recorded.caller_of(h) for path, h in server.headers_by_path.items()} == {
        "fetch-0": "execute_tool fetch",
        "compute-1": "execute_tool compute",
        "fetch-2": "execute_tool fetch",
    }
    ids = {
        span.attributes["gen_ai.tool.call.id"]
        for span in recorded.spans
        if span.name.startswith("execute_tool")
    }
    assert ids == {"call-0", "call-1", "call-2"}


def test_parallel_tool_calls_of_a_sync_run(recorded: Any, server: Any) -> None:
    """The same in the threads of a sync run."""

    @tool
    def compute(word: str) -> str:
        """Compute."""
        server.get(f"compute-{word}")
        return here()

    tool_graph(compute).invoke(calls("compute", "compute", "compute"))
    below = [["execute_tool compute", ["GET"]]] * 3
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node tools", below]]]]


async def test_an_error_that_the_tool_node_handles_is_the_tools_own(recorded: Any) -> None:
    """The tool failed, the node turned it into a message and is ok."""

    @tool
    async def broken(word: str) -> str:
        """Break."""
        raise ValueError("no")

    result = await tool_graph(broken, handle_tool_errors=True).ainvoke(calls("broken"))
    assert result["messages"][-1].status == "error"
    assert recorded.outcome("execute_tool broken") == ("ERROR", "error")
    assert recorded.attributes("execute_tool broken")["error.type"] == "ValueError"
    assert recorded.outcome("invoke_node tools") == ("UNSET", "ok")
    assert recorded.exceptions() == [("execute_tool broken", "ValueError")]


async def test_a_tool_that_asks_a_human_is_interrupted(recorded: Any) -> None:
    """interrupt() inside a tool: no error anywhere."""

    @tool
    async def ask(word: str) -> str:
        """Ask."""
        return str(interrupt("may I?"))

    builder = StateGraph(State)
    builder.add_node("tools", ToolNode([ask]))
    builder.add_edge(START, "tools")
    graph = builder.compile(name="g", checkpointer=InMemorySaver())
    await graph.ainvoke(calls("ask"), {"configurable": {"thread_id": "t"}})
    assert {s.attributes["spanloom.outcome"] for s in recorded.spans} == {"interrupted"}
    assert {s.status.status_code.name for s in recorded.spans} == {"UNSET"}
    assert len(recorded.spans) == 3


async def test_a_tool_made_of_a_graph(recorded: Any) -> None:
    """A tool that runs a graph: workflow below the tool, its tokens on the tool."""

    async def inner(state: State) -> State:
        return {"messages": [AIMessage(content=here())]}

    builder = StateGraph(State)
    builder.add_node("inner", inner)
    builder.add_edge(START, "inner")
    sub = builder.compile(name="sub")

    async def ask_expert(word: str) -> str:
        result = await sub.ainvoke({"messages": []})
        return str(result["messages"][-1].content)

    expert = StructuredTool.from_function(
        coroutine=ask_expert, name="expert", description="Asks an expert."
    )
    result = await tool_graph(expert).ainvoke(calls("expert"))
    assert result["messages"][-1].content == "invoke_node inner"
    below = [["execute_tool expert", [["invoke_workflow sub", ["invoke_node inner"]]]]]
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node tools", below]]]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_tokens_of_a_model_called_in_a_tool(recorded: Any, server: Any) -> None:
    """The sums go up the whole way, and to the tool."""

    @tool
    async def ask(word: str) -> str:
        """Ask."""
        return str((await server.model().ainvoke(word)).content)

    await tool_graph(ask).ainvoke(calls("ask", "ask"))
    sums = [
        s.attributes["spanloom.usage.input_tokens"]
        for s in recorded.spans
        if "spanloom.usage.input_tokens" in s.attributes
    ]
    assert sums == [22, 22, 11, 11]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_prebuilt_agent_is_an_agent(recorded: Any, server: Any) -> None:
    """create_react_agent: invoke_agent, and its tools say who executes them."""

    @tool
    async def compute(word: str) -> str:
        """Compute."""
        return word

    agent = create_react_agent(server.model(), [compute], name="helper")
    await agent.ainvoke({"messages": [("user", "hi")]})
    assert recorded.tree() == [
        ["invoke_agent helper", [["invoke_node agent", [["chat offline-small", ["POST"]]]]]]
    ]
    assert recorded.attributes("invoke_agent helper")["gen_ai.agent.name"] == "helper"
    assert recorded.attributes("invoke_agent helper")["spanloom.usage.output_tokens"] == 5
