"""One chat completion, from checked request to counted tokens. Pure and deterministic."""

import codecs
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.llm import offline_model
from service.llm.offline_model import MODELS, FinishReason
from service.llm.structured import UnsupportedSchemaError
from service.llm.tokenizer import Tokenizer
from service.llm.tool_choice import Call
from service.llm.wire import ApiError, ChatRequest, Usage

HTTP_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the reply as it is streamed: some text, or a part of one tool call."""

    tokens: int
    text: str = ""
    call: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished reply in wire terms."""

    model: str
    text: str
    calls: tuple[dict[str, Any], ...]
    finish_reason: FinishReason
    usage: Usage
    token_bytes: tuple[bytes, ...]
    call_tokens: tuple[int, ...]

    def pieces(self, tokens_each: int) -> Iterator[Piece]:
        """The reply in order, `tokens_each` tokens at a time; joined they are the whole reply.

        A code point whose bytes lie in several tokens comes with the last of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        for start in range(0, len(self.token_bytes), tokens_each):
            taken = self.token_bytes[start : start + tokens_each]
            yield Piece(len(taken), decoder.decode(b"".join(taken)))
        for index, (call, tokens) in enumerate(zip(self.calls, self.call_tokens, strict=True)):
            yield from _call_pieces(index, call, tokens, tokens_each)


def complete(request: ChatRequest, tokenizer: Tokenizer) -> Completion:
    """Answer `request`.

    Raises:
        ApiError: no such model, a prompt beyond its context window, a schema it cannot fill.
    """
    model = MODELS.get(request.model)
    if model is None:
        raise ApiError(
            f"The model `{request.model}` does not exist or you do not have access to it. "
            f"Known models: {', '.join(MODELS)}.",
            status=HTTP_NOT_FOUND,
            param="model",
            code="model_not_found",
        )
    prompt_tokens = tokenizer.count_prompt(
        request.wire_messages, tools=request.wire_tools, response_format=request.wire_format
    )
    room = model.context_window - prompt_tokens
    if room < 1:
        raise ApiError(
            f"This model's maximum context length is {model.context_window} tokens. However, "
            f"your messages resulted in {prompt_tokens} tokens. Please reduce the length of the "
            "messages.",
            param="messages",
            code="context_length_exceeded",
        )
    try:
        reply = offline_model.reply(request.to_model(), model)
    except UnsupportedSchemaError as error:
        raise ApiError(
            f"Invalid schema: {error}.",
            param="response_format" if request.wire_format else "tools",
            code="invalid_json_schema",
        ) from error
    wanted = (request.max_tokens, request.max_completion_tokens)
    limit = min([room, *(each for each in wanted if each is not None)])
    if reply.calls:
        return _with_calls(request, reply.calls, tokenizer, limit, prompt_tokens)
    return _with_text(request, reply.text, tokenizer, limit, prompt_tokens)


def _with_text(
    request: ChatRequest, text: str, tokenizer: Tokenizer, limit: int, prompt_tokens: int
) -> Completion:
    text = _until_stop(text, request.stop_sequences)
    ids = tokenizer.encode(text)
    finish: FinishReason = "stop"
    if len(ids) > limit:
        finish, ids = "length", ids[:limit]
        text = tokenizer.decode(ids)
    return Completion(
        model=request.model,
        text=text,
        calls=(),
        finish_reason=finish,
        usage=Usage(prompt_tokens, len(ids)),
        token_bytes=tuple(tokenizer.token_bytes(ids)),
        call_tokens=(),
    )


def _with_calls(
    request: ChatRequest,
    calls: Sequence[Call],
    tokenizer: Tokenizer,
    limit: int,
    prompt_tokens: int,
) -> Completion:
    written: list[dict[str, Any]] = []
    counts: list[int] = []
    finish: FinishReason = "tool_calls"
    for call in calls:
        name_tokens = tokenizer.count(call.name)
        room = limit - sum(counts) - name_tokens
        arguments = tokenizer.encode(json.dumps(call.arguments, ensure_ascii=False))
        if len(arguments) > room:
            finish = "length"
        if room < 0:
            break
        written.append(
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": tokenizer.decode(arguments[:room])},
            }
        )
        counts.append(name_tokens + len(arguments[:room]))
        if finish == "length":
            break
    return Completion(
        model=request.model,
        text="",
        calls=tuple(written),
        finish_reason=finish,
        usage=Usage(prompt_tokens, sum(counts)),
        token_bytes=(),
        call_tokens=tuple(counts),
    )


def _until_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first stop sequence, which is not part of the reply."""
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _call_pieces(
    index: int, call: dict[str, Any], tokens: int, tokens_each: int
) -> Iterator[Piece]:
    """Id and name first, then the arguments in parts, as OpenAI streams a call."""
    function = call["function"]
    opening = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
    arguments = function["arguments"]
    parts = max(1, -(-tokens // tokens_each))
    size = max(1, -(-len(arguments) // parts))
    yield Piece(tokens, call=opening)
    for start in range(0, len(arguments), size):
        part = arguments[start : start + size]
        yield Piece(0, call={"index": index, "function": {"arguments": part}})
