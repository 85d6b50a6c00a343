"""Values for a JSON schema, worked out from the prompt by each property's type and meaning.

The subset that is understood: object, array, string, number, integer, boolean, null, enum,
const, anyOf, $ref to $defs, required, and the bounds of lengths, counts and numbers. Whatever
is asked for beyond it is refused, so what is returned always fits its schema.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from service.llm import extractive, language, questions
from service.llm.extractive import Care
from service.llm.judgement import Judgement, judge
from service.llm.prompt import Prompt

_UNDERSTOOD: Final = frozenset(
    """$defs $id $ref $schema additionalProperties anyOf const default definitions deprecated
    description enum examples exclusiveMaximum exclusiveMinimum items maxItems maxLength maximum
    minItems minLength minimum nullable properties readOnly required strict title type
    writeOnly""".split()  # noqa: SIM905 -- a list of words reads best as words
)
_MAX_DEPTH: Final = 24
_DEFAULT_ITEMS: Final = 3
_MODERATE: Final = 0.3
_HARD: Final = 0.6

# Words for a place on a scale, 0 to 1; an enum of such words is ordered by them.
_SCALE: Final = {
    word: place
    for place, words in (
        (0.0, "trivial none minimal lowest tiny easiest 无"),
        (
            0.15,
            "simple easy low small short basic direct light fast quick beginner 简单 容易 低 小",
        ),
        (0.5, "moderate medium normal standard average mid intermediate 中等 一般 中 适中"),
        (
            0.85,
            "hard difficult complex high large long advanced heavy slow deep 困难 复杂 难 高 大",
        ),
        (1.0, "extreme expert highest hardest critical max 极难 极高"),
    )
    for word in words.split()
}
_ABOUT_LANGUAGE: Final = re.compile(r"\blang(?:uage)?\b|语言", re.IGNORECASE)
_ABOUT_GAPS: Final = re.compile(
    r"missing|gaps?\b|lack|uncovered|unanswered|absent|缺|遗漏|未覆盖", re.IGNORECASE
)
_ABOUT_GROUNDING: Final = re.compile(
    r"ground|support|faithful|factual|hallucinat|evidence|attribut|依据|忠实|有据|幻觉",
    re.IGNORECASE,
)
_ABOUT_COMPLETENESS: Final = re.compile(
    r"complete|sufficien|enough|cover|answered|relevan|adequate|satisf|完整|充分|足够|相关",
    re.IGNORECASE,
)
_ABOUT_FOLLOW_UP: Final = re.compile(r"follow.?up|needs? (?:history|context)|追问", re.IGNORECASE)
_NEGATED: Final = re.compile(
    r"\b(?:un|in|not|non|ir)[-_ ]?(?=[a-z])|hallucinat|不|未|幻觉", re.IGNORECASE
)
_ABOUT_ANSWER: Final = re.compile(
    r"answer|response|summary|reply|explanation|reason|conclusion|quote|text|答|总结|摘要|理由|解释",
    re.IGNORECASE,
)
_ABOUT_QUERY: Final = re.compile(
    r"quer(?:y|ies)|question|search|rewrite|rephras|standalone|查询|问题|检索|搜索", re.IGNORECASE
)
_ABOUT_WORDS: Final = re.compile(
    r"key ?words?|terms?\b|topics?|tags?\b|entit|关键词|主题|标签", re.IGNORECASE
)
_ABOUT_SOURCES: Final = re.compile(
    r"sources?|citations?|documents?|passages?|references?|\bids?\b|来源|引用|文档", re.IGNORECASE
)
_ABOUT_SCORE: Final = re.compile(
    r"score|confidence|probab|ratio|coverage|quality|分|置信|概率", re.IGNORECASE
)
_ABOUT_COUNT: Final = re.compile(r"count|number of|how many|total|数量|个数", re.IGNORECASE)
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")


class UnsupportedSchemaError(ValueError):
    """The schema asks for something outside the understood subset; `path` says where."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path or 'the schema'}: {problem}")
        self.path = path


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the schema a value goes: what its name and description say, and its path."""

    about: str
    path: str
    depth: int

    @property
    def own_name(self) -> str:
        """The property's name in words."""
        return self.path.rpartition(".")[2].replace("_", " ")

    def child(self, name: str, schema: object) -> "_Place":
        """The place of property `name`."""
        told = schema if isinstance(schema, Mapping) else {}
        words = (name, name.replace("_", " "), told.get("title", ""), told.get("description", ""))
        return _Place(
            " ".join(str(word) for word in words), f"{self.path}.{name}".lstrip("."), self.depth + 1
        )


