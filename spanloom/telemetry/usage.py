"""Token sums: what the LLM calls below a tool, node, agent or workflow span used together.

    with usage_scope() as usage:      # opened by the span
        ...                           # an LLM call inside: add_usage(120, 30)
    usage.input_tokens                # 120, and the same was added to every scope around

The scope in force is a context variable, so tasks and threads that copy the context add to the
scope they were started in.
"""

import threading
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, Self

_current: Final[ContextVar["UsageScope | None"]] = ContextVar("spanloom_usage", default=None)
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
        self._token: Token[UsageScope | None] | None = None

    def __enter__(self) -> Self:
        self.parent = _current.get()
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is None:
            return
        try:
            _current.reset(self._token)
        except ValueError:  # left in another context than entered: an async generator closed late
            if _current.get() is self:
                _current.set(self.parent)
        self._token = None


def usage_scope() -> UsageScope:
    """Open a scope below the one in force."""
    return UsageScope()


def add_usage(
    input_tokens: int | None, output_tokens: int | None, *, estimated: bool = False
) -> None:
    """Add one LLM call to the scope in force and to every scope around it.

    `estimated` says that the counts are ours and not the provider's.
    """
    scope = _current.get()
    if scope is None:
        return
    with _lock:
        while scope is not None:
            scope.input_tokens += input_tokens or 0
            scope.output_tokens += output_tokens or 0
            scope.calls += 1
            scope.estimated = scope.estimated or estimated
            scope = scope.parent
