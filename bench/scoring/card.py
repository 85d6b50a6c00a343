"""The scenarios and what has to hold in each: plain data, known before anything is run.

What the application does in each is in `inside`; the names here are those of its nodes and tools.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

FINE, ERROR = "fine", "error"


@dataclass(frozen=True)
class Unit:
    """A node or tool of the application."""

    times: int = 1
    """How often it is executed, so how many spans it has at least."""
    marks: int = 1
    """How often its body notes its current span and calls another service."""
    inside: str | None = None
    """Node or tool that it is executed in."""
    status: str = FINE
    """FINE: not ERROR. ERROR: an exception or a cancellation ended it."""
    then_fine: bool = False
    """ERROR at first, then repeated until it was FINE."""


@dataclass(frozen=True)
class Calls:
    """Model calls."""

    times: int = 1
    tokens: tuple[int, int] | None = None
    """Input and output, that each is said to have taken; None: the model does not say."""
    inside: str | None = None
    cut: bool = False
    """The stream was cut: how much had come is to be kept, and the status is ERROR."""
    marks: int = 0
    """Requests that the endpoint of the model got."""


@dataclass(frozen=True)
class Scenario:
    """A situation; a tracer gets it only if everything holds that applies."""

    name: str
    title: str
    units: Mapping[str, Unit] = field(default_factory=dict)
    calls: Calls | None = None
    run: str = FINE
    """Status of the outermost spans of the tracer."""
    requests: int = 1
    resumed: bool = False
    """The second run goes on where the first paused: they have to name one another."""
    open_unit: str | None = None
    """Has to be seen before it has ended."""
    switched_off: bool = False


_STREAMED = {"talk": Unit(4, 4), "write_down": Unit(4, 4)}
_ASKED = {
    "look_up": Unit(),
    "search_docs": Unit(inside="look_up"),
    "answer": Unit(marks=0),
}
_ANSWERED = Calls(tokens=(11, 5), inside="answer")
_ONE_STREAM = {"talk": Unit(), "write_down": Unit()}

SCENARIOS: Final = (
    Scenario("ainvoke", "`ainvoke`: node, tool, model", _ASKED, _ANSWERED),
    Scenario("invoke", "`invoke`: the same, sync", _ASKED, _ANSWERED),
    Scenario(
        "astream",
        "`astream` in four modes",
        _STREAMED,
        Calls(4, inside="talk"),
        requests=4,
    ),
    Scenario("stream", "`stream` in four modes", _STREAMED, Calls(4, inside="talk"), requests=4),
    Scenario("events", "`astream_events`", _ONE_STREAM, Calls(inside="talk")),
    Scenario("other_task", "stream read in another task", _ONE_STREAM, Calls(inside="talk")),
    Scenario(
        "client_gone",
        "client gone in the middle of a stream",
        {"first_part": Unit(), "second_part": Unit(status=ERROR)},
        run=ERROR,
    ),
    Scenario("fan_out", "`Send` to 3 branches", {"price_item": Unit(3, 3)}),
    Scenario("wide_fan_out", "`Send` to 300 branches", {"price_item": Unit(300, 300)}),
    Scenario(
        "sub_graph",
        "compiled graph as a node",
        {"research": Unit(marks=0), "read_page": Unit(inside="research")},
    ),
    Scenario(
        "nested",
        "graph invoked inside a node",
        {"plan_trip": Unit(marks=2), "find_hotel": Unit(inside="plan_trip")},
    ),
    Scenario("raises", "node that raises", {"charge_card": Unit(status=ERROR)}, run=ERROR),
    Scenario(
        "retry",
        "node repeated by `RetryPolicy`",
        {"flaky_call": Unit(3, 3, status=ERROR, then_fine=True)},
    ),
    Scenario("timeout", "node with a timeout", {"slow_query": Unit(status=ERROR)}, run=ERROR),
    Scenario(
        "wait_for", "`asyncio.wait_for` around a run", {"slow_query": Unit(status=ERROR)}, run=ERROR
    ),
    Scenario(
        "interrupt",
        "`interrupt` and resume",
        {"ask_human": Unit(2, 2)},
        requests=2,
        resumed=True,
    ),
    Scenario("goto", "`Command(goto=…)`", {"triage": Unit(), "escalate": Unit()}),
    Scenario(
        "handoff",
        "handoff to the parent graph",
        {"team": Unit(marks=0), "leave_team": Unit(inside="team"), "take_over": Unit()},
    ),
    Scenario(
        "cached",
        "node answered from the cache",
        {"slow_lookup": Unit(), "use_result": Unit(2, 2)},
        requests=2,
    ),
    Scenario(
        "deferred",
        "deferred node",
        {"short_way": Unit(), "long_way": Unit(), "longer_way": Unit(), "join_ways": Unit()},
    ),
    Scenario(
        "functional",
        "`@entrypoint` and `@task`",
        {"plan_week": Unit(), "fetch_day": Unit(2, 2, inside="plan_week")},
    ),
    Scenario(
        "agent",
        "`create_agent`, two tools at once",
        {"fetch_page": Unit(), "sum_up": Unit()},
        Calls(2, tokens=(7, 2)),
    ),
    Scenario(
        "threads",
        "sync node, sync tool, `to_thread`",
        {"sync_step": Unit(), "thread_step": Unit(), "sync_tool": Unit(inside="thread_step")},
    ),
    Scenario(
        "concurrent",
        "200 requests at once",
        {"step_one": Unit(200, 200), "step_two": Unit(200, 200)},
        requests=200,
    ),
    Scenario(
        "compiled_before",
        "compiled before the tracer was on",
        {"early_bird": Unit(), "late_riser": Unit()},
        requests=2,
    ),
    Scenario(
        "openai",
        "langchain-openai, streamed",
        calls=Calls(tokens=(11, 5), marks=1),
    ),
    Scenario(
        "openai_cut",
        "langchain-openai, stream cut",
        calls=Calls(cut=True, marks=1),
        run=ERROR,
    ),
    Scenario("hangs", "a tool that hangs is seen", {"wait_long": Unit()}, open_unit="wait_long"),
    Scenario(
        "off",
        "switched off again",
        {"still_works": Unit(marks=0)},
        requests=2,
        switched_off=True,
    ),
)
