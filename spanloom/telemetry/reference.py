"""The tables in `docs/telemetry.md`, made from the settings and the names in use.

    python -m spanloom.telemetry.reference docs/telemetry.md

rewrites what stands between the page's `<!-- table: … -->` and `<!-- end -->` marks. A test
compares the page with this, and the spans with the table.
"""

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from spanloom import semconv
from spanloom.telemetry import settings
from spanloom.telemetry.settings import TelemetrySettings

_MARKED: Final = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
_NOT_SET_BY_USERS: Final = "problems"


class SpanRow(NamedTuple):
    """A span and the attributes that it always and sometimes has."""

    name: str
    kind: str
    always: tuple[str, ...]
    sometimes: tuple[str, ...]
    content: tuple[str, ...] = ()
    """Only where content is captured."""


_SUMS: Final = (
    semconv.SPANLOOM_USAGE_INPUT_TOKENS,
    semconv.SPANLOOM_USAGE_OUTPUT_TOKENS,
    semconv.SPANLOOM_USAGE_ESTIMATED,
    semconv.SPANLOOM_COST_USD,
    semconv.SPANLOOM_COST_PARTIAL,
)
_ENDING: Final = (semconv.ERROR_TYPE, semconv.SPANLOOM_DEADLINE_MS)

SPANS: Final = {
    semconv.OP_INVOKE_WORKFLOW: SpanRow(
        "invoke_workflow {graph}",
        "INTERNAL",
        (semconv.GEN_AI_WORKFLOW_NAME,),
        (semconv.GEN_AI_CONVERSATION_ID, semconv.SPANLOOM_RESUME_WAITED_MS, *_SUMS),
    ),
    semconv.OP_INVOKE_AGENT: SpanRow(
        "invoke_agent {name}",
        "INTERNAL",
        (semconv.GEN_AI_AGENT_NAME,),
        (semconv.GEN_AI_CONVERSATION_ID, semconv.SPANLOOM_RESUME_WAITED_MS, *_SUMS),
    ),
    semconv.OP_INVOKE_NODE: SpanRow(
        "invoke_node {node}",
        "INTERNAL",
        (semconv.GEN_AI_NODE_NAME, semconv.LANGGRAPH_ATTEMPT),
        (
            semconv.LANGGRAPH_STEP,
            semconv.LANGGRAPH_TRIGGERS,
            semconv.LANGGRAPH_CHECKPOINT_NS,
            semconv.GEN_AI_CONVERSATION_ID,
            *_SUMS,
        ),
    ),
    semconv.OP_CHAT: SpanRow(
        "chat {model}",
        "CLIENT",
        (),
        (
            semconv.GEN_AI_PROVIDER_NAME,
            semconv.GEN_AI_REQUEST_MODEL,
            semconv.GEN_AI_CONVERSATION_ID,
            semconv.SERVER_ADDRESS,
            semconv.SERVER_PORT,
            semconv.GEN_AI_REQUEST_STREAM,
            semconv.GEN_AI_REQUEST_TEMPERATURE,
            semconv.GEN_AI_REQUEST_MAX_TOKENS,
            semconv.GEN_AI_REQUEST_TOP_P,
            semconv.GEN_AI_REQUEST_TOP_K,
            semconv.GEN_AI_REQUEST_SEED,
            semconv.GEN_AI_REQUEST_STOP_SEQUENCES,
            semconv.GEN_AI_OUTPUT_TYPE,
            semconv.GEN_AI_RESPONSE_MODEL,
            semconv.GEN_AI_RESPONSE_ID,
            semconv.GEN_AI_RESPONSE_FINISH_REASONS,
            semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK,
            semconv.SPANLOOM_STREAM_CHUNKS,
            semconv.GEN_AI_USAGE_INPUT_TOKENS,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
            semconv.GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS,
            semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
            semconv.SPANLOOM_USAGE_ESTIMATED,
            semconv.SPANLOOM_COST_USD,
            semconv.SPANLOOM_COST_PARTIAL,
        ),
        (
            semconv.GEN_AI_SYSTEM_INSTRUCTIONS,
            semconv.GEN_AI_INPUT_MESSAGES,
            semconv.GEN_AI_OUTPUT_MESSAGES,
            semconv.GEN_AI_TOOL_DEFINITIONS,
        ),
    ),
    semconv.OP_EXECUTE_TOOL: SpanRow(
        "execute_tool {tool}",
        "INTERNAL",
        (semconv.GEN_AI_TOOL_NAME, semconv.GEN_AI_TOOL_TYPE),
        (
            semconv.GEN_AI_TOOL_CALL_ID,
            semconv.GEN_AI_AGENT_NAME,
            semconv.GEN_AI_CONVERSATION_ID,
            *_SUMS,
        ),
        (semconv.GEN_AI_TOOL_CALL_ARGUMENTS, semconv.GEN_AI_TOOL_CALL_RESULT),
    ),
    semconv.OP_RETRIEVAL: SpanRow(
        "retrieval {index}",
        "CLIENT, in-process INTERNAL",
        (semconv.GEN_AI_DATA_SOURCE_ID,),
        (semconv.GEN_AI_RETRIEVAL_TOP_K, semconv.SPANLOOM_RESULT_COUNT),
        (semconv.GEN_AI_RETRIEVAL_QUERY_TEXT, semconv.GEN_AI_RETRIEVAL_DOCUMENTS),
    ),
    semconv.OP_RERANK: SpanRow(
        "rerank {index}",
        "INTERNAL",
        (semconv.GEN_AI_DATA_SOURCE_ID,),
        (
            semconv.GEN_AI_REQUEST_MODEL,
            semconv.GEN_AI_RETRIEVAL_TOP_K,
            semconv.SPANLOOM_RESULT_COUNT,
        ),
    ),
    semconv.OP_EMBEDDINGS: SpanRow(
        "embeddings {model}",
        "CLIENT, in-process INTERNAL",
        (semconv.GEN_AI_PROVIDER_NAME, semconv.GEN_AI_REQUEST_MODEL),
        (
            semconv.GEN_AI_EMBEDDINGS_DIMENSION_COUNT,
            semconv.GEN_AI_USAGE_INPUT_TOKENS,
            semconv.SPANLOOM_RESULT_COUNT,
            semconv.SPANLOOM_COST_USD,
        ),
    ),
}
"""By `gen_ai.operation.name`."""
EVERY_SPAN: Final = (semconv.GEN_AI_OPERATION_NAME, semconv.SPANLOOM_OUTCOME)
"""What each of them has besides; and `error.type` and the deadline, where it failed."""


