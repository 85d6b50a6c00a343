"""Messages of any maker in the shape of the GenAI conventions: a role and its parts.

    [{"role": "user", "parts": [{"type": "text", "content": "你好"}]},
     {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": …, "arguments": …}]},
     {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": …}]}]

Read are LangChain's messages, the dictionaries and objects of OpenAI and Anthropic, dictionaries
in the shape above, `(role, text)` and plain texts. Images and other media are represented by a
part with their type and size. What cannot be read is represented by the name of its type.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.trace import Span

from spanloom import semconv
from spanloom.telemetry.content import (
    ContentRules,
    Json,
    decoded_size,
    dump,
    fit,
    type_name,
    write,
)

_ROLES: Final = {
    # `type` of LangChain's messages, and of their chunks
    "human": "user",
    "ai": "assistant",
    "function": "tool",
    "HumanMessageChunk": "user",
    "AIMessageChunk": "assistant",
    "SystemMessageChunk": "system",
    "ToolMessageChunk": "tool",
    "FunctionMessageChunk": "tool",
}
_INSTRUCTING: Final = ("system", "developer")
_TEXT: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_REASONING: Final = frozenset({"reasoning", "thinking"})
_CALL: Final = frozenset({"tool_call", "tool_use", "function_call"})
_RESPONSE: Final = frozenset({"tool_call_response", "tool_result", "function_call_output"})
_UNFINISHED: Final = frozenset({"tool_call_chunk", "input_json_delta"})
_MEDIA: Final = ("image", "audio", "video", "document", "file", "blob", "uri", "media", "input_")
_MEDIA_HOLDERS: Final = ("image_url", "source", "input_audio", "file", "inline_data", "file_data")
_URL_KEYS: Final = ("url", "uri", "image_url", "file_uri")
_DATA_KEYS: Final = ("base64", "data", "file_data", "content", "bytes")
_MIME_KEYS: Final = ("mime_type", "media_type", "format")


def write_input(span: Span, messages: Any, tools: Any = None) -> None:
    """Write what a model is sent, at once: the list may grow while it answers."""
    write(span, lambda rules: _asked(rules, messages))
    if tools:
        write(span, lambda rules: {semconv.GEN_AI_TOOL_DEFINITIONS: definitions(rules, tools)})


def write_output(span: Span, messages: Any) -> None:
    """Write what a model answered, one message for each choice."""
    write(
        span,
        lambda rules: {semconv.GEN_AI_OUTPUT_MESSAGES: written(rules, messages, "assistant")},
    )


def write_arguments(span: Span, arguments: Any) -> None:
    """Write what a tool is called with."""
    write(
        span,
        lambda rules: {
            semconv.GEN_AI_TOOL_CALL_ARGUMENTS: dump(rules.value(parsed(rules, arguments)))
        },
    )


def write_result(span: Span, returned: Any) -> None:
    """Write what a tool returned."""
    write(span, lambda rules: {semconv.GEN_AI_TOOL_CALL_RESULT: dump(result(rules, returned))})


def _asked(rules: ContentRules, messages: Any) -> dict[str, str | None]:
    """The system instructions, and the other messages.

    Instructions are the system messages in front, because most providers take them apart from the
    conversation. One that comes later is part of it.
    """
    given = _listed(messages)
    count = 0
    while count < len(given) and _role(given[count], "user") in _INSTRUCTING:
        count += 1
    system = [part for message in given[:count] for part in _parts(rules, message, "system")]
    return {
        semconv.GEN_AI_SYSTEM_INSTRUCTIONS: fit(system, dump, rules.total, _marker("parts"))
        if system
        else None,
        semconv.GEN_AI_INPUT_MESSAGES: written(rules, given[count:], "user")
        if len(given) > count
        else None,
    }


def written(rules: ContentRules, messages: Any, role: str) -> str:
    """JSON of messages; `role` is that of those that do not say it."""
    return fit(
        _listed(messages),
        lambda message: _rendered(rules, message, role),
        rules.total,
        lambda count: dump({"role": "omitted", "parts": [_omitted(count, "messages")]}),
    )


def definitions(rules: ContentRules, tools: Any) -> str | None:
    """JSON of the tools a model may call: type, name, description, parameters."""
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not tools:
        return None
    return fit(tools, lambda tool: dump(_definition(rules, tool)), rules.total, _marker("tools"))


def documents(rules: ContentRules, found: Sequence[tuple[str, float | None]]) -> str:
    """JSON of what a search found: id and score of each document."""

    def shown(document: tuple[str, float | None]) -> str:
        document_id, score = document
        return dump({"id": rules.value(document_id), "score": rules.value(score)})

    return fit(found, shown, rules.total, _marker("documents"))


def _marker(what: str) -> Any:
    return lambda count: dump(_omitted(count, what))


def _omitted(count: int, what: str) -> Json:
    return {"type": "omitted", "content": f"{count} {what} left out"}


def _listed(messages: Any) -> Sequence[Any]:
    """The messages as a sequence; an iterator is left alone, since it can be read only once."""
    if callable(to_messages := field(messages, "to_messages")):  # LangChain's PromptValue
        messages = to_messages()
    if isinstance(messages, Sequence) and not isinstance(messages, str | bytes):
        is_pair = isinstance(messages, tuple) and [*map(type, messages)] == [str, str]
        return [messages] if is_pair else messages
    return [messages]


def field(holder: Any, name: str) -> Any:
    """A value by name, from a dictionary or an object; None where it cannot be had."""
    try:
        return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - an odd object must not hide the others
        return None


def _role(message: Any, default: str) -> str:
    if isinstance(message, str):
        return default
    if isinstance(message, tuple) and message and isinstance(message[0], str):
        role: Any = message[0]
    else:
        role = field(message, "role") or field(message, "type")
    return _ROLES.get(role, role) if isinstance(role, str) else default


def _rendered(rules: ContentRules, message: Any, role: str) -> str:
    try:
        role = rules.text(_role(message, role))
        parts = _parts(rules, message, role)
    except Exception:  # noqa: BLE001 - an odd message must not hide the others
        parts = [{"type": "text", "content": type_name(message)}]
    return f'{{"role":{dump(role)},"parts":{fit(parts, dump, rules.total // 2, _marker("parts"))}}}'


def _parts(rules: ContentRules, message: Any, role: str) -> list[Json]:
    if isinstance(message, str):
        return [_text(rules, message)]
    if isinstance(message, tuple):
        return _contents(rules, message[-1], frozenset())
    if (parts := field(message, "parts")) is not None:
        return _contents(rules, parts, frozenset())
    content = field(message, "content")
    call_id = field(message, "tool_call_id")
    if call_id is not None or role == "tool":
        return [_response(rules, call_id, content)]
    calls = [*(field(message, "tool_calls") or ()), *(field(message, "invalid_tool_calls") or ())]
    known = frozenset(str(field(call, "id")) for call in calls)
    found = _contents(rules, content, known)
    extra = field(message, "additional_kwargs") or {}
    reasoning = field(extra, "reasoning_content") or field(message, "reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        found.insert(0, {"type": "reasoning", "content": rules.text(reasoning)})
    if isinstance(refusal := field(message, "refusal"), str):
        found.append(_text(rules, refusal))
    if content is None and not calls and not found:
        found.append({"type": "text", "content": type_name(message)})
    return found + [_call(rules, call) for call in calls]


def _contents(rules: ContentRules, content: Any, known: frozenset[str]) -> list[Json]:
    """Parts of a message's content: a text, or a list of blocks."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [_text(rules, content)]
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        content = (content,)
    parts = (part(rules, block, known) for block in content)
    return [one for one in parts if one is not None]


