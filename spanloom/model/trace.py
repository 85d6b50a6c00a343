"""A trace as a tree, and what is read off it at a glance."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from spanloom import semconv
from spanloom.model.inflight import OpenSpan
from spanloom.model.span import Span


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and money. `cost_usd` is None where no LLM span carries a price."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            sum(costs) if costs else None,
        )

    @classmethod
    def of_span(cls, span: Span) -> "Usage":
        """What one LLM request used; zero for every other span, so that sums count once."""
        attributes = span.attributes
        if attributes.get(semconv.GEN_AI_OPERATION_NAME) not in semconv.LLM_OPERATIONS:
            return cls()
        return cls(
            _count(attributes.get(semconv.GEN_AI_USAGE_INPUT_TOKENS)),
            _count(attributes.get(semconv.GEN_AI_USAGE_OUTPUT_TOKENS)),
            _price(attributes.get(semconv.SPANLOOM_COST_USD)),
        )


def _count(value: object) -> int:
    # Foreign instrumentations may send anything under a token attribute.
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _price(value: object) -> float | None:
    # One NaN or infinity would swallow every sum above it.
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A span and its children, earliest start first."""

    span: Span
    children: tuple["TreeNode", ...] = ()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "TreeNode"]]:
        """Every node with its depth, parents before children."""
        stack = [(depth, self)]
        while stack:
            level, node = stack.pop()
            yield level, node
            stack.extend((level + 1, child) for child in reversed(node.children))

    @property
    def usage(self) -> Usage:
        """Sum over the LLM spans of this subtree."""
        total = Usage()
        for _, node in self.walk():
            total += Usage.of_span(node.span)
        return total


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One line of a trace list. `root_name` is that of the earliest root or orphan.

    Open spans count in everything: as spans, and as long as they are known to have run.
    """

    trace_id: str
    root_service: str
    root_name: str
    start_time_unix_nano: int
    duration_ns: int
    span_count: int
    error_count: int
    services: tuple[str, ...]
    usage: Usage
    open_span_count: int = 0
    """Spans that have not ended; above 0 the trace is in flight."""


@dataclass(frozen=True, slots=True)
class Trace:
    """All that is known of one trace id. Never empty; no span id occurs twice."""

    trace_id: str
    spans: tuple[Span, ...]
    """Finished spans, in order of start."""
    open_spans: tuple[OpenSpan, ...] = ()
    """Spans that have not ended, in order of start."""

    @property
    def all_spans(self) -> tuple[Span, ...]:
        """Finished and open ones, in order of start; open ones end where they were last seen."""
        if not self.open_spans:
            return self.spans
        both = (*self.spans, *(one.span for one in self.open_spans))
        return tuple(sorted(both, key=lambda s: (s.start_time_unix_nano, s.span_id)))

    @property
    def start_time_unix_nano(self) -> int:
        """Earliest start."""
        return min(span.start_time_unix_nano for span in self.all_spans)

    @property
    def end_time_unix_nano(self) -> int:
        """Latest end."""
        return max(span.end_time_unix_nano for span in self.all_spans)

    @property
    def duration_ns(self) -> int:
        """Latest end minus earliest start."""
        return max(0, self.end_time_unix_nano - self.start_time_unix_nano)

    @property
    def usage(self) -> Usage:
        """Sum over the LLM spans."""
        total = Usage()
        for span in self.all_spans:
            total += Usage.of_span(span)
        return total

    def roots(self) -> tuple[TreeNode, ...]:
        """The forest: spans without a parent, and spans whose parent is not stored.

        A parent may be missing (a caller that is not traced here, a lost batch), and broken
        producers send cycles; every span appears exactly once all the same.

            caller (elsewhere)
              └ POST /chat         <- root here: its parent is not in the store
                 └ invoke_workflow
        """
        spans = self.all_spans
        by_id = {span.span_id: span for span in spans}
        children: dict[str, list[Span]] = defaultdict(list)
        tops: list[Span] = []
        for span in sorted(spans, key=lambda s: (s.start_time_unix_nano, s.span_id)):
            if span.parent_span_id in by_id and span.parent_span_id != span.span_id:
                children[span.parent_span_id].append(span)
            else:
                tops.append(span)
        reached = _descendants(tops, children)
        for span in sorted(spans, key=lambda s: (s.start_time_unix_nano, s.span_id)):
            if span.span_id not in reached:  # a cycle: cut it at its earliest span
                children[span.parent_span_id].remove(span)
                tops.append(span)
                reached |= _descendants([span], children)
        return tuple(_build(top, children) for top in tops)

    def summary(self) -> TraceSummary:
        """The trace's line in a list."""
        top = self.roots()[0].span
        spans = self.all_spans
        return TraceSummary(
            trace_id=self.trace_id,
            root_service=top.service_name,
            root_name=top.name,
            start_time_unix_nano=self.start_time_unix_nano,
            duration_ns=self.duration_ns,
            span_count=len(spans),
            error_count=sum(span.is_error for span in spans),
            services=tuple(sorted({span.service_name for span in spans})),
            usage=self.usage,
            open_span_count=len(self.open_spans),
        )


def _descendants(tops: list[Span], children: dict[str, list[Span]]) -> set[str]:
    seen: set[str] = set()
    stack = list(tops)
    while stack:
        span = stack.pop()
        if span.span_id not in seen:
            seen.add(span.span_id)
            stack.extend(children.get(span.span_id, ()))
    return seen


def _build(top: Span, children: dict[str, list[Span]]) -> TreeNode:
    # Iterative and bottom-up: a chain of 10,000 spans must not meet the recursion limit.
    order: list[Span] = []
    stack = [top]
    while stack:
        span = stack.pop()
        order.append(span)
        stack.extend(children.get(span.span_id, ()))
    built: dict[str, TreeNode] = {}
    for span in reversed(order):
        below = tuple(built[child.span_id] for child in children.get(span.span_id, ()))
        built[span.span_id] = TreeNode(span, below)
    return built[top.span_id]
