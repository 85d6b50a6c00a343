"""The graph, and one run of it.

route ─┬▸ retrieve ─┐
       ├▸ retrieve ─┼▸ rerank ▸ tools ▸ generate ⇄ reflect ▸ end
       └▸ retrieve ─┘
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy, Send

from service.agent.nodes import Nodes, Redraft, Token
from service.agent.state import AgentState, RunContext, SearchInput, Usage, new_turn
from service.errors import is_worth_retrying
from service.retrieval_client import RetrievalClient
from service.settings import Settings

GRAPH_NAME: Final = "agent"
_RETRY_PAUSE_S: Final = 0.2

Emit = Callable[[Token | Redraft], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run produced."""

    text: str
    sources: Sequence[str]
    usage: Usage


class Agent:
    """The compiled graph, with and without memory."""

    def __init__(
        self,
        *,
        large: BaseChatModel,
        small: BaseChatModel,
        retrieval: RetrievalClient,
        settings: Settings,
        checkpointer: BaseCheckpointSaver[str],
    ) -> None:
        nodes = Nodes(large=large, small=small, retrieval=retrieval, settings=settings)
        builder = _build(nodes, attempts=settings.step_attempts)
        self._remembering = builder.compile(checkpointer=checkpointer, name=GRAPH_NAME)
        self._forgetful = builder.compile(name=GRAPH_NAME)
        # route, retrieve, rerank, tools, then generate and reflect per round; and one to spare
        self._recursion_limit = 5 + 2 * (settings.max_reflections + 1)

    async def run(self, question: str, *, thread_id: str | None, emit: Emit) -> Answer:
        """Answer one question; `emit` sees every piece of the answer as it is written.

        `thread_id` names the conversation to remember; None remembers nothing. The caller
        makes sure that one thread has one run at a time.
        """
        context = RunContext()
        durability: Literal["exit"] | None = None
        config: RunnableConfig = {"recursion_limit": self._recursion_limit}
        graph = self._forgetful
        if thread_id is not None:
            graph = self._remembering
            # One checkpoint a turn: a run that was cut leaves no half turn behind, and the state
            # of every step on disk would help nobody.
            durability = "exit"
            config["configurable"] = {"thread_id": thread_id}
        state: dict[str, Any] = {}
        # typed as a plain iterator, though it is a generator that must be closed
        stream = cast(
            "AsyncGenerator[tuple[str, Any]]",
            graph.astream(
                new_turn(question),
                config,
                context=context,
                stream_mode=["custom", "values"],
                durability=durability,
            ),
        )
        async with aclosing(stream):
            async for mode, part in stream:
                if mode == "custom":
                    emit(part)
                else:
                    state = part
        return Answer(state["answer"], state["sources"], context.usage)


def _build(nodes: Nodes, *, attempts: int) -> StateGraph[AgentState, RunContext]:
    def fan_out(state: AgentState) -> list[Send]:
        return [Send("retrieve", SearchInput(query=query)) for query in state["sub_queries"]]

    def after_generate(state: AgentState) -> str:
        return "reflect" if nodes.may_reflect(state) else END

    def after_reflect(state: AgentState) -> str:
        return "generate" if state["missing"] else END

    # The SDKs' own retries are off: two layers of them multiply. LangGraph's jitter is up to a
    # second, too long to make a caller wait for what is usually a dropped connection.
    retries = RetryPolicy(
        max_attempts=attempts,
        initial_interval=_RETRY_PAUSE_S,
        jitter=False,
        retry_on=is_worth_retrying,
    )
    builder = StateGraph(AgentState, context_schema=RunContext)
    builder.add_node("route", nodes.route, retry_policy=retries)
    builder.add_node("retrieve", nodes.retrieve, input_schema=SearchInput, retry_policy=retries)
    builder.add_node("rerank", nodes.rerank, retry_policy=retries)
    builder.add_node("tools", nodes.tools, retry_policy=retries)
    builder.add_node("generate", nodes.generate, retry_policy=retries)
    builder.add_node("reflect", nodes.reflect, retry_policy=retries)
    builder.add_edge(START, "route")
    builder.add_conditional_edges("route", fan_out, ["retrieve"])
    builder.add_edge("retrieve", "rerank")
    builder.add_edge("rerank", "tools")
    builder.add_edge("tools", "generate")
    builder.add_conditional_edges("generate", after_generate, ["reflect", END])
    builder.add_conditional_edges("reflect", after_reflect, ["generate", END])
    return builder
