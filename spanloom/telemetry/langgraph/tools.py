"""Tool spans: one around each `BaseTool.run` or `arun`, whoever calls it."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Tracer
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import endings, metrics
from spanloom.telemetry.langgraph import classify
from spanloom.telemetry.langgraph.context import Frame, Unit, arun, begin, frame_of, run

_REPORTED: Final = endings.Ending(semconv.OUTCOME_ERROR, "tool_error")
"""The value the MCP conventions use where a tool reports failure in its result."""


class ToolRun(Unit):
    """One execution of a LangChain tool."""

    __slots__ = ("_tool",)

    def __init__(self, tracer: Tracer, tool: Any, call_id: str | None, context: Context) -> None:
        outer = frame_of(context)
        name = str(tool.name)
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_EXECUTE_TOOL,
            semconv.GEN_AI_TOOL_NAME: name,
            semconv.GEN_AI_TOOL_TYPE: "function",
        }
        if call_id:
            attributes[semconv.GEN_AI_TOOL_CALL_ID] = call_id
        if outer is not None:
            if outer.conversation_id is not None:
                attributes[semconv.GEN_AI_CONVERSATION_ID] = outer.conversation_id
            if outer.agent_name is not None:
                attributes[semconv.GEN_AI_AGENT_NAME] = outer.agent_name
        self._tool = name
        super().__init__(
            tracer,
            f"{semconv.OP_EXECUTE_TOOL} {name}",
            attributes,
            context=context,
            frame=Frame(
                context,
                conversation_id=outer.conversation_id if outer is not None else None,
                agent_name=outer.agent_name if outer is not None else None,
            ),
            outer=outer,
        )

    def _read(self, result: Any) -> endings.Ending | None:
        return _REPORTED if classify.is_tool_error(result) else None

    def _describe(self, ending: endings.Ending) -> None:
        super()._describe(ending)
        metrics.record_tool(
            tool=self._tool,
            status=ending.outcome,
            seconds=self.seconds,
            error_type=ending.error_type,
        )


def trace_run(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BaseTool.run`."""

    @functools.wraps(original)
    def run_tool(self: Any, *args: Any, **kwargs: Any) -> Any:
        unit = begin(functools.partial(ToolRun, tracer, self, kwargs.get("tool_call_id")))
        if unit is None:
            return original(self, *args, **kwargs)
        return run(unit, original, self, *args, **kwargs)

    return run_tool


def trace_arun(
    tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `BaseTool.arun`."""

    @functools.wraps(original)
    async def arun_tool(self: Any, *args: Any, **kwargs: Any) -> Any:
        unit = begin(functools.partial(ToolRun, tracer, self, kwargs.get("tool_call_id")))
        if unit is None:
            return await original(self, *args, **kwargs)
        return await arun(unit, original, self, *args, **kwargs)

    return arun_tool
