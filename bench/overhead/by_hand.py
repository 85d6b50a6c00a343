"""The same agent with the same spans and attributes, written by hand with the bare SDK.

It is the cheapest that hand-written spans can be: what the agent's author knows beforehand (names,
models, what a call costs, how many calls there are) is written as it is and not found out.
"""

from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from opentelemetry.trace import SpanKind, Tracer

from overhead.workload import SPANS_PER_ROUND, THREAD_ID, USAGE, Agent, State

_CALL_USD = (USAGE["input_tokens"] * 0.15 + USAGE["output_tokens"] * 0.6) / 1e6
_CALLS_PER_ROUND = 2


def _sums(calls: int) -> dict[str, Any]:
    return {
        "spanloom.usage.input_tokens": calls * USAGE["input_tokens"],
        "spanloom.usage.output_tokens": calls * USAGE["output_tokens"],
        "spanloom.cost.usd": round(calls * _CALL_USD, 12),
    }


class ByHand(Agent):
    """Opens a span around each unit."""

    def __init__(self, tracer: Tracer, *, spans: int) -> None:
        super().__init__()
        self._tracer = tracer
        self._calls = (spans - 1) // SPANS_PER_ROUND * _CALLS_PER_ROUND

    async def run(self, graph: Any, state: State, config: RunnableConfig) -> Any:
        with self._tracer.start_as_current_span(
            "invoke_workflow rag",
            attributes={
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": "rag",
                "gen_ai.conversation.id": THREAD_ID,
            },
        ) as span:
            result = await graph.ainvoke(state, config)
            span.set_attributes(_sums(self._calls))
            span.set_attribute("spanloom.outcome", "ok")
        return result

    def _node(self, name: str, config: RunnableConfig) -> Any:
        metadata = config["metadata"]
        return self._tracer.start_as_current_span(
            f"invoke_node {name}",
            attributes={
                "gen_ai.operation.name": "invoke_node",
                "gen_ai.node.name": name,
                "langgraph.attempt": 1,
                "langgraph.step": metadata["langgraph_step"],
                "langgraph.triggers": metadata["langgraph_triggers"],
                "langgraph.checkpoint_ns": metadata["langgraph_checkpoint_ns"],
                "gen_ai.conversation.id": THREAD_ID,
            },
        )

    async def route(self, state: State, config: RunnableConfig) -> State:
        with self._node("route", config) as span:
            result = await super().route(state, config)
            span.set_attributes(_sums(1))
            span.set_attribute("spanloom.outcome", "ok")
        return result

    async def retrieve(self, state: State, config: RunnableConfig) -> State:
        with self._node("retrieve", config) as span:
            result = await super().retrieve(state, config)
            span.set_attribute("spanloom.outcome", "ok")
        return result

    async def tools(self, state: State, config: RunnableConfig) -> State:
        with self._node("tools", config) as span:
            result = await super().tools(state, config)
            span.set_attribute("spanloom.outcome", "ok")
        return result

    async def generate(self, state: State, config: RunnableConfig) -> State:
        with self._node("generate", config) as span:
            result = await super().generate(state, config)
            span.set_attributes(_sums(1))
            span.set_attribute("spanloom.outcome", "ok")
        return result

    async def ask(self, prompt: str) -> AIMessage:
        model = self.model
        with self._tracer.start_as_current_span(
            f"chat {model.model_name}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": model.model_name,
                "gen_ai.conversation.id": THREAD_ID,
                "server.address": "api.openai.com",
                "server.port": 443,
                "gen_ai.request.temperature": model.temperature,
                "gen_ai.request.max_tokens": model.max_tokens,
            },
        ) as span:
            message = await super().ask(prompt)
            metadata = message.response_metadata
            usage = message.usage_metadata
            assert usage is not None
            span.set_attributes(
                {
                    "gen_ai.response.model": metadata["model_name"],
                    "gen_ai.response.id": str(message.id),
                    "gen_ai.usage.input_tokens": usage["input_tokens"],
                    "gen_ai.usage.output_tokens": usage["output_tokens"],
                    "gen_ai.response.finish_reasons": [metadata["finish_reason"]],
                    "spanloom.cost.usd": _CALL_USD,
                    "spanloom.outcome": "ok",
                }
            )
        return message

    async def look_up(self) -> Any:
        with self._tracer.start_as_current_span(
            "execute_tool lookup",
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "lookup",
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": "call_1",
                "gen_ai.conversation.id": THREAD_ID,
            },
        ) as span:
            result = await super().look_up()
            span.set_attribute("spanloom.outcome", "ok")
        return result
