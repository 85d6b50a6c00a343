"""The answer of a model put together from the chunks or events of a stream, up to a bound."""

from typing import Any, Final

from opentelemetry.trace import Span

from spanloom import semconv
from spanloom.telemetry import content, conversation
from spanloom.telemetry.content import ContentRules, Json, dump

_SEEN_BEHIND: Final = 512
"""Characters kept behind the limit, so that a secret that lies across it is recognised."""
_SIZE_OF_A_PART: Final = 64
_CALL_CHUNKS: Final = frozenset({"tool_use", "tool_call", "tool_call_chunk", "input_json_delta"})
"""Blocks that repeat what a chunk's `tool_call_chunks` say."""


class _Growing:
    """A part of a streamed answer, piece by piece, up to a bound."""

    __slots__ = ("call_id", "index", "kind", "name", "pieces", "room", "unseen")

    def __init__(self, kind: str, index: object, room: int) -> None:
        self.kind = kind
        self.index = index
        self.room = room
        self.name: str | None = None
        self.call_id: str | None = None
        self.pieces: list[str] = []
        self.unseen = 0

    def add(self, text: str, room: int) -> int:
        """Keep as much of the text as there is room for; return how much that was."""
        kept = text[: max(0, min(self.room, room))]
        if kept:
            self.pieces.append(kept)
            self.room -= len(kept)
        self.unseen += len(text) - len(kept)
        return len(kept)

    def part(self, rules: ContentRules) -> Json:
        """The part as far as it came."""
        text = "".join(self.pieces)
        if self.kind != "tool_call":
            return {"type": self.kind, "content": rules.text(text, unseen=self.unseen)}
        made: dict[str, Json] = {"type": "tool_call"}
        if self.call_id:
            made["id"] = rules.text(self.call_id)
        made["name"] = rules.text(self.name or "")
        arguments = text if self.unseen else conversation.parsed(rules, text)
        made["arguments"] = (
            rules.text(text, unseen=self.unseen)
            if isinstance(arguments, str)
            else rules.value(arguments)
        )
        return made


class StreamedAnswer:
    """What came of one streamed answer, for where the whole of it is never seen."""

    __slots__ = ("_parts", "_room", "_rules")

    def __init__(self, rules: ContentRules) -> None:
        self._rules = rules
        self._parts: list[_Growing | Json] = []
        self._room = rules.total

    def write(self, span: Span) -> None:
        """Write it on the span, unless nothing came."""
        if self._parts:
            content.write(span, lambda _: {semconv.GEN_AI_OUTPUT_MESSAGES: self._message()})

    def _message(self) -> str:
        parts = [one.part(self._rules) if isinstance(one, _Growing) else one for one in self._parts]
        return dump([{"role": "assistant", "parts": parts}])

    def chunk(self, message: Any) -> None:
        """Keep what one message chunk of a streamed answer says."""
        said = message.content
        calls = getattr(message, "tool_call_chunks", None) or ()
        reasoning = message.additional_kwargs.get("reasoning_content")
        if isinstance(reasoning, str):
            self._grow("reasoning", None, reasoning)
        if isinstance(said, str):
            self._grow("text", None, said)
        else:
            for block in said:
                self._block(block, has_calls=bool(calls))
        for call in calls:
            self._call(call)

    def event(self, event: Any) -> None:
        """Keep what one event of the content-block protocol says."""
        kind = event.get("event")
        index = ("event", event.get("index"))
        if kind == "content-block-delta":
            delta = event["delta"]
            if delta["type"] == "text-delta":
                self._grow("text", index, delta["text"])
            elif delta["type"] == "reasoning-delta":
                self._grow("reasoning", index, delta["reasoning"])
        elif kind == "content-block-finish":
            block = event["content"]
            if block.get("type") not in ("text", "reasoning"):
                self._whole_part(block)

    def _block(self, block: Any, *, has_calls: bool) -> None:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind == "text":
            text = block if isinstance(block, str) else block.get("text")
            index = None if isinstance(block, str) else block.get("index")
            self._grow("text", index, text or "")
        elif kind in ("reasoning", "thinking"):
            self._grow("reasoning", block.get("index"), conversation.reasoning_of(block))
        elif not (has_calls and kind in _CALL_CHUNKS):
            self._whole_part(block)

    def _whole_part(self, block: Any) -> None:
        if self._room > 0 and (made := conversation.part(self._rules, block)) is not None:
            self._room -= _SIZE_OF_A_PART + len(dump(made))
            self._parts.append(made)

    def _grow(self, kind: str, index: object, text: str) -> None:
        if not text:
            return
        last = self._parts[-1] if self._parts else None
        if not isinstance(last, _Growing) or last.kind != kind or last.index != index:
            last = self._begin(kind, index, self._rules.limit + _SEEN_BEHIND)
        if last is not None:
            self._room -= last.add(text, self._room)

    def _call(self, chunk: Any) -> None:
        index, call_id = chunk.get("index"), chunk.get("id")
        found = next(
            (
                one
                for one in reversed(self._parts)
                if isinstance(one, _Growing)
                and one.kind == "tool_call"
                and one.index == index
                and (call_id is None or one.call_id in (None, call_id))
            ),
            None,
        )
        call = found or self._begin("tool_call", index, self._rules.total // 2)
        if call is not None:
            call.call_id = call.call_id or call_id
            call.name = call.name or chunk.get("name")
            self._room -= call.add(chunk.get("args") or "", self._room)

    def _begin(self, kind: str, index: object, room: int) -> _Growing | None:
        if self._room <= 0:
            return None
        self._room -= _SIZE_OF_A_PART
        part = _Growing(kind, index, room)
        self._parts.append(part)
        return part
