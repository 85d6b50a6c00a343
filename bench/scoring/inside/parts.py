"""What the scenarios are built from."""

import operator
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.language_models.chat_models import LangSmithParams
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import START, StateGraph

from scoring.inside.bench import Bench


class State(TypedDict, total=False):
    """What the nodes hand on."""

    seen: Annotated[list[str], operator.add]
    item: int


Body = Callable[..., Any]


def worker(bench: Bench, unit: str) -> Body:
    """Make a node that calls another service, and says that it was there."""

    async def body(state: State) -> State:
        return {"seen": [await bench.awork(unit)]}

    return body


def sync_worker(bench: Bench, unit: str) -> Body:
    """The same as a sync function."""

    def body(state: State) -> State:
        return {"seen": [bench.work(unit)]}

    return body


def chain(nodes: dict[str, Any], *, options: dict[str, Any] | None = None, **compiled: Any) -> Any:
    """Compile a graph that runs the nodes one after the other; `options` are for each node."""
    builder = StateGraph(State)
    before = START
    for name, body in nodes.items():
        builder.add_node(name, body, **(options or {}))
        builder.add_edge(before, name)
        before = name
    return builder.compile(name="pipeline", **compiled)


class ToolModel(GenericFakeChatModel):
    """A stand-in that takes tools, and says of itself what a client of a provider says."""

    model_name: str = "offline-small"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        del stop, kwargs
        return LangSmithParams(
            ls_provider="openai", ls_model_name=self.model_name, ls_model_type="chat"
        )

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        del tools, kwargs
        return self


def model(tokens: tuple[int, int] = (11, 5), *, asks: Sequence[dict[str, Any]] = ()) -> ToolModel:
    """Make a model that first asks for these tools, if there are any, and then answers."""
    given, taken = tokens
    usage: Any = {"input_tokens": given, "output_tokens": taken, "total_tokens": given + taken}
    answer = AIMessage(content="a tree of spans", usage_metadata=usage)
    messages = [answer] * 9
    if asks:
        messages.insert(0, AIMessage(content="", tool_calls=list(asks), usage_metadata=usage))
    return ToolModel(messages=iter(messages))
