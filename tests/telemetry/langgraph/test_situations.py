"""Every way a node can run: the tree, the current span, what left the process, how it ended.

Each body probes (`probing`), and each test compares the whole picture: spans, outcomes, attempts,
exception events, and requests drawn as `> label` below the span that was current in the body.
"""

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy, Command, Send, interrupt
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from tests.telemetry.langgraph.probing import Probe
from tests.telemetry.langgraph.situations import TRIES, Bodies, State, both, chain, drawn

MODES: list[Any] = [
    "values",
    "updates",
    "messages",
    "custom",
    "checkpoints",
    "tasks",
    "debug",
    ["values", "updates", "messages", "custom", "checkpoints", "tasks", "debug"],
]
STREAMED = """
    request
      > between
      invoke_workflow outer
        invoke_node first
          > first
        invoke_node sub
          invoke_workflow sub
            invoke_node inner
              > inner
"""


def nested(make: Any) -> Any:
    return chain("outer", first=make("first"), sub=chain("sub", inner=make("inner")))


@both
@pytest.mark.parametrize("subgraphs", [False, True], ids=["", "subgraphs"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode if isinstance(mode, str) else "all")
async def test_streams_in_every_mode(
    recorded: Any, bodies: Bodies, mode: Any, subgraphs: bool
) -> None:
    """The tree is the same, and between two items the caller's span is current."""
    graph = nested(bodies)
    graph.checkpointer = InMemorySaver()
    config = {"configurable": {"thread_id": "t"}}
    options = {"stream_mode": mode, "subgraphs": subgraphs}
    count = 0
    with recorded.tracer.start_as_current_span("request"):
        if bodies.asynchronous:
            async for _ in graph.astream({}, config, **options):
                count += 1
                if count == 1:
                    await bodies.probe.a("between")
        else:
            for _ in graph.stream({}, config, **options):
                count += 1
                if count == 1:
                    bodies.probe("between")
        if not count:  # nothing was written that these modes show
            assert mode in {"messages", "custom"}
            bodies.probe("between")
    assert bodies.probe.picture() == drawn(STREAMED)


@pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_events_of_a_stream(recorded: Any, probe: Probe, version: Any) -> None:
    """astream_events runs each node as a stream: the same tree."""
    count = 0
    with recorded.tracer.start_as_current_span("request"):
        bodies = Bodies(probe, asynchronous=True)
        async for _ in nested(bodies).astream_events({}, version=version):
            count += 1
            if count == 1:
                await probe.a("between")
    assert probe.picture() == drawn(STREAMED)


async def test_a_stream_drained_by_another_task(recorded: Any, probe: Probe) -> None:
    """Made here, read there: its requests still leave from its own nodes."""

    async def drain(stream: AsyncIterator[Any]) -> None:
        async for _ in stream:
            pass
        await probe.a("between")

    with recorded.tracer.start_as_current_span("request"):
        stream = nested(Bodies(probe, asynchronous=True)).astream({})
        await asyncio.create_task(drain(stream))
    assert probe.picture() == drawn(STREAMED)


def test_a_stream_drained_by_another_thread(recorded: Any, probe: Probe) -> None:
    """A thread without any context reads what a request asked for."""

    def drain(stream: Iterator[Any]) -> None:
        for _ in stream:
            pass

    with recorded.tracer.start_as_current_span("request"):
        stream = nested(Bodies(probe, asynchronous=False)).stream({})
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(drain, stream).result()
        probe("between")
    assert probe.picture() == drawn(STREAMED)


@both
@pytest.mark.parametrize("width", [3, 300])
async def test_fan_out(bodies: Bodies, width: int) -> None:
    """Each branch of Send is a node of its own, and each request leaves from its own branch."""
    probe = bodies.probe

    def work(state: State) -> State:
        return {"seen": [probe(f"branch-{state['item']:03}")]}

    async def awork(state: State) -> State:
        return {"seen": [await probe.a(f"branch-{state['item']:03}")]}

    builder = StateGraph(State)
    builder.add_node("work", awork if bodies.asynchronous else work)
    builder.add_conditional_edges(
        START, lambda state: [Send("work", {"item": i}) for i in range(width)], ["work"]
    )
    result = await bodies.run(builder.compile(name="fan"), {})
    assert len(set(result["seen"])) == width
    branches = [f"  invoke_node work\n    > branch-{number:03}" for number in range(width)]
    assert probe.picture() == "\n".join(["invoke_workflow fan", *branches])


@both
async def test_graphs_in_graphs(bodies: Bodies) -> None:
    """As a node, invoked by a node, and three deep: each run a workflow below its node."""
    deepest = chain("deepest", bottom=bodies("bottom"))
    as_node = chain("middle", deep=deepest)
    called = chain("called", inner=bodies("inner"))

    def calls(state: State) -> State:
        called.invoke({})
        return {"seen": [bodies.probe("calls")]}

    async def acalls(state: State) -> State:
        await called.ainvoke({})
        return {"seen": [await bodies.probe.a("calls")]}

    graph = chain("outer", one=as_node, two=acalls if bodies.asynchronous else calls)
    await bodies.run(graph, {})
    assert bodies.probe.picture() == drawn("""
        invoke_workflow outer
          invoke_node one
            invoke_workflow middle
              invoke_node deep
                invoke_workflow deepest
                  invoke_node bottom
                    > bottom
          invoke_node two
            > calls
            invoke_workflow called
              invoke_node inner
                > inner
    """)


@both
async def test_interrupt_and_resume(bodies: Bodies) -> None:
    """Paused is no error; resumed, the node runs anew, linked to the run it goes on from."""
    probe, asked = bodies.probe, iter(range(1, 9))

    def ask(state: State) -> State:
        probe(f"asked-{next(asked)}")
        return {"seen": [interrupt("which?")]}

    async def aask(state: State) -> State:
        await probe.a(f"asked-{next(asked)}")
        return {"seen": [interrupt("which?")]}

    graph = chain("g", first=bodies("first"), ask=aask if bodies.asynchronous else ask)
    graph.checkpointer = InMemorySaver()
    config = {"configurable": {"thread_id": "t"}}
    await bodies.run(graph, {}, config)
    assert probe.picture() == drawn("""
        invoke_workflow g [interrupted]
          invoke_node ask [interrupted]
            > asked-1
          invoke_node first
            > first
    """)
    paused = probe._recorded.one("invoke_workflow g").context
    probe.clear()
    result = await bodies.run(graph, Command(resume="这个"), config)
    assert result["seen"] == ["first", "这个"]
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node ask
            > asked-2
    """)
    (link,) = probe._recorded.one("invoke_workflow g").links
    assert (link.context.trace_id, link.context.span_id) == (paused.trace_id, paused.span_id)


@both
async def test_goto_and_handoff(bodies: Bodies) -> None:
    """Control flow is no error: goto is ok, leaving for the parent graph a handoff."""
    probe = bodies.probe

    def going(label: str, command: Command[Any]) -> Any:
        def body(state: State) -> Command[Any]:
            probe(label)
            return command

        async def abody(state: State) -> Command[Any]:
            await probe.a(label)
            return command

        return abody if bodies.asynchronous else body

    sub = chain("sub", leave=going("leave", Command(goto="other", graph=Command.PARENT)))
    builder = StateGraph(State)
    builder.add_node("start", going("start", Command(goto="agent")), destinations=("agent",))
    builder.add_node("agent", sub, destinations=("other",))
    builder.add_node("other", bodies("other"))
    builder.add_node("never", bodies("never"))
    builder.add_edge(START, "start")
    builder.add_conditional_edges("other", lambda state: END, [END, "never"])
    await bodies.run(builder.compile(name="g"), {})
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node agent [handoff]
            invoke_workflow sub [handoff]
              invoke_node leave [handoff]
                > leave
          invoke_node other
            > other
          invoke_node start
            > start
    """)


