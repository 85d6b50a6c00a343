"""The span of a unit is current in its body, and what leaves the process names it."""

import asyncio
import concurrent.futures
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send
from opentelemetry import trace
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from spanloom.telemetry.manual import llm_call, use_tracer_provider
from spanloom.telemetry.manual import tool as manual_tool
from spanloom.telemetry.usage import add_usage


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    item: int
    items: list[int]


def here() -> str:
    """Name of the current span."""
    return str(getattr(trace.get_current_span(), "name", "none"))


def chain(name: str, **nodes: Any) -> Any:
    """A graph that runs the given nodes one after the other."""
    builder = StateGraph(State)
    before = START
    for node, body in nodes.items():
        builder.add_node(node, body)
        builder.add_edge(before, node)
        before = node
    return builder.compile(name=name)


async def test_ainvoke_makes_each_unit_current_in_its_body(recorded: Any, server: Any) -> None:
    """Async: node and tool are current inside, and each request out carries their id."""

    @tool
    async def look(word: str) -> str:
        """Look it up."""
        await server.aget("tool")
        return here()

    async def ask(state: State) -> State:
        await server.aget("node")
        return {"seen": [here(), await look.ainvoke({"word": "x"}), here()]}

    result = await chain("g", ask=ask).ainvoke({}, {"configurable": {"thread_id": "t-1"}})

    assert result["seen"] == ["invoke_node ask", "execute_tool look", "invoke_node ask"]
    assert recorded.tree() == [
        ["invoke_workflow g", [["invoke_node ask", ["GET", ["execute_tool look", ["GET"]]]]]]
    ]
    assert recorded.caller_of(server.headers_by_path["node"]) == "invoke_node ask"
    assert recorded.caller_of(server.headers_by_path["tool"]) == "execute_tool look"
    node = recorded.attributes("invoke_node ask")
    assert node.pop("langgraph.checkpoint_ns").startswith("ask:")
    assert node == {
        "gen_ai.operation.name": "invoke_node",
        "gen_ai.node.name": "ask",
        "gen_ai.conversation.id": "t-1",
        "langgraph.step": 1,
        "langgraph.attempt": 1,
        "langgraph.triggers": ("branch:to:ask",),
        "spanloom.outcome": "ok",
    }
    assert recorded.attributes("invoke_workflow g") == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "g",
        "gen_ai.conversation.id": "t-1",
        "spanloom.outcome": "ok",
    }
    assert recorded.attributes("execute_tool look") == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "look",
        "gen_ai.tool.type": "function",
        "gen_ai.conversation.id": "t-1",
        "spanloom.outcome": "ok",
    }
    assert {span.kind.name for span in recorded.spans if span.name != "GET"} == {"INTERNAL"}
    assert {span.status.status_code.name for span in recorded.spans} == {"UNSET"}


def test_invoke_makes_each_unit_current_in_its_body(recorded: Any, server: Any) -> None:
    """Sync: the same, in the calling thread."""

    @tool
    def look(word: str) -> str:
        """Look it up."""
        server.get("tool")
        return here()

    def ask(state: State) -> State:
        server.get("node")
        return {"seen": [here(), look.invoke({"word": "x"}), here()]}

    result = chain("g", ask=ask).invoke({})

    assert result["seen"] == ["invoke_node ask", "execute_tool look", "invoke_node ask"]
    assert recorded.tree() == [
        ["invoke_workflow g", [["invoke_node ask", ["GET", ["execute_tool look", ["GET"]]]]]]
    ]
    assert recorded.caller_of(server.headers_by_path["node"]) == "invoke_node ask"
    assert recorded.caller_of(server.headers_by_path["tool"]) == "execute_tool look"
    assert "gen_ai.conversation.id" not in recorded.attributes("invoke_workflow g")


async def test_the_run_joins_the_span_around_it(recorded: Any) -> None:
    """The caller's span is the parent, and is current again afterwards."""

    async def node(state: State) -> State:
        return {}

    with recorded.tracer.start_as_current_span("request"):
        await chain("g", a=node).ainvoke({})
        assert here() == "request"
    assert recorded.tree() == [["request", [["invoke_workflow g", ["invoke_node a"]]]]]


async def test_threads_keep_the_span_they_were_started_in(recorded: Any, server: Any) -> None:
    """A sync node and a sync tool in an async run, and asyncio.to_thread, run in threads."""

    @tool
    def look(word: str) -> str:
        """Look it up."""
        server.get("tool")
        return here()

    def sync_node(state: State) -> State:
        server.get("sync")
        return {"seen": [here()]}

    async def async_node(state: State) -> State:
        await asyncio.to_thread(server.get, "to_thread")
        return {"seen": [await asyncio.to_thread(here), await look.ainvoke({"word": "x"})]}

    result = await chain("g", sync=sync_node, asyn=async_node).ainvoke({})

    assert result["seen"] == ["invoke_node sync", "invoke_node asyn", "execute_tool look"]
    assert {path: recorded.caller_of(h) for path, h in server.headers_by_path.items()} == {
        "sync": "invoke_node sync",
        "to_thread": "invoke_node asyn",
        "tool": "execute_tool look",
    }