def part(rules: ContentRules, block: Any, known: frozenset[str] = frozenset()) -> Json | None:
    """One block of content as a part; None for a tool call that is listed besides (`known`)."""
    if isinstance(block, str):
        return _text(rules, block)
    kind = field(block, "type")
    call_id = first(block, "id", "tool_use_id", "call_id")
    made: Json | None
    if not isinstance(kind, str):
        made = _text(rules, block)
    elif kind in _TEXT:
        made = _text(rules, first(block, "text", "content", "refusal"))
    elif kind in _REASONING:
        made = {"type": "reasoning", "content": rules.text(reasoning_of(block))}
    elif kind in _CALL:
        made = None if str(call_id) in known else _call(rules, block)
    elif kind in _RESPONSE:
        response = first(block, "response", "result", "content", "output")
        made = _response(rules, call_id, response)
    elif kind in _UNFINISHED:
        made = None
    elif kind.startswith(_MEDIA):
        made = _media(rules, block, kind)
    else:
        value = rules.value(block)
        made = value if isinstance(value, dict) else {"type": rules.text(kind), "content": value}
    return made


def first(holder: Any, *names: str) -> Any:
    """The first value that is there under one of the names."""
    for name in names:
        if (value := field(holder, name)) is not None:
            return value
    return None


