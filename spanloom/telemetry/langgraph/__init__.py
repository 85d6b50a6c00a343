"""Spans for LangGraph: graphs, nodes, tools and models, each current while its body runs.

    from spanloom.telemetry.langgraph import LangGraphInstrumentor

    LangGraphInstrumentor().instrument()

Also an `opentelemetry_instrumentor` entry point, so `opentelemetry-instrument python app.py`
does the same without a line of code. Works with any tracer provider.

    invoke_workflow {graph} ▸ invoke_node {node} ▸ chat {model} | execute_tool {tool} | …

A sub-graph is an `invoke_workflow` under the node that runs it; a graph made by `create_agent` is
`invoke_agent {name}`. No content of messages, states, arguments or results is captured.
"""

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from spanloom.telemetry.langgraph.instrument import PATCHER

__all__ = ["LangGraphInstrumentor"]


class LangGraphInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments LangGraph and langchain-core for this process.

    `instrument(tracer_provider=None)`: None means the global provider, set before or after.
    Does nothing, silently, where LangGraph is not installed, and imports nothing of it: modules
    are patched when the application imports them.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: a process without LangGraph has nothing to report."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        PATCHER.patch(kwargs.get("tracer_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:
        del kwargs
        PATCHER.restore()
