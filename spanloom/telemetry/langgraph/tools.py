"""Tool spans: one around each `BaseTool.run` or `arun`, whoever calls it."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Tracer
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import content, conversation, endings, metrics
from spanloom.telemetry.langgraph import classify
from spanloom.telemetry.langgraph.context import Frame, Unit, arun, frame_of, run
from spanloom.telemetry.usage import current_scope

_REPORTED: Final = endings.Ending(semconv.OUTCOME_ERROR, "tool_error")
"""The value the MCP conventions use where a tool reports failure in its result."""


class ToolRun(Unit):
    """One execution of a LangChain tool."""

    __slots__ = ("_tool",)

    def __init__(
        self, tracer: Tracer, tool: Any, tool_input: Any, call_id: str | None, context: Context
    ) -> None:
        scope = current_scope(context)
        outer = frame_of(scope)
        name = str(tool.name)
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_EXECUTE_TOOL,
            semconv.GEN_AI_TOOL_NAME: name,
            semconv.GEN_AI_TOOL_TYPE: "function",
        }
        if call_id:
            attributes[semconv.GEN_AI_TOOL_CALL_ID] = call_id
        conversation_id = agent_name = None
        if outer is not None:
            conversation_id, agent_name = outer.conversation_id, outer.agent_name
        if conversation_id is not None:
            attributes[semconv.GEN_AI_CONVERSATION_ID] = conversation_id
        if agent_name is not None:
            attributes[semconv.GEN_AI_AGENT_NAME] = agent_name
        self._tool = name
        super().__init__(
            tracer,
            f"{semconv.OP_EXECUTE_TOOL} {name}",
            attributes,
            context=context,
            frame=Frame(scope, conversation_id, agent_name, tool=name),
            outer=outer,
        )
        if content.rules() is not None:
            content.write(self.span, lambda rules: _arguments(rules, tool, tool_input))

    def _read(self, result: Any) -> endings.Ending | None:
        if content.rules() is not None:
            is_message = getattr(result, "type", None) == "tool"  # its artifact is not content
            said = getattr(result, "content", None) if is_message else result
            conversation.write_result(self.span, said)
        return _REPORTED if classify.is_tool_error(result) else None

    def _describe(self, ending: endings.Ending, attributes: dict[str, AttributeValue]) -> None:
        super()._describe(ending, attributes)
        metrics.record_tool(
            tool=self._tool,
            status=ending.outcome,
            seconds=self.seconds,
            error_type=ending.error_type,
        )


def _arguments(rules: content.ContentRules, tool: Any, tool_input: Any) -> dict[str, str | None]:
    """The arguments without what LangGraph injects: state, store and runtime are not the call."""
    if isinstance(tool_input, dict):
        injected = set(getattr(tool, "_injected_args_keys", ()))
        asked = getattr(tool.tool_call_schema, "model_fields", None)
        if asked is not None:
            injected |= tool.get_input_schema().model_fields.keys() - asked.keys()
        tool_input = {name: tool_input[name] for name in tool_input if name not in injected}
    return {semconv.GEN_AI_TOOL_CALL_ARGUMENTS: content.dump(rules.value(tool_input))}


def _starter(
    tracer: Tracer, tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Context], ToolRun]:
    tool_input = args[0] if args else kwargs.get("tool_input")
    return functools.partial(ToolRun, tracer, tool, tool_input, kwargs.get("tool_call_id"))


def trace_run(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BaseTool.run`."""

    @functools.wraps(original)
    def run_tool(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(_starter(tracer, self, args, kwargs), original, (self, *args), kwargs)

    return run_tool


def trace_arun(
    tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `BaseTool.arun`."""

    @functools.wraps(original)
    async def arun_tool(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await arun(_starter(tracer, self, args, kwargs), original, (self, *args), kwargs)

    return arun_tool