class Filler:
    """Makes values for schemas from one prompt; the judgement of its answer is made once."""

    def __init__(self, prompt: Prompt, care: Care) -> None:
        self._prompt = prompt
        self._care = care
        self._cached: Judgement | None = None

    def fill(self, schema: Mapping[str, Any]) -> Any:
        """A value that fits `schema`.

        Raises:
            UnsupportedSchemaError: the schema is outside the understood subset, or nothing
                finite fits it.
        """
        name = str(schema.get("title", ""))
        place = _Place(f"{name} {name.replace('_', ' ')} {schema.get('description', '')}", "", 0)
        try:
            return self._value(schema, schema, place)
        except (AttributeError, TypeError) as error:
            # A keyword holds something of another kind than JSON schema says.
            raise UnsupportedSchemaError("", f"not a JSON schema: {error}") from error

    @property
    def _judgement(self) -> Judgement:
        if self._cached is None:
            self._cached = judge(self._prompt, self._care)
        return self._cached

    def _value(self, schema: Any, root: Mapping[str, Any], place: _Place) -> Any:
        schema = _resolved(schema, root, place)
        if place.depth > _MAX_DEPTH:
            raise UnsupportedSchemaError(place.path, "nested too deeply, or without end")
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], place)
        if "anyOf" in schema:
            return self._any_of(schema, root, place)
        makers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, root, place),
            "array": lambda: self._array(schema, root, place),
            "string": lambda: _within_length(self._string(place), schema, place),
            "number": lambda: _within_bounds(self._number(schema, place), schema, place),
            "integer": lambda: _within_bounds(round(self._number(schema, place)), schema, place),
            "boolean": lambda: self._boolean(place),
            "null": lambda: None,
        }
        make = makers.get(_kind(schema))
        if make is None:
            raise UnsupportedSchemaError(place.path, f"type {_kind(schema)!r} is not known")
        return make()

    def _any_of(self, schema: Mapping[str, Any], root: Mapping[str, Any], place: _Place) -> Any:
        options = schema["anyOf"]
        problem: UnsupportedSchemaError | None = None
        nulls_last = sorted(options, key=lambda option: option == {"type": "null"})
        for option in nulls_last:
            try:
                return self._value(option, root, place)
            except UnsupportedSchemaError as error:
                problem = error
        raise problem or UnsupportedSchemaError(place.path, "anyOf offers nothing")

    def _object(
        self, schema: Mapping[str, Any], root: Mapping[str, Any], place: _Place
    ) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        filled: dict[str, Any] = {}
        for name, part in properties.items():
            try:
                filled[name] = self._value(part, root, place.child(name, part))
            except UnsupportedSchemaError:
                # An optional property may be left out, which also ends a recursive schema.
                if name in required:
                    raise
        for name in required:
            if name not in properties:
                if schema.get("additionalProperties") is False:
                    raise UnsupportedSchemaError(f"{place.path}.{name}", "required but not allowed")
                filled[name] = ""
        return filled

    def _array(
        self, schema: Mapping[str, Any], root: Mapping[str, Any], place: _Place
    ) -> list[Any]:
        items = schema.get("items", {"type": "string"})
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(_DEFAULT_ITEMS, least))
        if most < least:
            raise UnsupportedSchemaError(place.path, "maxItems is below minItems")
        item = _resolved(items, root, place)
        if _kind(item) == "string" and not {"enum", "const", "anyOf"} & item.keys():
            described = replace(place, about=f"{place.about} {item.get('description', '')}")
            found: list[Any] = [
                _within_length(text, item, place) for text in self._strings(described, most)
            ]
        elif most == 0:
            found = []
        else:
            try:
                found = [self._value(items, root, place.child("items", item))]
            except UnsupportedSchemaError:
                if least:
                    raise
                found = []
        while len(found) < least:
            found.append(
                found[0] if found else self._value(items, root, place.child("items", item))
            )
        return found[:most]

    def _strings(self, place: _Place, limit: int) -> list[str]:
        prompt = self._prompt
        by_meaning: tuple[tuple[re.Pattern[str], Callable[[], list[str]]], ...] = (
            (_ABOUT_GAPS, lambda: list(self._judgement.missing)),
            (_ABOUT_QUERY, lambda: questions.decompose(prompt, limit)),
            (_ABOUT_WORDS, lambda: language.content_words(prompt.question)),
            (_ABOUT_SOURCES, self._sources),
        )
        for about in (place.own_name, place.about):
            for meaning, make in by_meaning:
                if meaning.search(about):
                    return make()[:limit]
        return questions.decompose(prompt, limit)

    def _choice(self, options: list[Any], place: _Place) -> Any:
        if not options:
            raise UnsupportedSchemaError(place.path, "enum offers nothing")
        words = [option for option in options if isinstance(option, str)]
        if words and _ABOUT_LANGUAGE.search(place.about):
            tongue = language.detect(self._prompt.question)
            names = {"en": ("en", "english"), "zh": ("zh", "chinese", "中文")}[tongue]
            for word in words:
                if word.lower().startswith(names):
                    return word
        score = questions.complexity(self._prompt.question)
        scaled = {word: _SCALE[word.lower()] for word in words if word.lower() in _SCALE}
        if len(scaled) > 1:
            level = 0.15 if score < _MODERATE else 0.5 if score < _HARD else 0.85
            return min(scaled, key=lambda word: abs(scaled[word] - level))
        asked = set(language.terms(self._prompt.question))
        overlaps = [len(asked & set(language.terms(word.replace("_", " ")))) for word in words]
        if any(overlaps):
            return words[overlaps.index(max(overlaps))]
        return options[0]

    def _boolean(self, place: _Place) -> bool:
        # The name decides first: a description often mentions the neighbouring properties.
        for about in (place.own_name, place.about):
            negated = _NEGATED.match(about) is not None
            if _ABOUT_GROUNDING.search(about):
                return self._judgement.grounded != negated
            if _ABOUT_COMPLETENESS.search(about):
                return self._judgement.complete != negated
            if _ABOUT_GAPS.search(about):
                return bool(self._judgement.missing)
            if _ABOUT_FOLLOW_UP.search(about):
                return self._prompt.is_follow_up
        asked = set(language.terms(self._prompt.question))
        return bool(asked & set(language.terms(place.about)))

    def _string(self, place: _Place) -> str:
        prompt = self._prompt
        by_meaning: tuple[tuple[re.Pattern[str], Callable[[], str]], ...] = (
            (_ABOUT_GAPS, lambda: self._judgement.shortcomings),
            (_ABOUT_LANGUAGE, lambda: language.detect(prompt.question)),
            (_ABOUT_QUERY, lambda: questions.standalone(prompt)),
            (_ABOUT_ANSWER, self._answer),
            (_ABOUT_WORDS, lambda: " ".join(language.content_words(prompt.question))),
            (_ABOUT_SOURCES, lambda: next(iter(self._sources()), "")),
        )
        for about in (place.own_name, place.about):
            for meaning, make in by_meaning:
                if meaning.search(about):
                    return make()
        return self._answer()

    def _answer(self) -> str:
        return extractive.answer(self._prompt, self._care, with_notice=False)

    def _sources(self) -> list[str]:
        names = (each.document_id or each.title for each in self._prompt.passages)
        return list(dict.fromkeys(name for name in names if name))

    def _number(self, schema: Mapping[str, Any], place: _Place) -> float:
        if _ABOUT_SCORE.search(place.about):
            low, high = schema.get("minimum", 0.0), schema.get("maximum", 1.0)
            return float(low + (high - low) * self._judgement.coverage)
        if _ABOUT_COUNT.search(place.about):
            return float(len(self._prompt.passages))
        in_question = _NUMBER.search(self._prompt.question)
        return float(in_question.group()) if in_question else 0.0


