"""Scenarios of graphs that do what graphs mostly do."""

import asyncio
import contextlib
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.tools import tool
from langgraph.cache.memory import InMemoryCache
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import CachePolicy, Command, Send

from scoring.inside.bench import Bench
from scoring.inside.parts import State, chain, model, sync_worker, worker

MODES = ("values", "updates", "messages", "custom")


async def ainvoke(bench: Bench) -> None:
    @tool
    async def search_docs(word: str) -> str:
        """Search."""
        return await bench.awork("search_docs")

    async def look_up(state: State) -> State:
        await bench.awork("look_up")
        return {"seen": [await search_docs.ainvoke({"word": "x"})]}

    async def answer(state: State) -> State:
        return {"seen": [(await model().ainvoke("hi")).text]}

    with bench.request():
        result = await chain({"look_up": look_up, "answer": answer}).ainvoke(
            {"seen": []}, bench.config()
        )
    bench.expect(result, {"seen": ["search_docs", "a tree of spans"]})


def invoke(bench: Bench) -> None:
    @tool
    def search_docs(word: str) -> str:
        """Search."""
        return bench.work("search_docs")

    def look_up(state: State) -> State:
        bench.work("look_up")
        return {"seen": [search_docs.invoke({"word": "x"})]}

    def answer(state: State) -> State:
        return {"seen": [model().invoke("hi").text]}

    with bench.request():
        result = chain({"look_up": look_up, "answer": answer}).invoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["search_docs", "a tree of spans"]})


def talker(bench: Bench) -> Any:
    """Talk (another service, a model, a custom event), then write it down."""

    async def talk(state: State) -> State:
        await bench.awork("talk")
        message = await model().ainvoke("hi")
        get_stream_writer()("talked")
        return {"seen": [message.text]}

    return chain({"talk": talk, "write_down": worker(bench, "write_down")})


async def astream(bench: Bench) -> None:
    graph = talker(bench)
    for mode in MODES:
        items = 0
        with bench.request():
            async for _ in graph.astream({"seen": []}, bench.config(), stream_mode=mode):
                bench.at_home()
                items += 1
        bench.expect(items > 0, True)


def stream(bench: Bench) -> None:
    def talk(state: State) -> State:
        bench.work("talk")
        message = model().invoke("hi")
        get_stream_writer()("talked")
        return {"seen": [message.text]}

    graph = chain({"talk": talk, "write_down": sync_worker(bench, "write_down")})
    for mode in MODES:
        items = 0
        with bench.request():
            for _ in graph.stream({"seen": []}, bench.config(), stream_mode=mode):
                bench.at_home()
                items += 1
        bench.expect(items > 0, True)


async def events(bench: Bench) -> None:
    kinds = set()
    with bench.request():
        async for event in talker(bench).astream_events({"seen": []}, bench.config(), version="v2"):
            bench.at_home()
            kinds.add(event["event"])
    bench.expect({"on_chain_stream", "on_chat_model_end"} <= kinds, True)


async def other_task(bench: Bench) -> None:
    async def drain(items: Any) -> list[Any]:
        return [item async for item in items]

    with bench.request():
        items = talker(bench).astream({"seen": []}, bench.config(), stream_mode="updates")
        found = await asyncio.create_task(drain(items))
    bench.expect([*found[0], *found[1]], ["talk", "write_down"])


async def client_gone(bench: Bench) -> None:
    began = asyncio.Event()

    async def second_part(state: State) -> State:
        await bench.awork("second_part")
        began.set()
        await asyncio.Event().wait()
        return {}

    graph = chain({"first_part": worker(bench, "first_part"), "second_part": second_part})

    async def respond() -> None:
        with bench.request():
            async for _ in graph.astream({"seen": []}, bench.config(), stream_mode="updates"):
                bench.at_home()

    response = asyncio.create_task(respond())
    await asyncio.wait_for(began.wait(), 30)
    response.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await response
    bench.expect(response.cancelled(), True)


async def _fan_out(bench: Bench, width: int) -> None:
    builder = StateGraph(State)
    builder.add_node("price_item", worker(bench, "price_item"))
    builder.add_conditional_edges(
        START, lambda _: [Send("price_item", {"item": i}) for i in range(width)], ["price_item"]
    )
    builder.add_edge("price_item", END)
    with bench.request():
        result = await builder.compile(name="pipeline").ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["price_item"] * width})


async def fan_out(bench: Bench) -> None:
    await _fan_out(bench, 3)


async def wide_fan_out(bench: Bench) -> None:
    await _fan_out(bench, 300)