async def test_bare_threads_of_the_application(recorded: Any, server: Any) -> None:
    """With the threading instrumentation a bare executor keeps span and token sums."""
    ThreadingInstrumentor().instrument()

    async def node(state: State) -> State:
        def work() -> str:
            server.get("bare")
            add_usage(3, 4)
            return here()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return {"seen": [pool.submit(work).result()]}

    try:
        result = await chain("g", a=node).ainvoke({})
    finally:
        ThreadingInstrumentor().uninstrument()
    assert result["seen"] == ["invoke_node a"]
    assert recorded.caller_of(server.headers_by_path["bare"]) == "invoke_node a"
    assert recorded.attributes("invoke_node a")["spanloom.usage.input_tokens"] == 3
    assert recorded.attributes("invoke_workflow g")["spanloom.usage.output_tokens"] == 4


async def test_hand_written_spans_stand_in_the_same_tree(recorded: Any) -> None:
    """llm_call and tool from spanloom.telemetry.manual: below the node, tokens summed."""
    use_tracer_provider(recorded.provider)

    @tool
    async def look(word: str) -> str:
        """Look it up."""
        with llm_call("m", provider="p") as call:
            call.usage(input_tokens=7, output_tokens=2)
        return here()

    async def node(state: State) -> State:
        with manual_tool("by hand"):
            return {"seen": [await look.ainvoke({"word": "x"})]}

    try:
        result = await chain("g", a=node).ainvoke({}, {"configurable": {"thread_id": "t"}})
    finally:
        use_tracer_provider(None)
    assert result["seen"] == ["execute_tool look"]
    inner = ["execute_tool by hand", [["execute_tool look", ["chat m"]]]]
    assert recorded.tree() == [["invoke_workflow g", [["invoke_node a", [inner]]]]]
    for name in ("execute_tool look", "execute_tool by hand", "invoke_node a", "invoke_workflow g"):
        assert recorded.attributes(name)["spanloom.usage.input_tokens"] == 7, name
    assert recorded.attributes("execute_tool look")["gen_ai.conversation.id"] == "t"


async def test_gather_inside_a_node_stays_below_the_node(recorded: Any, server: Any) -> None:
    """Tasks a node starts are its children, each tool current only in its own."""

    @tool
    async def look(word: str) -> str:
        """Look it up."""
        await server.aget(word)
        return here()

    async def node(state: State) -> State:
        found = await asyncio.gather(*(look.ainvoke({"word": f"w{i}"}) for i in range(5)))
        return {"seen": [*found, here()]}

    result = await chain("g", a=node).ainvoke({})

    assert result["seen"] == ["execute_tool look"] * 5 + ["invoke_node a"]
    assert recorded.tree() == [
        ["invoke_workflow g", [["invoke_node a", [["execute_tool look", ["GET"]]] * 5]]]
    ]


