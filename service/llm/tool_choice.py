"""Which offered tools the question needs, read from their schemas, not from their names.

A tool is recognised by what its parameters and description say they take: an arithmetic
expression, a time zone (or nothing but a description that speaks of the present time), the id of
a document, a search query.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.llm import arithmetic, language, moments
from service.llm.extractive import WANTS_REFERENCES
from service.llm.prompt import Prompt
from service.llm.structured import UnsupportedSchemaError

_EXPRESSION: Final = re.compile(
    r"expression|arithmetic|formula|calculat|equation|\bmaths?\b|算式|表达式|计算|数学",
    re.IGNORECASE,
)
_PRESENT_TIME: Final = re.compile(
    r"(?:current|present|now|today|local)\W+(?:\w+\W+){0,3}(?:time|date|clock|day|moment)"
    r"|(?:time|date|clock)\W+(?:\w+\W+){0,3}(?:now|today)|\bclock\b"
    r"|(?:当前|现在|今天).{0,6}(?:时间|日期|时刻)",
    re.IGNORECASE,
)
_ZONE: Final = re.compile(r"zone|\btz\b|\bcity\b|location|place|时区|城市|地点", re.IGNORECASE)
_DOCUMENT_ID: Final = re.compile(
    r"(?:doc(?:ument)?|article|passage|page|record|note|file|entry)s?[\s_-]*(?:id|identifier|key|slug)"
    r"|(?:id|identifier|slug)\s+of\s+(?:the|a|an)\s+(?:doc|article|passage|page|record|note|file|entry)"
    r"|(?:文档|文章|资料|条目)\s*(?:的)?\s*(?:编号|标识|id)",
    re.IGNORECASE,
)
_SEARCH: Final = re.compile(
    r"\bquery\b|\bsearch\b|\bquestion\b|keywords|查询|检索|搜索", re.IGNORECASE
)

_ID: Final = r"[A-Za-z0-9]+(?:[-_.:/][A-Za-z0-9]+)+|[A-Za-z]+\d+|\d{2,}"
_SLUG: Final = re.compile(r"(?<![\w-])[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)+(?![\w-])")
_NAMED_DOCUMENT: Final = re.compile(
    rf"(?:\b(?:document|doc|article|passage|page|record|note|entry|id)s?\b"
    rf"|文档|文章|资料|条目|编号)\s*(?:id|named|called|with|编号|为|是|number|no\.?|[:：#])*\s*"
    rf"[\"'“‘`「(（]*(?P<id>{_ID})",
    re.IGNORECASE,
)
_SPEAKS_OF_DOCUMENTS: Final = re.compile(
    r"\b(?:document|doc|article|full text|look ?up|fetch|open)\b|文档|文章|全文|查阅|打开|原文",
    re.IGNORECASE,
)
_REFERENCE_IN_TEXT: Final = re.compile(
    r"(?:\b[Ss]ee(?: also)?\b|\b[Rr]efers? to\b|参见|参阅|另见|见)[:：]?\s*"
    r"(?P<list>[^.。\n]{1,200})"
    r"|\[\[(?P<link>[^\]\n]{1,80})\]\]"
)
_WANTS_WHOLE: Final = re.compile(
    r"\b(?:full|whole|entire|complete) (?:text|document|article)\b"
    r"|全文|整篇|完整(?:的)?(?:文档|文章)",
    re.IGNORECASE,
)
_INSTRUCTED_WORD: Final = re.compile(
    r"(?:\b(?:reply|respond|answer|say|output|write)\b|回复|回答|输出|只说)[^.。\n\"'“‘`「]{0,60}?"
    r"(?:[\"'“‘`「](?P<quoted>[^\"'”’`」\n]{1,20})[\"'”’`」]|\bword[:\s]+(?P<word>\w{1,20})"
    r"|\b(?P<done>done)\b)",
    re.IGNORECASE,
)
_KINDS: Final = (_EXPRESSION, _DOCUMENT_ID, _ZONE, _SEARCH)


@dataclass(frozen=True, slots=True)
class Tool:
    """An offered function: its JSON schema of parameters is an object schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        """Parameter schemas by name."""
        properties = self.parameters.get("properties")
        if not isinstance(properties, Mapping):
            return {}
        return {name: each for name, each in properties.items() if isinstance(each, Mapping)}

    @property
    def required(self) -> frozenset[str]:
        """Names of parameters that must be given."""
        required = self.parameters.get("required")
        return frozenset(required) if isinstance(required, list) else frozenset()


@dataclass(frozen=True, slots=True)
class Call:
    """A call to make; `arguments` is an object for the tool's schema."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two calls that would do the same."""
        return self.name, json.dumps(self.arguments, sort_keys=True, ensure_ascii=False)


Fill = Callable[[Mapping[str, Any]], Any]
"""Makes a value for a JSON schema from the prompt at hand."""


def choose(prompt: Prompt, tools: Sequence[Tool], fill: Fill, *, parallel: bool) -> list[Call]:
    """The calls the question needs and does not have yet; at most one unless `parallel`.

    Required parameters that the question says nothing about get values made by `fill`; a tool
    for which that fails is not called.
    """
    made = {_made_key(call.name, call.arguments) for call in prompt.tool_calls}
    calls: list[Call] = []
    for tool in tools:
        for known in _known_arguments(tool, prompt):
            try:
                call = _completed(tool, known, fill)
            except UnsupportedSchemaError:
                continue
            if call.key not in made and call.key not in {other.key for other in calls}:
                calls.append(call)
    return calls if parallel else calls[:1]


