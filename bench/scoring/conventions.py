"""How the spans of each tracer are read: no tracer is judged by what it calls things.

The span of a node or tool is one that has its name as a word of the span's name (`retrieve`,
`invoke_node retrieve`, `retrieve.tool`), or as the value of one of `unit_keys`. The span of a model
call is one with any of `model_marks`. Tokens are the first of the keys that is there.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .record import Span


@dataclass(frozen=True)
class Convention:
    """The attribute names of one family of tracers."""

    source: str
    """Who writes it like this, and where that is said."""
    unit_keys: tuple[str, ...] = ()
    model_marks: tuple[tuple[str, str], ...] = ()
    """Attribute and value, in small letters."""
    input_tokens: tuple[str, ...] = ()
    output_tokens: tuple[str, ...] = ()
    usage_json: str = ""
    """Attribute with both as JSON, `{"input": 11, "output": 5}`."""
    counted: tuple[str, ...] = ()
    """What else says how much of a stream had come: a number of chunks, or the text itself."""
    conversation: tuple[str, ...] = ()
    """What the runs of one conversation have in common."""


GENAI: Final = Convention(
    "OpenTelemetry's GenAI conventions",
    unit_keys=("gen_ai.node.name", "gen_ai.task.name", "gen_ai.tool.name"),
    model_marks=(
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.operation.name", "generate_content"),
    ),
    input_tokens=("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    output_tokens=("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    counted=("gen_ai.output.messages",),
    conversation=("gen_ai.conversation.id",),
)
SPANLOOM: Final = Convention(
    "Spanloom: docs/telemetry.md, beside the GenAI conventions",
    counted=("spanloom.stream.chunks",),
)
OPENINFERENCE: Final = Convention(
    "OpenInference semantic conventions",
    unit_keys=("tool.name", "graph.node.name", "graph.node.id"),
    model_marks=(("openinference.span.kind", "llm"),),
    input_tokens=("llm.token_count.prompt",),
    output_tokens=("llm.token_count.completion",),
    counted=("llm.output_messages.0.message.content",),
    conversation=("session.id",),
)
OPENLLMETRY: Final = Convention(
    "OpenLLMetry (Traceloop), beside the GenAI conventions",
    unit_keys=("traceloop.entity.name",),
    model_marks=(("llm.request.type", "chat"), ("llm.request.type", "completion")),
    input_tokens=("llm.usage.prompt_tokens",),
    output_tokens=("llm.usage.completion_tokens",),
    counted=("gen_ai.completion.0.content",),
    conversation=(
        "traceloop.association.properties.thread_id",
        "traceloop.association.properties.session_id",
    ),
)
LANGFUSE: Final = Convention(
    "Langfuse",
    model_marks=(("langfuse.observation.type", "generation"),),
    usage_json="langfuse.observation.usage_details",
    counted=("langfuse.observation.output",),
    conversation=("session.id", "langfuse.observation.metadata.thread_id"),
)
OPENLIT: Final = Convention("OpenLIT, beside the GenAI conventions")
ALL: Final = (GENAI, SPANLOOM, OPENINFERENCE, OPENLLMETRY, LANGFUSE, OPENLIT)


@dataclass(frozen=True)
class Reader:
    """Reads spans by some conventions; the first that knows an answer gives it."""

    conventions: tuple[Convention, ...] = ALL

    def is_of(self, span: Span, unit: str) -> bool:
        """Whether this is a span of a node or tool with this name."""
        if not span.is_tracers:
            return False
        if re.search(rf"(?<!\w){re.escape(unit)}(?!\w)", span.name):
            return True
        keys = (key for convention in self.conventions for key in convention.unit_keys)
        return any(span.attributes.get(key) == unit for key in keys)

    def is_model(self, span: Span) -> bool:
        """Whether this is a span of a model call."""
        return span.is_tracers and any(
            str(span.attributes.get(key, "")).lower() == value
            for convention in self.conventions
            for key, value in convention.model_marks
        )

    def tokens(self, span: Span) -> tuple[int | None, int | None]:
        """Input and output tokens; None where nothing is said."""
        given = span.attributes
        for convention in self.conventions:
            if usage := _json_object(given.get(convention.usage_json)):
                return _first(usage, ["input"]), _first(usage, ["output"])
        return (
            _first(given, [k for one in self.conventions for k in one.input_tokens]),
            _first(given, [k for one in self.conventions for k in one.output_tokens]),
        )

    def says_how_far(self, span: Span) -> bool:
        """Whether it is said how much of a stream had come: output tokens, chunks, the text."""
        keys = (key for one in self.conventions for key in one.counted)
        return bool(self.tokens(span)[1]) or any(span.attributes.get(key) for key in keys)

    def conversations(self, span: Span) -> set[str]:
        """What the span says that it belongs to."""
        keys = (key for one in self.conventions for key in one.conversation)
        return {str(span.attributes[key]) for key in keys if span.attributes.get(key)}


def _json_object(text: Any) -> dict[str, Any]:
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(text), dict):
                return found
    return {}


def _first(attributes: Mapping[str, Any], keys: list[str]) -> int | None:
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value)
    return None