@both
async def test_runtime_cache_and_defer(bodies: Bodies) -> None:
    """A node with a runtime, one whose answer is cached, and one that waits for all branches."""
    probe = bodies.probe
    round_ = 0

    def who(state: State, runtime: Runtime[dict[str, str]]) -> State:
        return {"seen": [probe(f"{runtime.context['user']}-{round_}")]}

    async def awho(state: State, runtime: Runtime[dict[str, str]]) -> State:
        return {"seen": [await probe.a(f"{runtime.context['user']}-{round_}")]}

    builder = StateGraph(State, context_schema=dict)
    builder.add_node("who", awho if bodies.asynchronous else who)
    builder.add_node("cached", bodies("cached"), cache_policy=CachePolicy(key_func=lambda _: "k"))
    joined = iter(["join-0", "join-1"])
    builder.add_node("join", lambda state: {"seen": [probe(next(joined))]}, defer=True)
    for node in ("who", "cached"):
        builder.add_edge(START, node)
        builder.add_edge(node, "join")
    graph = builder.compile(name="g", cache=InMemoryCache())

    await bodies.run(graph, {}, context={"user": "li"})
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node cached
            > cached
          invoke_node join
            > join-0
          invoke_node who
            > li-0
    """)
    probe.clear()
    round_ = 1
    await bodies.run(graph, {}, context={"user": "li"})
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node join
            > join-1
          invoke_node who
            > li-1
    """)


