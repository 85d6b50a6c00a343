"""Telemetry for LLM agents: one call sets up traces, logs and metrics.

    from spanloom.telemetry import get_logger, setup, tool

    telemetry = setup("my-agent")
    telemetry.instrument_fastapi(app)

Everything a service needs is here and in three modules: `spanloom.telemetry.metrics` (recording and
rendering), `spanloom.telemetry.langgraph`, and `spanloom.telemetry.testing`.
"""

from typing import TYPE_CHECKING, Any

from spanloom import semconv
from spanloom.telemetry.endings import deadline
from spanloom.telemetry.logs import get_logger
from spanloom.telemetry.manual import (
    Embeddings,
    LLMCall,
    Rerank,
    Retrieval,
    ToolCall,
    embeddings,
    llm_call,
    rerank,
    retrieval,
    step,
    tool,
)
from spanloom.telemetry.sdk import (
    Telemetry,
    current_trace_flags,
    current_trace_id,
    setup,
)
from spanloom.telemetry.settings import TelemetrySettings
from spanloom.telemetry.trust import is_trusted

if TYPE_CHECKING:
    from spanloom.telemetry.langgraph import LangGraphInstrumentor

__all__ = [
    "Embeddings",
    "LLMCall",
    "LangGraphInstrumentor",
    "Rerank",
    "Retrieval",
    "Telemetry",
    "TelemetrySettings",
    "ToolCall",
    "current_trace_flags",
    "current_trace_id",
    "deadline",
    "embeddings",
    "get_logger",
    "is_trusted",
    "llm_call",
    "rerank",
    "retrieval",
    "semconv",
    "setup",
    "step",
    "tool",
]


def __getattr__(name: str) -> Any:
    """Import the LangGraph instrumentation when it is asked for."""
    if name == "LangGraphInstrumentor":
        from spanloom.telemetry.langgraph import LangGraphInstrumentor  # noqa: PLC0415

        return LangGraphInstrumentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
