"""Graphs whose bodies probe (`probing`), in the colour that is asked for."""

import operator
from inspect import cleandoc
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy

from tests.telemetry.langgraph.probing import Probe

TRIES = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False)
both = pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    item: int


def drawn(text: str) -> str:
    return cleandoc(text)


def chain(name: str, *, options: Any = None, **nodes: Any) -> Any:
    """The nodes one after the other, not yet compiled to be added to."""
    builder = StateGraph(State)
    before = START
    for node, body in nodes.items():
        builder.add_node(node, body, **((options or {}).get(node) or {}))
        builder.add_edge(before, node)
        before = node
    return builder.compile(name=name)


class Bodies:
    """Makes node bodies that probe under their own name, in the colour that is asked for."""

    def __init__(self, probe: Probe, *, asynchronous: bool) -> None:
        self.probe = probe
        self.asynchronous = asynchronous

    def __call__(self, label: str) -> Any:
        def body(state: State) -> State:
            return {"seen": [self.probe(label)]}

        async def abody(state: State) -> State:
            return {"seen": [await self.probe.a(label)]}

        return abody if self.asynchronous else body

    async def run(self, graph: Any, *args: Any, **kwargs: Any) -> Any:
        if self.asynchronous:
            return await graph.ainvoke(*args, **kwargs)
        return graph.invoke(*args, **kwargs)
