"""Telemetry for LLM agents: one call sets up traces, logs and metrics.

    from spanloom.telemetry import get_logger, setup, tool

    telemetry = setup("my-agent")
    telemetry.instrument_fastapi(app)

Everything a service needs is here and in three modules: `spanloom.telemetry.metrics` (recording and
rendering), `spanloom.telemetry.langgraph`, and `spanloom.telemetry.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from spanloom import semconv
    from spanloom.telemetry.endings import deadline
    from spanloom.telemetry.langgraph import LangGraphInstrumentor
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

# Imported when first asked for: the pytest plugin below this package is loaded by every pytest
# run where Spanloom is installed, and must not bring the SDK with it.
_MODULES: Final = {
    "semconv": "spanloom",
    "deadline": "spanloom.telemetry.endings",
    "LangGraphInstrumentor": "spanloom.telemetry.langgraph",
    "get_logger": "spanloom.telemetry.logs",
    "Telemetry": "spanloom.telemetry.sdk",
    "current_trace_flags": "spanloom.telemetry.sdk",
    "current_trace_id": "spanloom.telemetry.sdk",
    "setup": "spanloom.telemetry.sdk",
    "TelemetrySettings": "spanloom.telemetry.settings",
    "is_trusted": "spanloom.telemetry.trust",
}
"""Where a name of `__all__` is written; those not listed are in `manual`."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "spanloom.telemetry.manual")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