@both
async def test_the_functional_interface(bodies: Bodies) -> None:
    """An entrypoint is a workflow with one node; its tasks run below it, at once, tried again."""
    probe, tries = bodies.probe, iter(range(1, 9))

    def fetch(word: str) -> str:
        return probe(word)

    async def afetch(word: str) -> str:
        return await probe.a(word)

    def flaky() -> str:
        number = next(tries)
        probe(f"try-{number}")
        if number == 1:
            raise ConnectionError
        return "ok"

    async def aflaky() -> str:
        return flaky()

    fetching = task(afetch if bodies.asynchronous else fetch, name="fetch")
    trying = task(aflaky if bodies.asynchronous else flaky, name="flaky", retry_policy=TRIES)

    def flow(words: list[str]) -> list[str]:
        futures = [fetching(word) for word in words]
        probe("flow")
        return [*(future.result() for future in futures), trying().result()]

    async def aflow(words: list[str]) -> list[str]:
        found = await asyncio.gather(*(fetching(word) for word in words))
        await probe.a("flow")
        return [*found, await trying()]

    aflow.__name__ = "flow"
    graph = entrypoint()(aflow if bodies.asynchronous else flow)
    assert await bodies.run(graph, ["a", "b"]) == ["a", "b", "ok"]
    assert probe.picture() == drawn("""
        invoke_workflow flow
          invoke_node flow
            > flow
            invoke_node fetch
              > a
            invoke_node fetch
              > b
            invoke_node flaky #2
              > try-2
            invoke_node flaky [error ConnectionError event]
              > try-1
    """)


async def test_to_thread(probe: Probe) -> None:
    """asyncio.to_thread takes the node's span along, several at once, and gives it back."""

    async def node(state: State) -> State:
        await asyncio.gather(*(asyncio.to_thread(probe, f"thread-{n}") for n in range(3)))
        return {"seen": [await probe.a("after")]}

    await chain("g", a=node, b=lambda state: {"seen": [probe("b")]}).ainvoke({})
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node a
            > after
            > thread-0
            > thread-1
            > thread-2
          invoke_node b
            > b
    """)


@both
async def test_a_bare_thread_pool(bodies: Bodies) -> None:
    """With the threading instrumentation a pool of the application's own keeps the span."""
    probe = bodies.probe
    with concurrent.futures.ThreadPoolExecutor(2) as pool:

        def node(state: State) -> State:
            return {"seen": list(pool.map(probe, ["w0", "w1", "w2"]))}

        async def anode(state: State) -> State:
            loop = asyncio.get_running_loop()
            labels = ("w0", "w1", "w2")
            futures = [loop.run_in_executor(pool, probe, label) for label in labels]
            return {"seen": await asyncio.gather(*futures)}

        ThreadingInstrumentor().instrument()
        try:
            await bodies.run(chain("g", a=anode if bodies.asynchronous else node), {})
        finally:
            ThreadingInstrumentor().uninstrument()
    assert probe.picture() == drawn("""
        invoke_workflow g
          invoke_node a
            > w0
            > w1
            > w2
    """)


@both
@pytest.mark.parametrize("requests", [2, 200])
async def test_concurrent_requests(recorded: Any, bodies: Bodies, requests: int) -> None:
    """All at once, each in its own trace, as tasks and as threads."""
    probe = bodies.probe

    def node(state: State) -> State:
        return {"seen": [probe(f"r{state['item']:03}")]}

    async def anode(state: State) -> State:
        await asyncio.sleep(0)
        return {"seen": [await probe.a(f"r{state['item']:03}")]}

    graph = chain("g", a=anode if bodies.asynchronous else node)

    async def request(number: int) -> None:
        with recorded.tracer.start_as_current_span(f"request {number:03}"):
            await graph.ainvoke({"item": number})

    def in_thread(number: int) -> None:
        with recorded.tracer.start_as_current_span(f"request {number:03}"):
            graph.invoke({"item": number})

    if bodies.asynchronous:
        await asyncio.gather(*(request(number) for number in range(requests)))
    else:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(in_thread, range(requests)))
    assert probe.picture() == "\n".join(
        f"request {n:03}\n  invoke_workflow g\n    invoke_node a\n      > r{n:03}"
        for n in range(requests)
    )
    assert len({span.context.trace_id for span in recorded.spans}) == requests
