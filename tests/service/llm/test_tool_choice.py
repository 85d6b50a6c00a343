"""Tools are chosen by what their schemas say, whatever they are called."""

import json
from typing import Any

import pytest

from service.llm.offline_model import MODELS, Reply, Request, reply
from service.llm.tool_choice import Tool

MODEL = MODELS["offline-small"]
STRING = {"type": "string"}


def tool(name: str, description: str, required: tuple[str, ...] = (), **parameters: Any) -> Tool:
    schema = {"type": "object", "properties": parameters, "required": list(required)}
    return Tool(name, description, schema)


# Each kind of tool twice, under names and words that have nothing in common.
ABACUS = tool("abacus", "Counts.", ("formula",), formula={**STRING, "description": "arithmetic"})
SUMMER = tool("rechner", "计算数学表达式", ("eingabe",), eingabe=STRING)
SUNDIAL = tool("sundial", "Tells the current time.", where={**STRING, "description": "time zone"})
KALENDER = tool("kalender", "查询当前时间", zone={"anyOf": [STRING, {"type": "null"}]})
HOURGLASS = tool("hourglass", "What is the date and time now?")
SHELF = tool("shelf", "Opens.", ("ref",), ref={**STRING, "description": "id of the document"})
ARCHIV = tool("archiv", "读取全文", ("key",), key={**STRING, "description": "文档编号"})
FISHING = tool("fishing", "Search the pond.", ("query",), query=STRING)
PAINT = tool("paint", "Paints a wall.", ("colour",), colour=STRING)

PASSAGES = """<passages>
[1] (tarn-ops) Tarns
A tarn holds water. See also tarn-safety and tarn-42.
[2] (bridge-notes) Bridges
Bridges cross tarns.
</passages>"""


def decide(question: str, *tools: Tool, messages: Any = (), **options: Any) -> Reply:
    system = {"role": "system", "content": "When nothing is needed, reply with the word: done."}
    user = {"role": "user", "content": f"{PASSAGES}<question>{question}</question>"}
    return reply(Request([system, user, *messages], tools, **options), MODEL)


def calls(answer: Reply) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, dict(call.arguments)) for call in answer.calls]


@pytest.mark.parametrize("calculator", [ABACUS, SUMMER], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("question", "result"),
    [
        ("What is 12.5% of 840?", 105),
        ("2 的 10 次方是多少？", 1024),
        ("How much is 17 times 23 plus 4?", 395),
        ("Please compute (3 + 4) * 5.", 35),
        ("１２ × ７ 等于几？", 84),
        ("1,250 divided by 5", 250),
        ("2^8", 256),
        ("What is the square root of 81?", 9),
        ("840 的 12.5% 是多少", 105),
        ("-3 * -4", 12),
    ],
)
def test_arithmetic_goes_to_whatever_takes_an_expression(
    calculator: Tool, question: str, result: float
) -> None:
    """Sums in words, signs and Chinese become an expression with the right value."""
    [(name, arguments)] = calls(decide(question, PAINT, calculator, SUNDIAL))

    assert name == calculator.name
    [expression] = arguments.values()
    assert eval(expression) == result


@pytest.mark.parametrize(
    "question",
    [
        "What happened on 2024-05-13?",
        "How does gpt-4-1 compare with llama-3.1-8b?",
        "Which port ranges such as 8000-8080 are free?",
        "Do you offer 24/7 support?",
        "Is version 1.2.3 out?",
        "Are 3-5 replicas enough?",
        "What does [1] say?",
        "What is the time complexity of sorting?",
        "What limits today's bridges?",
        "阀门是什么？",
    ],
)
def test_digits_and_dates_in_passing_call_nothing(question: str) -> None:
    """Dates, versions, names and ranges are no sums; the word time alone asks no clock."""
    answer = decide(question, ABACUS, SUNDIAL, SHELF, PAINT)

    assert calls(answer) == []
    assert answer.text == "done"


@pytest.mark.parametrize("clock", [SUNDIAL, KALENDER], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("question", "zone"),
    [
        ("What time is it in Tokyo?", "Asia/Tokyo"),
        ("what's the current time in new york", "America/New_York"),
        ("现在北京几点？", "Asia/Shanghai"),
        ("What is today's date in Europe/Lisbon?", "Europe/Lisbon"),
        ("What day is it today in UTC?", "UTC"),
        ("今天星期几？", None),
        ("What time is it?", None),
    ],
)
def test_now_goes_to_whatever_tells_the_time(clock: Tool, question: str, zone: str | None) -> None:
    """The zone a question names is passed on; without one the tool decides."""
    [(name, arguments)] = calls(decide(question, ABACUS, PAINT, clock))

    assert name == clock.name
    assert list(arguments.values()) == ([zone] if zone else [])


def test_a_clock_without_parameters_is_called_bare() -> None:
    """No parameter is made up."""
    assert calls(decide("What time is it in Tokyo?", HOURGLASS)) == [("hourglass", {})]