def force(prompt: Prompt, tools: Sequence[Tool], fill: Fill) -> Call:
    """The one call to make when a tool must be called and none is needed by the question.

    The tool whose description shares most terms with the question; the first on a tie.
    """
    asked = set(language.terms(prompt.question))
    best = max(
        tools, key=lambda tool: len(asked & set(language.terms(f"{tool.name} {tool.description}")))
    )
    known = next(iter(_known_arguments(best, prompt)), {})
    return Call(best.name, {**fill({"type": "object", **best.parameters}), **known})


def instructed_word(instructions: str) -> str | None:
    """The word the instructions want when there is nothing left to do, such as `done`."""
    found = _INSTRUCTED_WORD.search(instructions)
    return (found["quoted"] or found["word"] or found["done"]).strip() if found else None


def _known_arguments(tool: Tool, prompt: Prompt) -> list[dict[str, Any]]:
    """The arguments of each call the question asks of this tool; empty if it asks for none."""
    if (name := _parameter(tool, _EXPRESSION)) is not None:
        return [{name: expression} for expression in arithmetic.expressions(prompt.question)]
    if (name := _parameter(tool, _DOCUMENT_ID)) is not None:
        return [{name: document_id} for document_id in document_ids(prompt)]
    about = f"{tool.name.replace('_', ' ')} {tool.description}"
    if _PRESENT_TIME.search(about):
        return _time_arguments(tool, prompt.question)
    if (
        not prompt.passages
        and not prompt.tool_calls
        and _SEARCH.search(about)
        and (name := _parameter(tool, _SEARCH)) is not None
        and language.terms(prompt.question)
    ):
        return [{name: prompt.question}]
    return []


def _time_arguments(tool: Tool, question: str) -> list[dict[str, Any]]:
    if not moments.asks_for_now(question):
        return []
    name = _parameter(tool, _ZONE)
    zones = moments.time_zones(question)
    if name is None:
        return [{}]
    if zones:
        return [{name: zone} for zone in zones]
    return [{name: "UTC"}] if name in tool.required else [{}]


def document_ids(prompt: Prompt) -> list[str]:
    """Ids of the documents the question wants to see, at most three.

    Those it names; those its passages refer to, if it asks what they refer to; the first
    passage's own, if it wants a whole text it does not name.
    """
    question = prompt.question
    sources = list(dict.fromkeys(each.document_id for each in prompt.passages if each.document_id))
    named = [match["id"] for match in _NAMED_DOCUMENT.finditer(question)]
    named += [each for each in sources if _mentions(question, each)]
    if _SPEAKS_OF_DOCUMENTS.search(question):
        named += _SLUG.findall(question)
    if not named and WANTS_REFERENCES.search(question):
        named = _references(prompt, frozenset(sources)) or sources[:1]
    if not named and _WANTS_WHOLE.search(question):
        named = sources[:1]
    return list(dict.fromkeys(each.rstrip(".-_:/") for each in named))[:3]


def _mentions(question: str, document_id: str) -> bool:
    """Is the id in the question as an id, not as an everyday word that happens to equal it?"""
    if not re.search(r"[-_\d]", document_id):
        return False
    return re.search(rf"(?<![\w-]){re.escape(document_id)}(?![\w-])", question) is not None


def _references(prompt: Prompt, sources: frozenset[str]) -> list[str]:
    found: list[str] = []
    for passage in prompt.passages:
        for match in _REFERENCE_IN_TEXT.finditer(passage.text):
            found += [match["link"]] if match["link"] else _SLUG.findall(match["list"])
        found += [
            each
            for each in _SLUG.findall(passage.text)
            if each in sources and each != passage.document_id
        ]
    return found


def _parameter(tool: Tool, about: re.Pattern[str]) -> str | None:
    """The string parameter whose name or description fits; or the only one, if the tool does."""
    strings = [name for name, schema in tool.properties.items() if _takes_string(schema)]
    for name in strings:
        if about.search(_described(tool, name)):
            return name
    if len(strings) != 1 or any(kind.search(_described(tool, strings[0])) for kind in _KINDS):
        return None
    return strings[0] if about.search(f"{tool.name.replace('_', ' ')} {tool.description}") else None


def _described(tool: Tool, name: str) -> str:
    schema = tool.properties[name]
    words = (name, name.replace("_", " "), schema.get("title", ""), schema.get("description", ""))
    return " ".join(str(word) for word in words)


def _takes_string(schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return False
    kinds = schema.get("type")
    if kinds is None:
        return any(_takes_string(option) for option in schema.get("anyOf", ()))
    return "string" in (kinds if isinstance(kinds, list) else [kinds])


def _completed(tool: Tool, known: Mapping[str, Any], fill: Fill) -> Call:
    """`known` with every other required parameter filled in."""
    unknown = tool.required - known.keys()
    filled = fill({"type": "object", **tool.parameters}) if unknown else {}
    return Call(tool.name, {**{name: filled[name] for name in sorted(unknown)}, **known})


def _made_key(name: str, arguments: str) -> tuple[str, str]:
    try:
        return name, json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False)
    except ValueError:
        return name, arguments