async def sub_graph(bench: Bench) -> None:
    graph = chain({"research": chain({"read_page": worker(bench, "read_page")})})
    with bench.request():
        result = await graph.ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["read_page"]})


async def nested(bench: Bench) -> None:
    inner = chain({"find_hotel": worker(bench, "find_hotel")})

    async def plan_trip(state: State) -> State:
        await bench.awork("plan_trip")
        found = await inner.ainvoke({"seen": []})
        await bench.awork("plan_trip")
        return {"seen": found["seen"]}

    with bench.request():
        result = await chain({"plan_trip": plan_trip}).ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["find_hotel"]})


async def goto(bench: Bench) -> None:
    async def triage(state: State) -> Command[Any]:
        return Command(goto="escalate", update={"seen": [await bench.awork("triage")]})

    builder = StateGraph(State)
    builder.add_node("triage", triage, destinations=("escalate",))
    builder.add_node("escalate", worker(bench, "escalate"))
    builder.add_edge(START, "triage")
    with bench.request():
        result = await builder.compile(name="pipeline").ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["triage", "escalate"]})


async def handoff(bench: Bench) -> None:
    async def leave_team(state: State) -> Command[Any]:
        update = {"seen": [await bench.awork("leave_team")]}
        return Command(goto="take_over", graph=Command.PARENT, update=update)

    builder = StateGraph(State)
    builder.add_node("team", chain({"leave_team": leave_team}), destinations=("take_over",))
    builder.add_node("take_over", worker(bench, "take_over"))
    builder.add_edge(START, "team")
    with bench.request():
        result = await builder.compile(name="pipeline").ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["leave_team", "take_over"]})


async def cached(bench: Bench) -> None:
    builder = StateGraph(State)
    builder.add_node("slow_lookup", worker(bench, "slow_lookup"), cache_policy=CachePolicy())
    builder.add_node("use_result", worker(bench, "use_result"))
    builder.add_edge(START, "slow_lookup")
    builder.add_edge("slow_lookup", "use_result")
    graph = builder.compile(name="pipeline", cache=InMemoryCache())
    for _ in range(2):
        with bench.request():
            result = await graph.ainvoke({"seen": []}, bench.config())
        bench.expect(result, {"seen": ["slow_lookup", "use_result"]})


async def deferred(bench: Bench) -> None:
    builder = StateGraph(State)
    for name in ("short_way", "long_way", "longer_way"):
        builder.add_node(name, worker(bench, name))
    builder.add_node("join_ways", worker(bench, "join_ways"), defer=True)
    builder.add_edge(START, "short_way")
    builder.add_edge(START, "long_way")
    builder.add_edge("long_way", "longer_way")
    builder.add_edge("short_way", "join_ways")
    builder.add_edge("longer_way", "join_ways")
    with bench.request():
        result = await builder.compile(name="pipeline").ainvoke({"seen": []}, bench.config())
    bench.expect(result["seen"][-1], "join_ways")
    bench.expect(len(result["seen"]), 4)


async def functional(bench: Bench) -> None:
    @task
    async def fetch_day(day: str) -> str:
        await bench.awork("fetch_day")
        return day

    @entrypoint()
    async def plan_week(days: list[str]) -> list[str]:
        found = await asyncio.gather(*(fetch_day(day) for day in days))
        await bench.awork("plan_week")
        return list(found)

    with bench.request():
        result = await plan_week.ainvoke(["Monday", "Tuesday"], bench.config())
    bench.expect(result, ["Monday", "Tuesday"])


async def threads(bench: Bench) -> None:
    @tool
    def sync_tool(word: str) -> str:
        """Run in a thread."""
        return bench.work("sync_tool")

    async def thread_step(state: State) -> State:
        await asyncio.to_thread(bench.work, "thread_step")
        return {"seen": [await sync_tool.ainvoke({"word": "x"})]}

    graph = chain({"sync_step": sync_worker(bench, "sync_step"), "thread_step": thread_step})
    with bench.request():
        result = await graph.ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": ["sync_step", "sync_tool"]})


class Many(TypedDict):
    """State of one request of many."""

    seen: Annotated[list[str], operator.add]


async def concurrent(bench: Bench) -> None:
    graph = chain({name: worker(bench, name) for name in ("step_one", "step_two")})

    async def one(number: int) -> Any:
        with bench.request():
            return await graph.ainvoke({"seen": []}, bench.config(thread_id=f"thread-{number}"))

    results = await asyncio.gather(*(one(number) for number in range(200)))
    bench.expect(results, [{"seen": ["step_one", "step_two"]}] * 200)
