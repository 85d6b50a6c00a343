"""Values for schemas: always valid, and worked out from the prompt."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.llm import prompt
from service.llm.offline_model import MODELS
from service.llm.structured import Filler, UnsupportedSchemaError

HARD = (
    "Why do mirn valves open before ostrel gauges react, how does that differ from tin valves, "
    "and which trade-offs follow if both are used together?"
)
CARE = MODELS["offline-large"].care
PASSAGES = """<passages>
[1] (mirn-basics) Mirn valves
A mirn valve opens at 80 degrees. Mirn valves are made of tin.
[2] (ostrel) Ostrel gauges
An ostrel gauge reads pressure twice a second.
</passages>"""


def fill(schema: Mapping[str, Any], question: str, *, answer: str | None = None) -> Any:
    text = f"{PASSAGES}<question>{question}</question>"
    if answer is not None:
        text += f"<answer>{answer}</answer>"
    return Filler(prompt.parse([{"role": "user", "content": text}]), CARE).fill(schema)


def fits(  # noqa: PLR0911 -- one line a kind
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]
) -> bool:
    """An independent check of the subset of JSON schema that is understood."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(fits(value, option, root) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= value.keys() <= properties.keys()
            and all(fits(value[name], properties[name], root) for name in value)
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1_000)
            and all(fits(item, schema["items"], root) for item in value)
        )
    if kind == "string":
        return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get(
            "maxLength", 10**9
        )
    if kind in ("number", "integer"):
        right = isinstance(value, int) if kind == "integer" else isinstance(value, int | float)
        return (
            right
            and not isinstance(value, bool)
            and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        )
    return isinstance(value, bool) if kind == "boolean" else value is None


_words = st.text("abcdefgh_问题", min_size=1, max_size=8) | st.sampled_from(
    ["sub_queries", "grounded", "missing", "difficulty", "score", "sources", "language", "answer"]
)
_described = st.fixed_dictionaries({}, optional={"description": st.text(max_size=20)})


