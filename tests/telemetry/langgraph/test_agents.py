"""Agents of langchain: `create_agent` as what is run, and as a node of another graph."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from opentelemetry import trace

create_agent = pytest.importorskip("langchain.agents", reason="no langchain").create_agent


class ToolModel(GenericFakeChatModel):
    """Asks for two tools at once, then answers."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self


def agent(server: Any) -> Any:
    calls = [
        {"name": name, "args": {"word": name}, "id": f"call-{name}", "type": "tool_call"}
        for name in ("fetch", "compute")
    ]
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    asks = AIMessage(content="", tool_calls=calls, usage_metadata=usage)
    answers = AIMessage(content="好", usage_metadata=usage)

    def here() -> str:
        return str(getattr(trace.get_current_span(), "name", "none"))

    @tool
    async def fetch(word: str) -> str:
        """Fetch."""
        await asyncio.sleep(0.01)
        await server.aget("fetch")
        return here()

    @tool
    def compute(word: str) -> str:
        """Compute, in a thread."""
        server.get("compute")
        return here()

    model = ToolModel(messages=iter([asks, answers]))
    return create_agent(model, [fetch, compute], name="helper")


AGENT = [
    "invoke_agent helper",
    sorted(
        [
            ["invoke_node model", ["chat"]],
            ["invoke_node model", ["chat"]],
            ["invoke_node tools", [["execute_tool compute", ["GET"]]]],
            ["invoke_node tools", [["execute_tool fetch", ["GET"]]]],
        ],
        key=str,
    ),
]


def check(recorded: Any, server: Any, result: Any) -> None:
    said = {m.name: m.content for m in result["messages"] if m.type == "tool"}
    assert said == {"fetch": "execute_tool fetch", "compute": "execute_tool compute"}
    assert {path: recorded.caller_of(h) for path, h in server.headers_by_path.items()} == {
        "fetch": "execute_tool fetch",
        "compute": "execute_tool compute",
    }
    agent_span = recorded.attributes("invoke_agent helper")
    assert agent_span["gen_ai.agent.name"] == "helper"
    assert agent_span["spanloom.usage.input_tokens"] == 14
    assert recorded.attributes("execute_tool fetch")["gen_ai.agent.name"] == "helper"
    assert {(span.attributes or {}).get("spanloom.outcome") for span in recorded.spans} <= {
        "ok",
        None,
    }


async def test_an_agent_is_what_is_run(recorded: Any, server: Any) -> None:
    """Root `invoke_agent`; two tools at once, each current in its own body."""
    result = await agent(server).ainvoke({"messages": [("user", "hi")]})
    check(recorded, server, result)
    assert recorded.tree() == [AGENT]


async def test_an_agent_is_a_node(recorded: Any, server: Any) -> None:
    """The compiled agent as a node: `invoke_agent` below the node, once."""
    builder = StateGraph(MessagesState)
    builder.add_node("ask", agent(server))
    builder.add_edge(START, "ask")
    result = await builder.compile(name="g").ainvoke({"messages": [("user", "hi")]})
    check(recorded, server, result)
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node ask", [AGENT]]]]]
