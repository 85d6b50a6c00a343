"""The agent that every tracer is measured on: plain LangGraph, no tracing in it.

    route ──▶ retrieve ×3 (Send) ──▶ tools ──▶ generate ──▶ route … or the end
     chat                             tool       chat

One round is 9 units and the run itself one more, so 1, 11 and 111 rounds are runs of 10, 100 and
1,000 spans. No I/O and a model that answers at once: what is left is LangGraph and the tracer.
Imported in each peer's own environment, so it needs LangGraph and langchain-core only.
"""

import operator
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

SPANS_PER_ROUND = 9
BRANCHES = 3
SIZES = {"64 B": 64, "20 kB": 20_000}
THREAD_ID = "thread-1"
RESPONSE_ID = "chatcmpl-1"
RESPONSE_MODEL = "gpt-4o-mini-2024-07-18"
USAGE = {"input_tokens": 11, "output_tokens": 7}


def latest(_: str, new: str) -> str:
    return new


class State(TypedDict, total=False):
    """What the nodes share; `documents` has the size under test, in every round."""

    question: str
    documents: Annotated[str, latest]
    answer: str
    rounds_left: int
    retrieved: Annotated[int, operator.add]


class InstantModel(BaseChatModel):
    """Answers at once, with everything a provider's answer carries."""

    model_name: str = "gpt-4o-mini"
    temperature: float = 0.2
    max_tokens: int = 256
    openai_api_base: str = "https://api.openai.com/v1"

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        del stop, kwargs
        return LangSmithParams(
            ls_provider="openai",
            ls_model_name=self.model_name,
            ls_model_type="chat",
            ls_temperature=self.temperature,
            ls_max_tokens=self.max_tokens,
        )

    def _result(self) -> ChatResult:
        message = AIMessage(
            "It saves the keys and values of the tokens before.",
            id=RESPONSE_ID,
            usage_metadata={**USAGE, "total_tokens": sum(USAGE.values())},
            response_metadata={"model_name": RESPONSE_MODEL, "finish_reason": "stop"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, run_manager, kwargs
        return self._result()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, run_manager, kwargs
        return self._result()


@tool
async def lookup(word: str) -> str:
    """Look a word up."""
    return word


class Agent:
    """The bodies of the nodes."""

    def __init__(self) -> None:
        self.model = InstantModel()

    async def ask(self, prompt: str) -> AIMessage:
        return await self.model.ainvoke(prompt)

    async def look_up(self) -> Any:
        call = {"name": "lookup", "args": {"word": "cache"}, "id": "call_1", "type": "tool_call"}
        return await lookup.ainvoke(call)

    async def route(self, state: State, config: RunnableConfig) -> State:
        del config
        await self.ask(state["question"])
        return {"rounds_left": state["rounds_left"] - 1}

    async def retrieve(self, state: State, config: RunnableConfig) -> State:
        del config
        return {"documents": state["documents"], "retrieved": 1}

    async def tools(self, state: State, config: RunnableConfig) -> State:
        del state, config
        await self.look_up()
        return {}

    async def generate(self, state: State, config: RunnableConfig) -> State:
        del config
        message = await self.ask(f"{state['question']}\n{state['documents']}")
        return {"answer": str(message.content)}

    async def run(self, graph: Any, state: State, config: RunnableConfig) -> Any:
        return await graph.ainvoke(state, config)


def _fan_out(state: State) -> Sequence[Send]:
    return [Send("retrieve", state) for _ in range(BRANCHES)]


def _again(state: State) -> str:
    return "route" if state["rounds_left"] else END


class Workload:
    """The compiled graph of an agent, and one way to run it."""

    def __init__(self, agent: Agent, *, spans: int, state_bytes: int) -> None:
        self._agent = agent
        rounds, rest = divmod(spans - 1, SPANS_PER_ROUND)
        if rest:
            raise ValueError(f"a run has 1 + {SPANS_PER_ROUND} n spans, not {spans}")
        self._input = State(
            question="What does a KV cache save?",
            documents="x" * state_bytes,
            rounds_left=rounds,
            retrieved=0,
        )
        self._steps = 4 * rounds + 2
        builder = StateGraph(State)
        builder.add_node("route", agent.route)
        builder.add_node("retrieve", agent.retrieve)
        builder.add_node("tools", agent.tools)
        builder.add_node("generate", agent.generate)
        builder.add_edge(START, "route")
        builder.add_conditional_edges("route", _fan_out, ["retrieve"])
        builder.add_edge("retrieve", "tools")
        builder.add_edge("tools", "generate")
        builder.add_conditional_edges("generate", _again, ["route", END])
        self._graph: Any = builder.compile(name="rag")

    async def run(self, runs: int = 1, callbacks: Any = None) -> None:
        """Run the graph a number of times, one after the other.

        `callbacks` makes the callback handlers of a run, for tracers that need one each time.
        """
        for _ in range(runs):
            config = RunnableConfig(
                configurable={"thread_id": THREAD_ID}, recursion_limit=self._steps
            )
            if callbacks is not None:
                config["callbacks"] = callbacks()
            await self._agent.run(self._graph, self._input, config)