def _resolved(given: object, root: Mapping[str, Any], place: _Place) -> Mapping[str, Any]:
    """The schema behind a chain of references."""
    if given is True:
        return {"type": "string"}
    if not isinstance(given, Mapping):
        raise UnsupportedSchemaError(place.path, "a schema must be an object")
    schema: Mapping[str, Any] = given
    for _hop in range(_MAX_DEPTH):
        if unknown := sorted(schema.keys() - _UNDERSTOOD):
            raise UnsupportedSchemaError(place.path, f"{unknown[0]!r} is not supported")
        reference = schema.get("$ref")
        if reference is None:
            return schema
        target: object = root
        for part in str(reference).removeprefix("#").strip("/").split("/"):
            target = target.get(part) if isinstance(target, Mapping) and part else target
        if not isinstance(target, Mapping):
            raise UnsupportedSchemaError(place.path, f"$ref {reference!r} leads nowhere")
        schema = target
    raise UnsupportedSchemaError(place.path, "$ref goes round in a circle")


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return next((str(kind) for kind in kinds if kind != "null"), "null")
    if kinds is None:
        return "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kinds)


def _within_length(text: str, schema: Mapping[str, Any], place: _Place) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if most is not None and most < least:
        raise UnsupportedSchemaError(place.path, "maxLength is below minLength")
    return text[:most].ljust(least, ".")


def _within_bounds(value: float, schema: Mapping[str, Any], place: _Place) -> float:
    """`value` moved into the schema's bounds; an int stays an int."""
    whole = isinstance(value, int)
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if (above := schema.get("exclusiveMinimum")) is not None:
        low = max(low, math.floor(above) + 1 if whole else math.nextafter(above, math.inf))
    if (below := schema.get("exclusiveMaximum")) is not None:
        high = min(high, math.ceil(below) - 1 if whole else math.nextafter(below, -math.inf))
    if whole:
        low = math.ceil(low) if math.isfinite(low) else low
        high = math.floor(high) if math.isfinite(high) else high
    if low > high:
        raise UnsupportedSchemaError(place.path, "no number is within the bounds")
    return float(min(max(value, low), high)) if not whole else int(min(max(value, low), high))