def fan_out(width: int, body: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("work", body)
    builder.add_conditional_edges(
        START, lambda state: [Send("work", {"item": i}) for i in range(width)], ["work"]
    )
    builder.add_edge("work", END)
    return builder.compile(name="fan")


async def test_each_send_is_a_span_of_its_own(recorded: Any, server: Any) -> None:
    """Fan-out of 3: three node spans under the run, each request under its own."""

    async def work(state: State) -> State:
        await server.aget(f"item-{state['item']}")
        return {"seen": [here()]}

    await fan_out(3, work).ainvoke({})

    assert recorded.tree() == [["invoke_workflow fan", [["invoke_node work", ["GET"]]] * 3]]
    parents = {
        span.parent.span_id
        for span in recorded.all("GET")
        if recorded.parent(span) == "invoke_node work"
    }
    assert len(parents) == 3
    assert {recorded.caller_of(h) for h in server.headers_by_path.values()} == {"invoke_node work"}
    namespaces = {s.attributes["langgraph.checkpoint_ns"] for s in recorded.all("invoke_node work")}
    assert len(namespaces) == 3


async def test_fan_out_of_three_hundred(recorded: Any) -> None:
    """Wide fan-out: every branch sees its own span."""

    async def work(state: State) -> State:
        mine = trace.get_current_span().get_span_context().span_id
        await asyncio.sleep(0)
        assert trace.get_current_span().get_span_context().span_id == mine
        return {"seen": [f"{mine:x}"]}

    result = await fan_out(300, work).ainvoke({})

    assert len(set(result["seen"])) == 300
    assert recorded.tree() == [["invoke_workflow fan", ["invoke_node work"] * 300]]


def test_fan_out_in_threads(recorded: Any, server: Any) -> None:
    """Sync fan-out runs in LangGraph's own thread pool."""

    def work(state: State) -> State:
        server.get(f"item-{state['item']}")
        return {"seen": [here()]}

    result = fan_out(8, work).invoke({})

    assert result["seen"] == ["invoke_node work"] * 8
    assert recorded.tree() == [["invoke_workflow fan", [["invoke_node work", ["GET"]]] * 8]]


async def test_sub_graphs_are_workflows_below_their_node(recorded: Any, server: Any) -> None:
    """A compiled graph as a node, and one invoked inside a node."""

    async def inner(state: State) -> State:
        await server.aget("inner")
        return {"seen": [here()]}

    sub = chain("sub", inner=inner)

    async def calls(state: State) -> State:
        await sub.ainvoke({})
        return {"seen": [here()]}

    config = {"configurable": {"thread_id": "t-2"}}
    await chain("outer", as_node=sub, calls=calls).ainvoke({}, config)

    below = ["invoke_workflow sub", [["invoke_node inner", ["GET"]]]]
    assert recorded.tree() == [
        [
            "invoke_workflow outer",
            [["invoke_node as_node", [below]], ["invoke_node calls", [below]]],
        ]
    ]
    assert {
        s.attributes["gen_ai.conversation.id"] for s in recorded.all("invoke_workflow sub")
    } == {"t-2"}
    namespace = recorded.all("invoke_node inner")[0].attributes["langgraph.checkpoint_ns"]
    assert [part.partition(":")[0] for part in namespace.split("|")] == ["as_node", "inner"]


def test_sub_graphs_in_sync_runs(recorded: Any) -> None:
    """The same, by invoke."""
    sub = chain("sub", inner=lambda state: {"seen": [here()]})
    calls = chain("outer", as_node=sub, calls=lambda state: sub.invoke({}) and {})
    calls.invoke({})
    below = ["invoke_workflow sub", ["invoke_node inner"]]
    assert recorded.tree() == [
        [
            "invoke_workflow outer",
            [["invoke_node as_node", [below]], ["invoke_node calls", [below]]],
        ]
    ]


async def test_concurrent_runs_do_not_mix(recorded: Any, server: Any) -> None:
    """Two hundred requests at once, each with its own trace and conversation."""

    async def first(state: State) -> State:
        await asyncio.sleep(0)
        return {"seen": [f"{trace.get_current_span().get_span_context().trace_id:x}"]}

    graph = chain("g", a=first, b=first)

    async def request(number: int) -> set[str]:
        with recorded.tracer.start_as_current_span(f"request {number}") as span:
            config = {"configurable": {"thread_id": f"t-{number}"}}
            result = await graph.ainvoke({}, config)
            assert trace.get_current_span() is span
            return {*result["seen"], f"{span.get_span_context().trace_id:x}"}

    seen = await asyncio.gather(*(request(number) for number in range(200)))

    assert all(len(ids) == 1 for ids in seen)
    assert len(set.union(*seen)) == 200
    below = [["invoke_workflow g", ["invoke_node a", "invoke_node b"]]]
    assert recorded.tree() == sorted(([f"request {n}", below] for n in range(200)), key=str)
    for span in recorded.all("invoke_node b"):
        root = next(
            s
            for s in recorded.spans
            if s.context.trace_id == span.context.trace_id and s.parent is None
        )
        assert span.attributes["gen_ai.conversation.id"] == root.name.replace("request ", "t-")


def test_concurrent_runs_in_threads_do_not_mix(recorded: Any) -> None:
    """Sync runs in worker threads, as a WSGI server has them."""
    graph = chain("g", a=lambda state: {"seen": [here()]})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: graph.invoke({}), range(40)))
    assert all(result["seen"] == ["invoke_node a"] for result in results)
    assert recorded.tree() == [["invoke_workflow g", ["invoke_node a"]]] * 40


async def test_command_goto_names_the_nodes_that_ran(recorded: Any) -> None:
    """Command(goto) is no error and no span of its own; conditional edges neither."""

    async def start(state: State) -> Command[Any]:
        return Command(goto="b", update={"seen": ["start"]})

    builder = StateGraph(State)
    builder.add_node("a", start, destinations=("b",))
    builder.add_node("b", lambda state: {"seen": [here()]})
    builder.add_edge(START, "a")
    builder.add_conditional_edges("b", lambda state: END, [END])
    await builder.compile(name="g").ainvoke({})

    assert recorded.tree() == [["invoke_workflow g", ["invoke_node a", "invoke_node b"]]]
    assert recorded.outcome("invoke_node a") == ("UNSET", "ok")


def test_a_call_without_any_graph_is_traced_too(recorded: Any, server: Any) -> None:
    """A tool outside of a graph is a root span."""

    @tool
    def look(word: str) -> str:
        """Look it up."""
        server.get("tool")
        return here()

    assert look.invoke({"word": "x"}) == "execute_tool look"
    assert recorded.tree() == [["execute_tool look", ["GET"]]]