@pytest.mark.parametrize("library", [SHELF, ARCHIV], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("question", "ids"),
    [
        ("What does document mill-7_a say?", ["mill-7_a"]),
        ("文档 mill-7 里写了什么？", ["mill-7"]),
        ("Summarise bridge-notes", ["bridge-notes"]),
        ("Show me the full text about tarns", ["tarn-ops"]),
        ("What does the text on tarns refer to?", ["tarn-safety", "tarn-42"]),
        ("How do bridges cross water?", []),
    ],
)
def test_documents_go_to_whatever_takes_an_id(library: Tool, question: str, ids: list[str]) -> None:
    """Named documents, cross-references asked for, and whole texts are looked up by id."""
    made = calls(decide(question, PAINT, library))

    assert [next(iter(arguments.values())) for _name, arguments in made] == ids


def test_several_needs_are_several_calls_at_once() -> None:
    """One turn can call several tools, or one tool twice, unless parallel calls are off."""
    question = "What is 3 * 4 and what is 5 * 6, and what time is it in Paris?"
    made = calls(decide(question, ABACUS, SUNDIAL))

    assert made == [
        ("abacus", {"formula": "3 * 4"}),
        ("abacus", {"formula": "5 * 6"}),
        ("sundial", {"where": "Europe/Paris"}),
    ]
    assert calls(decide(question, ABACUS, SUNDIAL, parallel_tool_calls=False)) == made[:1]


def test_an_answered_call_is_not_made_again() -> None:
    """What a tool has answered in this turn is known; the rest is still asked."""
    question = "What is 3 * 4 and what time is it in Paris?"
    call = {"id": "c1", "function": {"name": "abacus", "arguments": '{"formula": "3 * 4"}'}}
    answered = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
    ]
    first = decide(question, ABACUS, SUNDIAL, messages=answered)
    assert calls(first) == [("sundial", {"where": "Europe/Paris"})]

    second_call = {
        "id": "c2",
        "function": {"name": "sundial", "arguments": json.dumps(dict(first.calls[0].arguments))},
    }
    answered += [
        {"role": "assistant", "tool_calls": [second_call]},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]
    assert decide(question, ABACUS, SUNDIAL, messages=answered).text == "done"


def test_a_tool_result_is_quoted_where_an_answer_is_wanted() -> None:
    """Without an instruction to say a word, what the tools told is the answer."""
    call = {"id": "c1", "function": {"name": "abacus", "arguments": '{"formula": "3 * 4"}'}}
    messages = [
        {"role": "user", "content": "What is 3 * 4?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "twelve, obviously"},
    ]

    assert "twelve, obviously" in reply(Request(messages, [ABACUS]), MODEL).text


def test_search_is_offered_only_without_passages() -> None:
    """A search tool is used when there is nothing to read yet."""
    bare = [{"role": "user", "content": "How deep is a tarn?"}]

    assert calls(reply(Request(bare, [FISHING]), MODEL)) == [
        ("fishing", {"query": "How deep is a tarn?"})
    ]
    assert calls(decide("How deep is a tarn?", FISHING)) == []


def test_tool_choice_is_obeyed() -> None:
    """`none` calls nothing, `required` something, a name that tool, whatever the question."""
    assert calls(decide("What is 3 * 4?", ABACUS, tool_choice="none")) == []
    [(name, arguments)] = calls(decide("Hello wall!", ABACUS, PAINT, tool_choice="required"))
    assert name == "paint"
    assert isinstance(arguments["colour"], str)
    [(name, arguments)] = calls(decide("What is 3 * 4?", ABACUS, PAINT, tool_choice="paint"))
    assert name == "paint"
    [(name, arguments)] = calls(decide("What is 3 * 4?", PAINT, ABACUS, tool_choice="abacus"))
    assert arguments == {"formula": "3 * 4"}


def test_other_required_parameters_are_filled() -> None:
    """A parameter the question says nothing about gets a value its schema allows."""
    precise = tool(
        "precise",
        "Counts.",
        ("formula", "digits", "mode"),
        formula={**STRING, "description": "an arithmetic expression"},
        digits={"type": "integer", "minimum": 2, "maximum": 9},
        mode={"enum": ["floor", "ceil"]},
    )
    [(_name, arguments)] = calls(decide("What is 3 * 4?", precise))

    assert arguments["formula"] == "3 * 4"
    assert 2 <= arguments["digits"] <= 9
    assert arguments["mode"] in ("floor", "ceil")


@pytest.mark.parametrize(
    "parameters",
    [{}, {"properties": 3}, {"properties": {"a": 3}}, {"properties": {}, "required": 5}],
    ids=str,
)
def test_odd_schemas_are_survived(parameters: dict[str, Any]) -> None:
    """A tool whose parameters are no proper schema is simply not understood."""
    assert decide("What is 3 * 4?", Tool("odd", "Odd.", parameters)).text == "done"
