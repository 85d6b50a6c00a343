"""Token sums: what the LLM calls below a tool, node, agent or workflow span used together.

    with usage_scope() as usage:      # opened by the span
        ...                           # an LLM call inside: add_usage(120, 30)
    usage.input_tokens                # 120, and the same was added to every scope around

The scope in force travels in the OTel context, beside the current span: wherever the span
arrives (a task, an executor, a bare thread under the threading instrumentation), it arrives too.
"""

import contextlib
import threading
from contextvars import Token
from types import TracebackType
from typing import Final, Self, cast

from opentelemetry.context import Context, attach, create_key, get_current, set_value

_KEY: Final = create_key("spanloom-usage")
# One lock for all: an addition takes well under a microsecond, and `+=` loses updates of threads.
_lock: Final = threading.Lock()


class UsageScope:
    """Sums of everything added inside, scopes within included."""

    __slots__ = ("_token", "calls", "estimated", "input_tokens", "output_tokens", "parent")

    def __init__(self) -> None:
        self.parent: UsageScope | None = None
        self.input_tokens = 0
        self.output_tokens = 0
        self.calls = 0
        self.estimated = False
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self.parent = current_scope()
        self._token = attach(with_scope(get_current(), self))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is None:
            return
        token, self._token = self._token, None
        # ValueError: left in another context than entered, by an async generator closed late
        with contextlib.suppress(ValueError):
            token.var.reset(token)


def usage_scope() -> UsageScope:
    """Open a scope below the one in force."""
    return UsageScope()


def current_scope(context: Context | None = None) -> UsageScope | None:
    """Return the scope in force in `context` (default: the current one)."""
    found = (get_current() if context is None else context).get(_KEY)
    return cast("UsageScope | None", found)


def with_scope(context: Context, scope: UsageScope) -> Context:
    """Return a copy of `context` in which `scope` is in force."""
    return set_value(_KEY, scope, context)


def add_usage(
    input_tokens: int | None, output_tokens: int | None, *, estimated: bool = False
) -> None:
    """Add one LLM call to the scope in force and to every scope around it.

    `estimated` says that the counts are ours and not the provider's.
    """
    scope = current_scope()
    if scope is None:
        return
    with _lock:
        while scope is not None:
            scope.input_tokens += input_tokens or 0
            scope.output_tokens += output_tokens or 0
            scope.calls += 1
            scope.estimated = scope.estimated or estimated
            scope = scope.parent