def _bounded(low: str, high: str, numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pair = st.tuples(numbers, numbers).map(sorted)
    return pair.flatmap(
        lambda pair: st.fixed_dictionaries(
            {}, optional={low: st.just(pair[0]), high: st.just(pair[1])}
        )
    )


def _typed(kind: str, bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(bounds, _described).map(lambda parts: {"type": kind, **parts[0], **parts[1]})


_leaves = st.one_of(
    _typed("string", _bounded("minLength", "maxLength", st.integers(0, 30))),
    _typed("integer", _bounded("minimum", "maximum", st.integers(-50, 50))),
    _typed("number", _bounded("minimum", "maximum", st.floats(-9, 9, allow_nan=False))),
    _typed("boolean", st.just({})),
    st.just({"type": "null"}),
    st.just({"$ref": "#/$defs/shared"}),
    st.lists(_words, min_size=1, max_size=4).map(lambda words: {"enum": words}),
    st.integers().map(lambda number: {"const": number}),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def with_required(properties: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.lists(st.sampled_from(sorted(properties)), unique=True).map(
            lambda names: {
                "type": "object",
                "properties": properties,
                "required": names,
                "additionalProperties": False,
            }
        )

    objects = st.dictionaries(_words, inner, min_size=1, max_size=4).flatmap(with_required)
    arrays = st.tuples(inner, _bounded("minItems", "maxItems", st.integers(0, 4))).map(
        lambda parts: {"type": "array", "items": parts[0], **parts[1]}
    )
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return objects | arrays | unions


_schemas = st.recursive(_leaves, _nested, max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(schema=_schemas, question=st.text(max_size=60), answer=st.none() | st.text(max_size=60))
def test_whatever_the_schema_the_value_fits(
    schema: dict[str, Any], question: str, answer: str | None
) -> None:
    """Any schema of the understood subset gets a value that an independent check accepts."""
    root = {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
        "$defs": {"shared": {"type": "integer", "minimum": 3, "maximum": 5}},
    }
    value = fill(root, question, answer=answer)

    assert fits(value, root, root)
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("question", "level"),
    [
        ("What is a mirn valve?", 0),
        ("Mirn 阀门是什么？", 0),
        ("Compare mirn valves and ostrel gauges for a small boiler.", 1),
        (HARD, 2),
        ("为什么阀门先于压力表动作，两者有什么区别，如果同时使用又该如何权衡利弊？", 2),
    ],
)
@pytest.mark.parametrize(
    "scale",
    [
        ["simple", "moderate", "hard"],
        ["hard", "simple", "moderate"],
        ["low", "medium", "high"],
        ["简单", "中等", "困难"],
    ],
)
def test_a_scale_is_chosen_by_the_form_of_the_question(
    question: str, level: int, scale: list[str]
) -> None:
    """An enum of places on a scale follows how involved the question is, whatever their order."""
    ordered = {"hard": ["simple", "moderate", "hard"]}.get(scale[0], scale)
    chosen = fill({"properties": {"effort": {"enum": scale}}, "required": ["effort"]}, question)

    assert chosen == {"effort": ordered[level]}


@pytest.mark.parametrize(
    ("question", "searches"),
    [
        ("Compare mirn valves and ostrel gauges", ["mirn valves", "ostrel gauges"]),
        ("What do mirn valves weigh? Who makes ostrel gauges?", ["weigh", "makes ostrel gauges"]),
        ("阀门和压力表有什么区别？", ["阀门", "压力表"]),
    ],
)
def test_an_array_of_queries_takes_the_question_apart(question: str, searches: list[str]) -> None:
    """Each part of the question is looked for by one of the queries."""
    schema = {"type": "array", "title": "sub_queries", "items": {"type": "string"}}
    queries = fill(schema, question)

    assert 2 <= len(queries) <= 3
    assert len(set(queries)) == len(queries)
    for search in searches:
        assert any(search in query for query in queries)


@pytest.mark.parametrize(
    ("answer", "grounded", "complete"),
    [
        ("A mirn valve opens at 80 degrees. [1]", True, True),
        ("Mirn valves open at 80 degrees and an ostrel gauge reads pressure.", True, True),
        ("A mirn valve opens when emperor Nero whistles a lullaby near Vesuvius.", False, True),
        ("An ostrel gauge reads pressure twice a second. [2]", True, False),
        ("", True, False),
    ],
)
def test_an_answer_is_judged_by_overlap(answer: str, grounded: bool, complete: bool) -> None:
    """Grounded follows from the passages, complete from the question; negations turn round."""
    schema = {
        "properties": {
            "grounded": {"type": "boolean", "description": "every claim is in the passages"},
            "complete": {"type": "boolean", "description": "covers the question"},
            "unsupported": {"type": "boolean"},
            "missing": {"type": "string"},
        },
        "required": ["grounded", "complete", "unsupported", "missing"],
    }
    verdict = fill(schema, "When does a mirn valve open?", answer=answer)

    assert verdict["grounded"] is grounded
    assert verdict["complete"] is complete
    assert verdict["unsupported"] is not grounded
    assert (verdict["missing"] == "") is (grounded and complete)


def test_an_honest_no_answer_is_complete() -> None:
    """Saying that nothing was found is right when there is nothing, and wrong when there is."""
    schema = {"properties": {"complete": {"type": "boolean"}}, "required": ["complete"]}
    for question, right in (("Who rules Atlantis?", True), ("When do mirn valves open?", False)):
        said = "I found nothing in the given passages that answers this: it."
        assert fill(schema, question, answer=said) == {"complete": right}


def test_strings_follow_their_names() -> None:
    """Language, sources, keywords and rewritten questions are what their names say."""
    names = ["language", "source", "keywords", "search_query", "answer"]
    schema = {"properties": {name: {"type": "string"} for name in names}, "required": names}
    value = fill(schema, "What are mirn valves made of?")

    assert value["language"] == "en"
    assert value["source"] == "mirn-basics"
    assert value["keywords"] == "mirn valves made"
    assert value["search_query"] == "What are mirn valves made of?"
    assert "made of tin" in value["answer"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^x$"},
        {"type": "object", "patternProperties": {}},
        {"type": "decimal"},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "minLength": 5, "maxLength": 4},
        {"enum": []},
        {"anyOf": []},
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {
            "type": "object",
            "properties": {"next": {"$ref": "#"}},
            "required": ["next"],
        },
        {"properties": {"a": False}, "required": ["a"]},
        {"properties": [1]},
        {"type": "array", "minItems": "x"},
    ],
    ids=str,
)
def test_what_cannot_be_filled_is_refused(schema: dict[str, Any]) -> None:
    """A schema beyond the subset, or one nothing fits, is an error and never a wrong value."""
    with pytest.raises(UnsupportedSchemaError):
        fill(schema, "What?")


def test_an_optional_recursion_ends() -> None:
    """A schema that may recurse without end is filled as far as it must be."""
    tree = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["name"],
    }

    assert fill(tree, "What are mirn valves?")["name"]
