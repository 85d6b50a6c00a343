"""The agent's tools: calculator, current time, document lookup over HTTP."""

import asyncio
import zoneinfo
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

from langchain_core.messages import ToolCall, ToolMessage
from langchain_core.tools import BaseTool, tool
from pydantic import Field, ValidationError

from service.agent.calculator import MAX_LENGTH, calculate, format_number
from service.agent.state import ToolResult
from service.errors import DependencyUnavailableError, ToolError
from service.retrieval_client import RetrievalClient
from spanloom.telemetry import get_logger

MAX_CALLS_PER_ROUND: Final = 8
_MAX_DOCUMENT_CHARS: Final = 6_000

_log = get_logger(__name__)


def build_tools(retrieval: RetrievalClient) -> list[BaseTool]:
    """The tools a model may call."""

    @tool
    async def calculator(
        expression: Annotated[str, Field(max_length=MAX_LENGTH, description="like 2*(3+4)/7")],
    ) -> str:
        """Evaluate an arithmetic expression exactly."""
        return format_number(calculate(expression))

    @tool
    async def current_time(
        timezone: Annotated[
            str, Field(max_length=64, description="IANA name, like Asia/Shanghai or UTC")
        ] = "UTC",
    ) -> str:
        """Tell the current date, time and weekday in a time zone."""
        try:
            zone = zoneinfo.ZoneInfo(timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ToolError(
                f"{timezone!r} is not a time zone; use an IANA name like Europe/Berlin"
            ) from exc
        now = datetime.now(zone)
        return f"{now.isoformat(timespec='seconds')} ({now:%A}, {timezone})"

    @tool
    async def lookup_document(
        document_id: Annotated[
            str, Field(min_length=1, max_length=128, description="an id from the passages")
        ],
    ) -> str:
        """Read a whole document by its id, with the ids of the documents it refers to."""
        document = await retrieval.document(document_id)
        text = document["text"]
        if len(text) > _MAX_DOCUMENT_CHARS:
            text = f"{text[:_MAX_DOCUMENT_CHARS]} […]"
        references = ", ".join(document["references"]) or "none"
        return f"{document['title']}\n{text}\nReferences: {references}"

    return [calculator, current_time, lookup_document]


async def run_tools(
    tools: dict[str, BaseTool], calls: Sequence[ToolCall]
) -> list[tuple[ToolMessage, ToolResult]]:
    """Run the calls of one model turn at once; a failed call is told to the model.

    Every call gets exactly one message, which the providers insist on.
    """
    outcomes = [
        _run_tool(tools, call)
        if position < MAX_CALLS_PER_ROUND
        else _refuse(call, f"only {MAX_CALLS_PER_ROUND} calls are run at once")
        for position, call in enumerate(calls)
    ]
    return await asyncio.gather(*outcomes)


async def _run_tool(tools: dict[str, BaseTool], call: ToolCall) -> tuple[ToolMessage, ToolResult]:
    name = call["name"]
    if name not in tools:
        known = ", ".join(tools)
        return await _refuse(call, f"there is no tool {name!r}; known are {known}")
    try:
        message = await tools[name].ainvoke({**call, "type": "tool_call"})
    except (ToolError, ValidationError, DependencyUnavailableError) as exc:
        # The tool's span has the error; the model gets a sentence it can react to.
        _log.warning("tool_failed", tool=name, error_type=type(exc).__name__)
        reason = "the arguments are not valid" if isinstance(exc, ValidationError) else str(exc)
        return await _refuse(call, reason)
    return message, ToolResult(
        name=name, arguments=call["args"], content=str(message.content), failed=False
    )


async def _refuse(call: ToolCall, reason: str) -> tuple[ToolMessage, ToolResult]:
    content = f"error: {reason}"
    message = ToolMessage(content, tool_call_id=call["id"] or "", status="error")
    return message, ToolResult(
        name=call["name"], arguments=call["args"], content=content, failed=True
    )
