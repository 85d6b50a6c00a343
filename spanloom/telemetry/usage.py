"""Sums: tokens and dollars of all LLM calls below a tool, node, agent or workflow span.

    with UsageScope() as usage:       # opened by the span
        ...                           # an LLM call inside: add_usage(120, 30)
    usage.input_tokens                # 120, and the same was added to every scope around

The scope in force travels in the OTel context, beside the current span: wherever the span
arrives (a task, an executor, a bare thread under the threading instrumentation), it arrives too.
"""

import contextlib
import os
import threading
from contextvars import Token
from decimal import Decimal
from types import TracebackType
from typing import Final, NamedTuple, Self, cast

from opentelemetry.context import Context, attach, create_key, get_current, set_value
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import pricing
from spanloom.telemetry.endings import Ending

SCOPE_KEY: Final = create_key("spanloom-usage")
# One lock for all: an addition takes well under a microsecond, and `+=` loses updates of threads.
_lock = threading.Lock()


def _renew_lock() -> None:
    """In a forked child, a thread that is not there may hold it."""
    global _lock  # noqa: PLW0603 - one process, one lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class UsageScope:
    """Sums of everything added inside, scopes within included."""

    __slots__ = (
        "_token",
        "calls",
        "cost_partial",
        "cost_usd",
        "estimated",
        "input_tokens",
        "node",
        "output_tokens",
        "parent",
        "tool",
    )

    def __init__(
        self,
        parent: "UsageScope | None" = None,
        node: str | None = None,
        tool: str | None = None,
    ) -> None:
        """`node` and `tool` say whose span this is of; inside, the innermost of each counts."""
        self.node = node
        self.tool = tool
        self.parent = parent
        if parent is not None:
            self._inherit(parent)
        self.input_tokens = 0
        self.output_tokens = 0
        self.calls = 0
        self.cost_usd: Decimal | None = None
        """Sum over the calls that have a price."""
        self.cost_partial = False
        self.estimated = False
        self._token: Token[Context] | None = None

    def _inherit(self, parent: "UsageScope") -> None:
        self.parent = parent
        if not self.node:
            self.node = parent.node
        if not self.tool:
            self.tool = parent.tool

    def __enter__(self) -> Self:
        if (parent := current_scope()) is not None:
            self._inherit(parent)
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

    def attributes(self) -> dict[str, AttributeValue]:
        """The sums as attributes of the span; empty if nothing below said what it used."""
        sums: dict[str, AttributeValue] = {}
        self.add_sums(sums)
        return sums

    def add_sums(self, attributes: dict[str, AttributeValue]) -> None:
        """Add the sums to the attributes of the span, unless nothing below said what it used."""
        if not (self.input_tokens or self.output_tokens):
            return
        attributes[semconv.SPANLOOM_USAGE_INPUT_TOKENS] = self.input_tokens
        attributes[semconv.SPANLOOM_USAGE_OUTPUT_TOKENS] = self.output_tokens
        if self.estimated:
            attributes[semconv.SPANLOOM_USAGE_ESTIMATED] = True
        if self.cost_usd is not None:
            attributes[semconv.SPANLOOM_COST_USD] = float(pricing.rounded(self.cost_usd))
            if self.cost_partial:
                attributes[semconv.SPANLOOM_COST_PARTIAL] = True


def current_scope(context: Context | None = None) -> UsageScope | None:
    """Return the scope in force in `context` (default: the current one)."""
    found = (get_current() if context is None else context).get(SCOPE_KEY)
    return cast("UsageScope | None", found)


def with_scope(context: Context, scope: UsageScope) -> Context:
    """Return a copy of `context` in which `scope` is in force."""
    return set_value(SCOPE_KEY, scope, context)


class Bill(NamedTuple):
    """What a model call cost and who made it: the innermost node and tool around it."""

    cost_usd: Decimal | None = None
    node: str | None = None
    tool: str | None = None


def bill_of(cost_usd: Decimal | None) -> Bill:
    """The bill for a call made here."""
    scope = current_scope()
    return Bill(cost_usd) if scope is None else Bill(cost_usd, scope.node, scope.tool)


def add_usage(
    input_tokens: int | None,
    output_tokens: int | None,
    *,
    cost_usd: Decimal | None = None,
    cost_partial: bool = False,
    estimated: bool = False,
) -> None:
    """Add one LLM call to the scope in force and to every scope around it.

    `cost_partial` says that more was billed than `cost_usd`, `estimated` that the counts are ours
    and not the provider's.
    """
    scope = current_scope()
    if scope is not None:
        _add(
            scope,
            input_tokens or 0,
            output_tokens or 0,
            cost_usd,
            cost_partial=cost_partial,
            estimated=estimated,
        )


def _add(
    scope: UsageScope | None,
    input_tokens: int,
    output_tokens: int,
    cost_usd: Decimal | None,
    *,
    cost_partial: bool,
    estimated: bool,
) -> None:
    with _lock:
        while scope is not None:
            scope.input_tokens += input_tokens
            scope.output_tokens += output_tokens
            scope.calls += 1
            if cost_usd is not None:
                total = scope.cost_usd
                scope.cost_usd = cost_usd if total is None else pricing.added(total, cost_usd)
            if cost_partial:
                scope.cost_partial = True
            if estimated:
                scope.estimated = True
            scope = scope.parent


def settle(
    attributes: dict[str, AttributeValue],
    ending: Ending,
    *,
    provider: str | None,
    model: str | None,
    server_address: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    cache_read: int | None = None,
    cache_write: int | None = None,
    cache_write_1h: int | None = None,
    estimated: bool = False,
    is_free: bool = False,
) -> Bill:
    """Add what an LLM call cost to the attributes of its span, and the call to the sums around it.

    `is_free`: nothing was asked of the provider, the answer comes from a cache of our own. Calls
    that are not sampled have a price too: the metrics count every one.
    """
    cost = pricing.cost_usd(
        provider=provider,
        model=model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read=cache_read,
        cache_write=cache_write,
        cache_write_1h=cache_write_1h,
        server_address=server_address,
    )
    if cost is None:
        # an error before any answer is not billed
        partial = not (is_free or (ending.outcome == semconv.OUTCOME_ERROR and not output_tokens))
    else:
        partial = ending.outcome != semconv.OUTCOME_OK  # cut: the last count never came
        attributes[semconv.SPANLOOM_COST_USD] = float(cost)
        if partial:
            attributes[semconv.SPANLOOM_COST_PARTIAL] = True
    scope = current_scope()
    if scope is None:
        return Bill(cost)
    _add(
        scope,
        input_tokens or 0,
        output_tokens or 0,
        cost,
        cost_partial=partial,
        estimated=estimated,
    )
    return Bill(cost, scope.node, scope.tool)
