"""Spans for LangGraph: graphs, nodes, tools and models, each current while its body runs.

    from spanloom.telemetry.langgraph import LangGraphInstrumentor

    LangGraphInstrumentor().instrument()

Also an `opentelemetry_instrumentor` entry point, so `opentelemetry-instrument python app.py`
does the same without a line of code. Works with any tracer provider.

    invoke_workflow {graph} ▸ invoke_node {node} ▸ chat {model} | execute_tool {tool} | …

A sub-graph is an `invoke_workflow` under the node that runs it; a graph made by `create_agent` is
`invoke_agent {name}`. No content of messages, arguments or results is captured unless it is asked
for by `capture_content=True` or the environment; that of states never is.
"""

import contextlib
from collections.abc import Callable, Collection
from importlib import metadata
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from spanloom.telemetry import content
from spanloom.telemetry.langgraph.instrument import PATCHER
from spanloom.telemetry.langgraph.versions import SUPPORTED

__all__ = ["LangGraphInstrumentor"]


class LangGraphInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments LangGraph and langchain-core for this process.

    `instrument(tracer_provider=None, capture_content=None, content_limit=None,
    redact_content=None)`. A provider of None means the global one, set before or after;
    `capture_content` of None leaves it to `setup` and the environment. The other two are as in
    `TelemetrySettings`.

    Does nothing, silently, where LangGraph is not installed, and imports nothing of it: modules
    are patched when the application imports them.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """The oldest releases that can be traced, of what is installed.

        A process without LangGraph has nothing to report. There is no upper bound: a release that
        is newer than what was tested is traced as far as its seams are known.
        """
        found = []
        for name, (oldest, _) in SUPPORTED.items():
            with contextlib.suppress(metadata.PackageNotFoundError):
                metadata.version(name)
                found.append(f"{name} >= {oldest}")
        return found

    _restore_content: Callable[[], None] | None = None

    def _instrument(self, **kwargs: Any) -> None:
        if (capture := kwargs.get("capture_content")) is not None:
            self._restore_content = content.use_argument(
                bool(capture), kwargs.get("content_limit"), kwargs.get("redact_content")
            )
        PATCHER.patch(kwargs.get("tracer_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:
        del kwargs
        if self._restore_content is not None:
            self._restore_content()
            self._restore_content = None
        PATCHER.restore()
