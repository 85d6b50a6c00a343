"""The offline model: a deterministic reply to a chat request, made from what the request holds.

It generates nothing: answers are quoted, tool calls follow from schemas, JSON values from
properties' meanings. Sampling parameters therefore have nothing to act on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from service.llm import extractive, prompt, tool_choice
from service.llm.extractive import Care
from service.llm.structured import Filler
from service.llm.tool_choice import Call, Tool

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class OfflineModel:
    """One size of the model."""

    name: str
    context_window: int
    """Tokens of prompt and reply together."""
    care: Care


MODELS: Final[Mapping[str, OfflineModel]] = {
    model.name: model
    for model in (
        OfflineModel("offline-small", 8_192, Care(2, 0.34, 0.3)),
        OfflineModel("offline-medium", 32_768, Care(4, 0.34, 0.2)),
        OfflineModel("offline-large", 131_072, Care(6, 0.34, 0.12)),
    )
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the model is asked: messages in OpenAI's wire form, and what it may answer with."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of the tool that must be called."""
    parallel_tool_calls: bool = True
    response_schema: Mapping[str, Any] | None = None
    json_object: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """Text, or calls, never both."""

    text: str = ""
    calls: tuple[Call, ...] = ()

    @property
    def finish_reason(self) -> FinishReason:
        """Why the reply ended, before any limit of tokens."""
        return "tool_calls" if self.calls else "stop"


def reply(request: Request, model: OfflineModel) -> Reply:
    """The model's reply; the same request gets the same one.

    Raises:
        UnsupportedSchemaError: a schema that a value is needed for is outside the subset.
    """
    asked = prompt.parse(request.messages)
    filler = Filler(asked, model.care)
    if request.tools and request.tool_choice != "none":
        calls = _calls(request, asked, filler)
        if calls:
            return Reply(calls=calls)
    if request.response_schema is not None:
        return Reply(_json(filler.fill(request.response_schema)))
    if request.json_object:
        sources = dict.fromkeys(each.document_id for each in asked.passages if each.document_id)
        text = extractive.answer(asked, model.care)
        return Reply(_json({"answer": text, "sources": list(sources)}))
    if request.tools and (word := tool_choice.instructed_word(asked.instructions)):
        return Reply(word)
    return Reply(extractive.answer(asked, model.care))


def _calls(request: Request, asked: prompt.Prompt, filler: Filler) -> tuple[Call, ...]:
    offered = request.tools
    if request.tool_choice not in ("auto", "required"):
        offered = [tool for tool in offered if tool.name == request.tool_choice]
    calls = tool_choice.choose(asked, offered, filler.fill, parallel=request.parallel_tool_calls)
    if not calls and request.tool_choice != "auto":
        calls = [tool_choice.force(asked, offered, filler.fill)]
    return tuple(calls)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
