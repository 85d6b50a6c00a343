"""The score card: what its judge says of spans, and what it says of tracers that are run."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import scorecard
from scoring import run
from scoring.card import ERROR, SCENARIOS, Calls, Scenario, Unit
from scoring.conventions import ALL, GENAI, OPENINFERENCE, Reader
from scoring.judge import PROPERTIES, judge
from scoring.record import HARNESS_SCOPE, HTTP_SCOPE, MODEL, Mark, Recording, Span
from scoring.tracers import TRACERS, named

ROOT = Path(__file__).parents[2]
TRACE = "0" * 31 + "a"


def span(name: str, number: int, parent: int | None, **more: Any) -> Span:
    """A span of a tracer; the number is its id and its place in time."""
    scopes = {"POST /chat": HARNESS_SCOPE, "GET": HTTP_SCOPE, "POST": HTTP_SCOPE}
    fields: dict[str, Any] = {
        "scope": scopes.get(name, "some.tracer"),
        "trace": TRACE,
        "start": number,
        "end": number + 100,
    }
    above = None if parent is None else f"{parent:016x}"
    return Span(name, id=f"{number:016x}", parent=above, **{**fields, **more})


def mark(unit: str, current: int | None, http: int, trace: str = TRACE) -> Mark:
    now = None if current is None else f"{current:016x}"
    return Mark(unit, TRACE, now, f"00-{trace}-{http:016x}-01")


ONE = Scenario("one", "one node", {"look_up": Unit()})
SERVER = span("POST /chat", 1, None)
GOOD = Recording(
    "one",
    spans=(SERVER, span("run", 2, 1), span("invoke_node look_up", 3, 2), span("GET", 4, 3)),
    marks=(mark("look_up", 3, 4),),
    requests=(TRACE,),
)


def replaced(recording: Recording, number: int, **changes: Any) -> Recording:
    """The same, but for one span."""
    spans = (
        dataclasses.replace(one, **changes) if one.id == f"{number:016x}" else one
        for one in recording.spans
    )
    return dataclasses.replace(recording, spans=tuple(spans))


def problems(recording: Recording, scenario: Scenario = ONE) -> dict[str, tuple[str, ...]]:
    return dict(judge(scenario, recording, Reader()).problems or {})


def test_what_is_right_holds_whatever_the_spans_are_called() -> None:
    for name in ("invoke_node look_up", "look_up", "look_up.task", "execute_task look_up"):
        verdict = judge(ONE, replaced(GOOD, 3, name=name), Reader())

        assert verdict.held, name
        assert "parent" in verdict.applied
    by_attribute = replaced(GOOD, 3, name="step", attributes={"gen_ai.task.name": "look_up"})
    assert judge(ONE, by_attribute, Reader()).held


def test_no_spans_at_all_is_no_point() -> None:
    """Whatever the scenario: there is none that holds for a tracer which does nothing."""
    for scenario in SCENARIOS:
        marks = tuple(
            mark(name, 1, 4) for name, unit in scenario.units.items() for _ in range(unit.marks)
        )
        nothing = Recording(scenario.name, (SERVER, span("GET", 4, 1)), marks, (TRACE,))
        assert "spans" in problems(nothing, scenario), scenario.name


def test_a_name_that_is_part_of_another_word_is_not_the_node() -> None:
    assert problems(replaced(GOOD, 3, name="look_up_again")) == {
        "spans": ("0 of 1 spans of look_up",)
    }


def test_a_call_that_hangs_off_the_server_span() -> None:
    """Nothing was attached: the tree of nodes is right, and yet the call is not below its node."""
    found = problems(
        dataclasses.replace(replaced(GOOD, 4, parent=SERVER.id), marks=(mark("look_up", 1, 4),))
    )

    assert found == {
        "parent": ("a call from look_up hangs off 'POST /chat'",),
        "current": ("current in look_up was 'POST /chat'",),
    }


def test_a_call_without_a_header() -> None:
    silent = dataclasses.replace(GOOD, marks=(Mark("look_up", TRACE, SERVER.id, ""),))
    assert problems(silent)["parent"] == ("a call from look_up carries no traceparent",)


def test_branches_that_share_one_span() -> None:
    """Three spans are there, but all that was done is below the first."""
    scenario = Scenario("three", "fan-out", {"look_up": Unit(3, 3)})
    nodes = tuple(span("look_up", number, 2) for number in (3, 5, 6))
    calls = tuple(span("GET", number, 3) for number in (7, 8, 9))
    mixed = Recording(
        "three",
        (SERVER, span("run", 2, 1), *nodes, *calls),
        tuple(mark("look_up", 3, number) for number in (7, 8, 9)),
        (TRACE,),
    )
    assert problems(mixed, scenario) == {
        "parent": ("3 calls of look_up are in 1 spans",),
        "current": ("3 bodies of look_up are in 1 spans",),
    }


def test_a_node_inside_its_sibling_is_misplaced() -> None:
    scenario = Scenario("two", "two nodes", {"a": Unit(marks=0), "b": Unit(marks=0)})
    nested = Recording("two", (SERVER, span("a", 2, 1), span("b", 3, 2)), (), (TRACE,))
    beside = Recording("two", (SERVER, span("a", 2, 1), span("b", 3, 1)), (), (TRACE,))
    inside = {"a": Unit(marks=0), "b": Unit(marks=0, inside="a")}

    assert problems(beside, scenario) == {}
    assert judge(scenario, nested, Reader()).applied.count("parent") == 1
    assert problems(nested, scenario)["parent"] == ("b is inside a, not none",)
    assert problems(nested, Scenario("in", "sub-graph", inside)) == {}
    # what else has the name, such as `goto b` in the span of a, is no reproach
    both = Recording("two", (*beside.spans, span("goto b", 4, 2)), (), (TRACE,))
    assert problems(both, scenario) == {}


def test_outcomes() -> None:
    failed = Scenario("fails", "", {"look_up": Unit(status=ERROR)}, run=ERROR)
    red = replaced(replaced(GOOD, 3, status="ERROR"), 2, status="ERROR")

    assert problems(red, failed) == {}
    assert problems(GOOD, failed)["outcome"] == ("look_up is UNSET", "the run is UNSET")
    assert problems(red)["outcome"] == ("look_up is ERROR", "the run (run) is ERROR")
    assert problems(replaced(GOOD, 3, status="OK")) == {}


def test_the_attempts_of_a_repeated_node() -> None:
    scenario = Scenario("retry", "", {"look_up": Unit(2, 0, status=ERROR, then_fine=True)})
    run = span("run", 2, 1)
    first, last = span("look_up", 3, 2, status="ERROR"), span("look_up", 4, 2)
    done = Recording("retry", (SERVER, run, last, first), (), (TRACE,))
    both = replaced(done, 4, status="ERROR")

    assert problems(done, scenario) == {}
    assert "look_up is ERROR at last" in problems(both, scenario)["outcome"]


USAGE = {"gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 5}
CHAT = {"gen_ai.operation.name": "chat"}


def asked(*spans: Span) -> Recording:
    return Recording("model", (SERVER, *spans), (), (TRACE,))


def test_tokens_are_said_once() -> None:
    scenario = Scenario("model", "", calls=Calls(tokens=(11, 5)))
    run = span("invoke_agent", 2, 1, attributes=USAGE)  # sums of an agent are no second time
    once = asked(run, span("chat", 3, 2, attributes={**CHAT, **USAGE}))
    silent = asked(run, span("chat", 3, 2, attributes=CHAT))
    twice = asked(*once.spans[1:], span("openai", 4, 3, attributes={**CHAT, **USAGE}))
    kind = {"openinference.span.kind": "LLM"}
    other = {"llm.token_count.prompt": 11, "llm.token_count.completion": 5, **kind}

    assert problems(once, scenario) == {}
    assert problems(silent, scenario)["tokens"][0].startswith("(input, output) tokens are nowhere")
    assert "[(11, 5), (11, 5)]" in problems(twice, scenario)["tokens"][0]
    theirs = asked(span("ChatOpenAI", 3, 1, attributes=other))
    assert judge(scenario, theirs, Reader((OPENINFERENCE,))).held
    assert "spans" in (judge(scenario, theirs, Reader((GENAI,))).problems or {})


@pytest.mark.parametrize(
    "kept",
    [
        {"gen_ai.usage.output_tokens": 3},
        {"spanloom.stream.chunks": 3},
        {"gen_ai.output.messages": '[{"role":"assistant"}]'},
        {"llm.output_messages.0.message.content": "你好"},
    ],
)
def test_a_cut_stream_keeps_how_much_had_come(kept: dict[str, Any]) -> None:
    scenario = Scenario("model", "", calls=Calls(cut=True), run=ERROR)
    cut = span("chat", 3, 1, status="ERROR", attributes={**CHAT, **kept})

    assert problems(asked(cut), scenario) == {}
    assert "tokens" in problems(asked(dataclasses.replace(cut, attributes=CHAT)), scenario)
    assert "outcome" in problems(asked(dataclasses.replace(cut, status="OK")), scenario)


def test_the_request_to_the_model_is_below_its_span() -> None:
    scenario = Scenario("model", "", calls=Calls(marks=1))
    chat = span("chat", 3, 1, attributes=CHAT)
    below = Recording(
        "model", (SERVER, chat, span("POST", 4, 3)), (mark(MODEL, None, 4),), (TRACE,)
    )

    assert problems(below, scenario) == {}
    beside = replaced(below, 4, parent=SERVER.id)
    assert problems(beside, scenario) == {
        "parent": ("the request to the model hangs off 'POST /chat'",)
    }


def test_leaks() -> None:
    assert problems(replaced(GOOD, 3, end=None))["ended"] == ("invoke_node look_up never ended",)
    complained = dataclasses.replace(GOOD, complaints=("Failed to detach context",) * 2)
    assert problems(complained)["ended"] == ("Failed to detach context (2 times)",)
    assert "ended" in problems(dataclasses.replace(GOOD, leaks=("x",)))
    off = dataclasses.replace(ONE, switched_off=True)
    assert problems(GOOD, off) == {}
    assert "ended" in problems(dataclasses.replace(GOOD, after_off=2), off)


def test_usage_as_json_which_may_be_anything() -> None:
    scenario = Scenario("model", "", calls=Calls(tokens=(11, 5)))
    kind = {"langfuse.observation.type": "generation"}
    for said, wrong in (
        ('{"input": 11, "output": 5, "total": 16}', False),
        ('{"input": 11', True),
        ("[11, 5]", True),
        ('{"input": "11"}', True),
    ):
        usage = {**kind, "langfuse.observation.usage_details": said}
        found = problems(asked(span("ChatOpenAI", 3, 1, attributes=usage)), scenario)
        assert ("tokens" in found) is wrong, said


def test_another_trace() -> None:
    elsewhere = "0" * 31 + "b"

    assert problems(replaced(GOOD, 2, trace=elsewhere))["trace"] == ("run is in another trace",)
    compiling = span("create_agent", 0, None, trace=elsewhere)  # before the request
    assert problems(dataclasses.replace(GOOD, spans=(*GOOD.spans, compiling))) == {}
    stray = dataclasses.replace(GOOD, marks=(mark("look_up", 3, 4, elsewhere),))
    assert problems(stray)["trace"] == ("a call from look_up is in another trace",)


def test_a_resumed_run_names_the_one_that_paused() -> None:
    """By a link, or by what the spans of both say that they belong to."""
    scenario = Scenario("resume", "", {"look_up": Unit(2, 0)}, requests=2, resumed=True)
    later = "0" * 31 + "c"
    first = span("look_up", 2, 1)
    second = span("look_up", 3, None, trace=later)

    def resumed(one: Span, two: Span) -> Recording:
        return Recording("resume", (SERVER, one, two), (), (TRACE, later))

    said = {"session.id": "s-1"}
    assert "trace" in problems(resumed(first, second), scenario)
    assert problems(resumed(first, dataclasses.replace(second, links=(TRACE,))), scenario) == {}
    one, two = (dataclasses.replace(each, attributes=said) for each in (first, second))
    assert problems(resumed(one, two), scenario) == {}
    other = dataclasses.replace(second, attributes={"session.id": "s-2"})
    assert "trace" in problems(resumed(one, other), scenario)


def test_work_that_is_seen_while_it_is_open() -> None:
    scenario = dataclasses.replace(ONE, open_unit="look_up")

    assert problems(GOOD, scenario) == {"open": ("look_up was not seen while it hung",)}
    seen = dataclasses.replace(
        GOOD, arrived=("spanloom.span.open {'name': 'execute_tool look_up'}",)
    )
    assert problems(seen, scenario) == {}


def test_an_application_that_came_out_otherwise() -> None:
    broke = dataclasses.replace(GOOD, failure="KeyError: None")
    assert problems(broke)["application"] == ("KeyError: None",)
    assert "bodies ran" in problems(dataclasses.replace(GOOD, marks=()))["application"][0]
    skipped = judge(ONE, dataclasses.replace(GOOD, skipped="no such thing"), Reader())
    assert (skipped.held, skipped.problems) == (False, None)


def test_every_scenario_has_a_body_and_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert names[-1] == "off", "nothing is traced after it"
    for scenario in SCENARIOS:
        assert scenario.units or scenario.calls, scenario.name
        assert {unit.inside for unit in scenario.units.values()} <= {None, *scenario.units}


def test_every_attribute_that_is_read_is_in_the_documentation() -> None:
    page = (ROOT / "docs/scorecard.md").read_text("utf-8")
    for convention in ALL:
        keys = {key for key, _ in convention.model_marks}
        for field in ("unit_keys", "input_tokens", "output_tokens", "counted", "conversation"):
            keys |= set(getattr(convention, field))
        keys |= {convention.usage_json} - {""}
        missing = [key for key in sorted(keys) if f"`{key}`" not in page]
        assert not missing, convention.source
    assert [name for name in PROPERTIES if f"**{name}**" not in page] == []


def test_a_tracer_is_known_or_is_a_class() -> None:
    assert named("spanloom", ()) is TRACERS["spanloom"]
    own = named("my_tracer:Mine", ("my-tracer",))
    assert (own.title, own.requirements, own.is_here) == ("Mine", ("my-tracer",), False)
    for name in ("opentelemetry", "a:", ":b", "a:b-c"):
        with pytest.raises(LookupError, match="module:Class"):
            named(name, ())


# --- real runs ------------------------------------------------------------------------------------


def card(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/scorecard.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done


VERDICT = {
    "type": "object",
    "required": ["held", "applied", "problems", "skipped"],
    "additionalProperties": False,
    "properties": {
        "held": {"type": "boolean"},
        "applied": {"type": "array", "items": {"enum": list(PROPERTIES)}},
        "problems": {
            "type": "object",
            "propertyNames": {"enum": list(PROPERTIES)},
            "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        },
        "skipped": {"type": ["string", "null"]},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["schema", "date", "python", "properties", "scenarios", "tracers"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": 1},
        "date": {"type": "string", "format": "date"},
        "python": {"type": "string"},
        "properties": {"type": "object", "required": list(PROPERTIES)},
        "scenarios": {
            "type": "array",
            "items": {"type": "object", "required": ["name", "title"]},
        },
        "tracers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "title", "version", "packages", "broken", "held", "of"],
                "properties": {
                    "packages": {"type": "object", "additionalProperties": {"type": "string"}},
                    "broken": {"type": ["string", "null"]},
                    "held": {"type": "integer"},
                    "of": {"type": "integer"},
                    "scenarios": {"type": "object", "additionalProperties": VERDICT},
                },
            },
        },
    },
}


@pytest.mark.timeout(600)
def test_ours_holds_in_every_scenario_and_nothing_in_none() -> None:
    """The whole card, in the environment that is here."""
    found = json.loads(card("--json").stdout)

    jsonschema.validate(found, SCHEMA)
    nothing, ours = found["tracers"]
    assert (nothing["name"], nothing["held"]) == ("none", 0)
    assert {
        name for name, one in nothing["scenarios"].items() if "application" in one["problems"]
    } == set(), "without a tracer the application does what it should"
    missed = {name: one["problems"] for name, one in ours["scenarios"].items() if not one["held"]}
    skipped = {name for name, one in ours["scenarios"].items() if one["skipped"]}
    assert (missed, skipped) == ({}, set())
    assert ours["held"] == ours["of"] == len(SCENARIOS) == len(ours["scenarios"])
    judged = {name for one in ours["scenarios"].values() for name in one["applied"]}
    assert judged == set(PROPERTIES)
    assert ours["packages"]["langgraph"] != "not installed"


BROKEN = '''
import os, time

class Raises:
    def instrument(self, tracer_provider=None):
        raise RuntimeError("no 合 provider")

class Hangs:
    def instrument(self, tracer_provider=None):
        time.sleep(600)

class Dies:
    def instrument(self, tracer_provider=None):
        os.write(2, b"Fatal: out of luck")
        os._exit(7)

class Wraps:
    """Wraps every run of a graph."""

    def instrument(self, tracer_provider=None):
        from langgraph.pregel import Pregel
        inner = Pregel.ainvoke
        async def ainvoke(graph, *args, **kwargs):
            await self.before()
            return await inner(graph, *args, **kwargs)
        Pregel.ainvoke = ainvoke

class Breaks(Wraps):
    async def before(self):
        raise KeyError(None)

class HangsLater(Wraps):
    async def before(self):
        time.sleep(600)

class DiesLater(Wraps):
    async def before(self):
        os.abort()
'''


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "broken_tracers.py").write_text(BROKEN, "utf-8")
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Raises", "cannot be switched on: RuntimeError: no 合 provider"),
        ("Hangs", "switching it on took more than 15 s"),
        ("Dies", "switching it on ended the process (exit code 7): Fatal: out of luck"),
        ("Missing", "cannot be switched on: AttributeError"),
    ],
)
def test_a_tracer_that_cannot_be_switched_on(broken: dict[str, str], name: str, why: str) -> None:
    """It has no point, and the card says why."""
    options = ["--json", "--scenario", "ainvoke", "--scenario", "goto"]
    if "Hangs" in name:
        options += ["--seconds", "15"]
    found = json.loads(card("--tracer", f"broken_tracers:{name}", *options, **broken).stdout)

    jsonschema.validate(found, SCHEMA)
    (tracer,) = found["tracers"]
    assert why in tracer["broken"]
    assert (tracer["held"], tracer["of"]) == (0, 2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Breaks", "KeyError: None"),
        ("HangsLater", "the scenario took more than 45 s"),
        ("DiesLater", "the scenario ended the process (signal 6)"),
    ],
)
def test_a_tracer_that_breaks_the_application(broken: dict[str, str], name: str, why: str) -> None:
    """The scenario is missed, and the next one is run all the same."""
    options = ["--json", "--scenario", "goto", "--scenario", "astream"]
    if "Hangs" in name:
        options += ["--seconds", "45"]
    found = json.loads(card("--tracer", f"broken_tracers:{name}", *options, **broken).stdout)

    (tracer,) = found["tracers"]
    assert tracer["broken"] is None
    assert why in tracer["scenarios"]["goto"]["problems"]["application"][0]
    assert "application" not in tracer["scenarios"]["astream"]["problems"], "it calls no ainvoke"
    assert "spans" in tracer["scenarios"]["astream"]["problems"]


def test_tables_in_a_pipe_and_what_was_wrong(broken: dict[str, str]) -> None:
    shown = card("--tracer", "broken_tracers:Raises", "--scenario", "goto", "--why", **broken)

    assert "0 of 1" in shown.stdout
    assert "(broken)" in shown.stdout
    assert "no 合 provider" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr


def test_wrong_arguments_say_what_there_is() -> None:
    assert "openinference" in card("--tracer", "jaeger", code=2).stderr
    assert "wide_fan_out" in card("--scenario", "nothing", code=2).stderr


def test_an_environment_that_cannot_be_made(tmp_path: Path) -> None:
    """No registry: exit code 3, and what to do."""
    away = {
        "SPANLOOM_BENCH_CACHE": str(tmp_path),
        **dict.fromkeys(("UV_OFFLINE", "PIP_NO_INDEX"), "1"),
        **dict.fromkeys(
            ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"), "http://127.0.0.1:9/"
        ),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
    }
    done = card("--tracer", "traceloop", "--scenario", "goto", code=3, **away)

    assert "has to be reachable" in done.stderr
    assert done.stdout == ""


def test_ours_missed_a_scenario_and_the_page_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 1, as for a release of LangGraph that moved what we hold on to."""

    def without_a_node(tracer: Any, python: Any, scenarios: Any, **options: Any) -> run.Result:
        untraced = dataclasses.replace(GOOD, spans=(SERVER, span("run", 2, 1), span("GET", 4, 2)))
        verdicts = [judge(ONE, untraced, Reader(tracer.conventions)) for _ in scenarios]
        named_alike = [
            dataclasses.replace(verdict, scenario=scenario.name)
            for verdict, scenario in zip(verdicts, scenarios, strict=True)
        ]
        return run.Result(tracer, {"langgraph": "9.0.0"}, named_alike)

    page = tmp_path / "scorecard.md"
    page.write_text(
        "前\n<!-- begin: score card -->\nstale\n<!-- end: score card -->\n后\n", "utf-8"
    )
    monkeypatch.setattr(scorecard, "run", without_a_node)
    monkeypatch.setattr(scorecard, "DOCUMENT", page)
    arguments = ["--tracer", "spanloom", "--scenario", "goto", "--why", "--write"]
    monkeypatch.setattr(sys, "argv", ["scorecard.py", *arguments])

    assert scorecard.main() == 1
    assert "`Command(goto=…)` - spans: 0 of 1 spans of look_up" in capsys.readouterr().out
    written = page.read_text("utf-8")
    assert written.startswith("前\n")
    assert written.endswith("后\n")
    assert "stale" not in written
    assert "langgraph 9.0.0" in written
    assert "| spans | `Command(goto=…)` | 0 of 1 spans of look_up |" in written