def attributes_of(operation: str, *, content: bool = False) -> tuple[set[str], set[str]]:
    """Names that a span of this operation always has, and all that it may have."""
    row = SPANS[operation]
    always = {*EVERY_SPAN, *row.always}
    return always, always | {*row.sometimes, *_ENDING} | ({*row.content} if content else set())


def page(text: str) -> str:
    """The page with its tables made anew."""
    tables = {"settings": _settings_table(), "spans": _spans_table()}
    return _MARKED.sub(lambda match: f"{match[1]}{match[2]}\n{tables[match[1]]}\n", text)


def _spans_table() -> str:
    lines = [
        "| span | kind | always | where it is known | with `capture_content` |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{row.name}` | {row.kind} | {_names(row.always)} | {_names(row.sometimes)} "
        f"| {_names(row.content)} |"
        for row in SPANS.values()
    ]
    return "\n".join(lines) + "\n"


def _names(names: tuple[str, ...]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _settings_table() -> str:
    lines = ["| setting | default | what it says |", "| --- | --- | --- |"]
    defaults = TelemetrySettings()
    for name, sentence in _sentences().items():
        if name != _NOT_SET_BY_USERS:
            lines.append(f"| `{name}` | {_default(getattr(defaults, name))} | {sentence} |")
    return "\n".join(lines) + "\n"


def _sentences() -> dict[str, str]:
    """The docstring below each field, which only the source has."""
    module = ast.parse(inspect.getsource(settings))
    body = next(
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == TelemetrySettings.__name__
    )
    found: dict[str, str] = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = re.sub(
                    r"[\w{},*]*(?:OTEL|SPANLOOM)_[\w{},*]*[\w}*]",
                    r"`\g<0>`",
                    " ".join(text.split()),
                )
    return found


def _default(value: object) -> str:
    match value:
        case bool():
            text = "true" if value else "false"
        case None:
            return "none"
        case Mapping():
            shown = {_text(item) for item in value.values()}
            text = shown.pop() if len(shown) == 1 else _text(value)
        case _:
            text = _text(value)
    return f"`{text}`" if text else "none"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(path: Path) -> None:
    """Rewrite the tables of a page in place."""
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