def _text(rules: ContentRules, text: Any) -> Json:
    shown = rules.text(text) if isinstance(text, str) else dump(rules.value(text))
    return {"type": "text", "content": shown}


def reasoning_of(block: Any) -> str:
    """The text of a reasoning block; OpenAI has it in pieces."""
    text = first(block, "reasoning", "thinking", "content", "text")
    if isinstance(text, str):
        return text
    pieces = first(block, "summary", "content")
    if not isinstance(pieces, Sequence) or isinstance(pieces, str):
        return ""
    return "\n".join(text for one in pieces if isinstance(text := field(one, "text"), str))


def _call(rules: ContentRules, call: Any) -> Json:
    function = field(call, "function") or call  # OpenAI has name and arguments one level down
    arguments = first(function, "args", "arguments", "input")
    made: dict[str, Json] = {"type": "tool_call"}
    if (call_id := first(call, "id", "call_id")) is not None:
        made["id"] = rules.value(call_id)
    made["name"] = rules.value(field(function, "name"))
    made["arguments"] = rules.value(parsed(rules, arguments))
    return made


def parsed(rules: ContentRules, arguments: Any) -> Any:
    """Arguments that came as JSON, so that secrets in them are known by name too."""
    if isinstance(arguments, str) and len(arguments) <= rules.total and "{" in arguments:
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def _response(rules: ContentRules, call_id: Any, content: Any) -> Json:
    made: dict[str, Json] = {"type": "tool_call_response"}
    if call_id is not None:
        made["id"] = rules.value(call_id)
    made["response"] = result(rules, content)
    return made


def result(rules: ContentRules, content: Any) -> Json:
    """What a tool returned; its blocks of content, if that is what it returned, as parts."""
    is_blocks = isinstance(content, list) and all(
        isinstance(field(block, "type"), str) for block in content
    )
    return _contents(rules, content, frozenset()) if is_blocks and content else rules.value(content)


def _media(rules: ContentRules, block: Any, kind: str) -> Json:
    """A placeholder: bytes are never written."""
    holders = [block, *(one for key in _MEDIA_HOLDERS if _is_holder(one := field(block, key)))]

    def find(keys: tuple[str, ...], kinds: type | tuple[type, ...] = str) -> Any:
        found = (field(holder, key) for holder in holders for key in keys)
        return next((one for one in found if isinstance(one, kinds) and one), None)

    mime = find(_MIME_KEYS)
    url = find(_URL_KEYS)
    data = find(_DATA_KEYS, (str, bytes))
    if url is not None and url.startswith("data:"):
        head, _, data = url.partition(",")
        mime, url = head[5:].partition(";")[0] or mime, None
    made: dict[str, Json] = {"type": "blob", "modality": _modality(kind, mime)}
    if mime is not None:
        made["mime_type"] = rules.text(mime)
    if url is not None:
        made.update(type="uri", uri=rules.text(url))
    elif data is not None:
        made["size"] = len(data) if isinstance(data, bytes) else decoded_size(len(data.rstrip("=")))
    elif (file_id := find(("file_id",))) is not None:
        made.update(type="file", file_id=rules.text(file_id))
    return made


def _is_holder(value: Any) -> bool:
    return value is not None and not isinstance(value, str | bytes)


def _modality(kind: str, mime: str | None) -> str:
    for name in ("image", "audio", "video"):
        if name in kind or (mime or "").startswith(f"{name}/"):
            return name
    return "document"


def _definition(rules: ContentRules, tool: Any) -> Json:
    function = field(tool, "function") or tool
    kind = field(tool, "type")
    made: dict[str, Json] = {"type": rules.text(kind) if isinstance(kind, str) else "function"}
    for name, keys in (
        ("name", ("name",)),
        ("description", ("description",)),
        ("parameters", ("parameters", "input_schema")),
    ):
        if (value := first(function, *keys)) is not None:
            made[name] = rules.value(value, is_schema=True)
    if "name" not in made and isinstance(tool, Mapping):  # a provider's own kind of tool
        own = rules.value(tool, is_schema=True)
        return {**own, **made} if isinstance(own, dict) else made
    return made
