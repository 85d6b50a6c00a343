"""Another instrumentation that makes its own spans' contexts current, over ours.

OpenTelemetry's `genai-langchain` keeps the context of each of its runs and attaches the nearest one
again where LangChain enters a node, tool or model. It was made outside of what runs there now, so
our node, and the sums it adds up, would be gone from the context while its body runs.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Tracer

from spanloom.telemetry.langgraph.context import Guard
from spanloom.telemetry.usage import UsageScope, current_scope

_KEEPING: Final = Guard("the context of genai-langchain cannot be told apart")
_OURS: Final = "spanloom.telemetry"


def is_inside(current: Context, other: Context) -> bool:
    """Whether `current` is where we are, and `other` is around it or beside our own span."""
    scope: UsageScope | None = current_scope(current)
    outer = current_scope(other)
    if scope is None:
        return False
    if scope is outer:
        made_by = getattr(trace.get_current_span(current), "instrumentation_scope", None)
        return made_by is not None and made_by.name.startswith(_OURS)
    while scope is not None and scope is not outer:
        scope = scope.parent
    return scope is outer  # also where there is no scope of ours around


def keep_current(_tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `get_parent_context`, by which `genai-langchain` finds what to attach, or to hang below.

    What is current here stays, where it is inside of what was found; then nothing is attached.
    """

    @functools.wraps(original)
    def get_parent_context(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        with _KEEPING:
            if found is not None and is_inside(current := get_current(), found):
                return current
        return found

    return get_parent_context
