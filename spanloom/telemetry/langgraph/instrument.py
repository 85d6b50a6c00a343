"""Patching LangGraph and LangChain where they execute, and putting everything back.

A patch is applied when the application imports the module it belongs to, so that instrumenting
costs nothing where LangGraph is installed but not used. All patches sit on functions that are
looked up at call time, never on compiled graphs: graphs compiled before work like those after.
"""

import contextlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple

import wrapt
from opentelemetry import trace
from opentelemetry.trace import Tracer, TracerProvider

from spanloom import __version__, semconv
from spanloom.telemetry import estimate, pricing
from spanloom.telemetry.langgraph import beside, graphs, models, nodes, resume, tools
from spanloom.telemetry.langgraph.context import Guard, warn_once

Wrapper = Callable[[Tracer, Callable[..., Any]], Callable[..., Any]]


class Seam(NamedTuple):
    """A function that is wrapped: where it is found, and by what it is wrapped."""

    module: str
    owner: str | None
    """Class that holds it; None for a function of the module."""
    name: str
    wrapper: Wrapper
    optional: bool = False
    """Not in every supported version; where it is absent nothing visible is lost."""


_RETRY: Final = "langgraph.pregel._retry"
_RUNNER: Final = "langgraph.pregel._runner"
_LOOP: Final = "langgraph.pregel._loop"
_PREGEL: Final = "langgraph.pregel.main"
_TOOLS: Final = "langchain_core.tools.base"
_MODELS: Final = "langchain_core.language_models.chat_models"
_GENAI: Final = "opentelemetry.instrumentation.genai.langchain.invocation_manager"

SEAMS: Final = (
    Seam(_PREGEL, "Pregel", "invoke", graphs.trace_invoke, optional=True),
    Seam(_PREGEL, "Pregel", "ainvoke", graphs.trace_ainvoke, optional=True),
    Seam(_PREGEL, "Pregel", "stream", graphs.trace_stream),
    Seam(_PREGEL, "Pregel", "astream", graphs.trace_astream),
    Seam(_LOOP, "PregelLoop", "_suppress_interrupt", graphs.trace_suppress_interrupt),
    Seam(_LOOP, "PregelLoop", "_first", resume.trace_first, optional=True),
    Seam(_LOOP, "PregelLoop", "_put_checkpoint", resume.trace_put_checkpoint, optional=True),
    Seam(_RUNNER, None, "run_with_retry", nodes.trace_run_with_retry),
    Seam(_RUNNER, None, "arun_with_retry", nodes.trace_arun_with_retry),
    Seam(_RETRY, None, "_arun_with_timeout", nodes.trace_run_with_timeout, optional=True),
    Seam(_TOOLS, "BaseTool", "run", tools.trace_run),
    Seam(_TOOLS, "BaseTool", "arun", tools.trace_arun),
    Seam(_MODELS, "BaseChatModel", "_generate_with_cache", models.trace_generate),
    Seam(_MODELS, "BaseChatModel", "_agenerate_with_cache", models.trace_agenerate),
    Seam(_MODELS, "BaseChatModel", "stream", models.trace_stream),
    Seam(_MODELS, "BaseChatModel", "astream", models.trace_astream),
    Seam(_MODELS, "BaseChatModel", "_iter_v2_events", models.trace_events, optional=True),
    Seam(_MODELS, "BaseChatModel", "_aiter_v2_events", models.trace_aevents, optional=True),
    Seam("anthropic._base_client", None, "start_api_call_span", models.yield_to_us, optional=True),
    Seam(_GENAI, "_InvocationManager", "get_parent_context", beside.keep_current, optional=True),
)


class _Applied(NamedTuple):
    owner: Any
    name: str
    original: Callable[..., Any]
    replacement: Callable[..., Any]


class Patcher:
    """Holds what is patched now. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None
        self._applied: list[_Applied] = []
        self._waiting: set[str] = set()
        """Modules with an import hook: wrapt cannot take one back, so it is set once."""
        self._lock = threading.RLock()

    def patch(self, tracer_provider: TracerProvider | None) -> None:
        """Patch every module that is imported, and the others as soon as they are."""
        if importlib.util.find_spec("langchain_core") is None:
            return
        self._patch_with(
            trace.get_tracer(
                "spanloom.telemetry.langgraph",
                __version__,
                tracer_provider,
                schema_url=semconv.SCHEMA_URL,
            )
        )

    @contextlib.contextmanager
    def traced_by(self, tracer_provider: TracerProvider) -> Iterator[None]:
        """Make spans on this provider inside the block; afterwards all is as it was before."""
        before = self._tracer
        self.restore()
        self.patch(tracer_provider)
        try:
            yield
        finally:
            self.restore()
            if before is not None:
                self._patch_with(before)

    def _patch_with(self, tracer: Tracer) -> None:
        with self._lock:
            self._tracer = tracer
        for module in dict.fromkeys(seam.module for seam in SEAMS):
            if module in self._waiting:
                self._patch_if_imported(module)
            else:
                self._waiting.add(module)
                wrapt.register_post_import_hook(self._patch_module, module)

    def restore(self) -> None:
        """Put every original back, except where somebody else has patched over ours."""
        with self._lock:
            self._tracer = None
            for applied in reversed(self._applied):
                if vars(applied.owner).get(applied.name) is applied.replacement:
                    setattr(applied.owner, applied.name, applied.original)
                else:
                    logging.getLogger(__name__).warning(
                        "%s was patched by somebody else after Spanloom; left as it is",
                        applied.name,
                    )
            self._applied.clear()

    def _patch_if_imported(self, module_name: str) -> None:
        module = sys.modules.get(module_name)
        if module is not None:
            self._patch_module(module)

    def _patch_module(self, module: ModuleType) -> None:
        """Wrap the seams of one module; called by the import system, so it never raises."""
        with self._lock:
            tracer = self._tracer
            if tracer is None:  # uninstrumented before the module was imported
                return
            for seam in SEAMS:
                if seam.module == module.__name__:
                    with Guard(f"{seam.name} cannot be wrapped"):
                        self._apply(module, seam, tracer)
        if module.__name__ == _MODELS:
            # now, beside an import that takes longer, and not in the first request
            pricing.load()
            estimate.is_installed()

    def _apply(self, module: ModuleType, seam: Seam, tracer: Tracer) -> None:
        owner = module if seam.owner is None else getattr(module, seam.owner, None)
        original = None if owner is None else vars(owner).get(seam.name)
        if original is None:
            if not seam.optional:
                place = ".".join(filter(None, (seam.module, seam.owner, seam.name)))
                warn_once(f"this version of LangGraph or LangChain has no {place}")
            return
        if any(done.owner is owner and done.name == seam.name for done in self._applied):
            return
        # As a caller sees it: what wrapt has put into the class for another instrumentation takes
        # the instance for an argument.
        replacement = seam.wrapper(tracer, getattr(owner, seam.name))
        setattr(owner, seam.name, replacement)
        self._applied.append(_Applied(owner, seam.name, original, replacement))


PATCHER: Final = Patcher()
