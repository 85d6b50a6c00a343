"""A resumed run links to the run it goes on from, also in another process."""

import operator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from spanloom.telemetry.langgraph import LangGraphInstrumentor, resume


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]


async def first(state: State) -> State:
    return {"seen": ["first"]}


async def ask(state: State) -> State:
    return {"seen": [interrupt("which?")]}


def graph(checkpointer: Any, body: Any = ask) -> Any:
    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("ask", body)
    builder.add_edge(START, "first")
    builder.add_edge("first", "ask")
    return builder.compile(name="g", checkpointer=checkpointer)


CONFIG = {"configurable": {"thread_id": "t"}}


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
async def test_a_resumed_run_links_to_the_interrupted_one(
    recorded: Any, tmp_path: Path, durability: Any
) -> None:
    """Through a SQLite file that is opened anew, as another process would."""
    path = str(tmp_path / "checkpoints.db")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        await graph(saver).ainvoke({}, CONFIG, durability=durability)
    paused = recorded.one("invoke_workflow g")
    assert paused.links == ()
    recorded.clear()

    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        result = await graph(saver).ainvoke(Command(resume="this"), CONFIG, durability=durability)
        snapshot = await graph(saver).aget_state(CONFIG)
    assert result["seen"] == ["first", "this"]
    resumed = recorded.one("invoke_workflow g")
    (link,) = resumed.links
    assert link.context.trace_id == paused.context.trace_id
    assert link.context.span_id == paused.context.span_id
    assert dict(link.attributes or {}) == {"spanloom.link.kind": "resumed_from"}
    assert resumed.context.trace_id != paused.context.trace_id
    assert set(snapshot.values) == {"seen"}, "no channel of ours in the state"
    between = (resumed.start_time - paused.end_time) / 1e6
    whole = (resumed.end_time - paused.start_time) / 1e6
    assert between - 1 <= resumed.attributes["spanloom.resume.waited_ms"] <= whole
    assert "spanloom.resume.waited_ms" not in paused.attributes


async def test_a_resumed_sub_graph_links_to_its_own_earlier_run(recorded: Any) -> None:
    """Graph and sub-graph each link to their own kind."""
    builder = StateGraph(State)
    builder.add_node("sub", graph(None))
    builder.add_edge(START, "sub")
    outer = builder.compile(name="outer", checkpointer=InMemorySaver())
    await outer.ainvoke({}, CONFIG)
    before = {s.name: s.context.span_id for s in recorded.spans}
    recorded.clear()
    await outer.ainvoke(Command(resume="this"), CONFIG)
    for name in ("invoke_workflow outer", "invoke_workflow g"):
        (link,) = recorded.one(name).links
        assert link.context.span_id == before[name]


async def test_a_new_question_in_a_thread_is_no_resume(recorded: Any) -> None:
    """The next turn of a conversation is a run of its own."""
    talk = graph(InMemorySaver(), body=first)
    await talk.ainvoke({}, CONFIG)
    await talk.ainvoke({}, CONFIG)
    assert [span.links for span in recorded.all("invoke_workflow g")] == [(), ()]


@pytest.mark.parametrize(
    "value",
    [
        "",
        7,
        None,
        {"a": 1},
        "00-0-0-01",
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
        f"00-{'A' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'1' * 16}-01\n",
        f"00-{'1' * 32}-{'1' * 16}-01" + "x" * 1000,
    ],
)
async def test_what_somebody_else_wrote_is_not_believed(recorded: Any, value: Any) -> None:
    """Anything but a traceparent in the checkpoint's metadata is ignored."""
    assert await links_after(recorded, value) == []


async def test_a_traceparent_is_all_that_is_read(recorded: Any) -> None:
    """The counterpart of the test above: the same place, a valid value."""
    links = await links_after(recorded, f"00-{'1' * 32}-{'2' * 16}-01")
    assert links == [(int("1" * 32, 16), int("2" * 16, 16))]


async def links_after(recorded: Any, value: Any) -> list[tuple[int, int]]:
    """Interrupt a run, change what its checkpoints say, resume it: ids of the links."""
    saver = InMemorySaver()
    paused = graph(saver)
    await paused.ainvoke({}, CONFIG)
    for checkpoints in saver.storage["t"].values():
        for checkpoint_id, (checkpoint, metadata, parent) in checkpoints.items():
            loaded = saver.serde.loads_typed(metadata)
            loaded[resume.METADATA_KEY] = value
            checkpoints[checkpoint_id] = (checkpoint, saver.serde.dumps_typed(loaded), parent)
    recorded.clear()
    result = await paused.ainvoke(Command(resume="this"), CONFIG)
    assert result["seen"] == ["first", "this"]
    found = recorded.one("invoke_workflow g").links
    return [(link.context.trace_id, link.context.span_id) for link in found]


async def test_an_unsampled_run_leaves_no_name(recorded: Any) -> None:
    """A link to a trace that was not kept would be dead."""
    LangGraphInstrumentor().uninstrument()
    LangGraphInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    paused = graph(InMemorySaver())
    await paused.ainvoke({}, CONFIG)
    snapshot = await paused.aget_state(CONFIG)
    assert resume.METADATA_KEY not in (snapshot.metadata or {})
