"""A trace as a tree, and what is read off it."""

import random

import pytest

from spanloom.model import Resource, Span, SpanKind, Trace, TreeNode, Usage
from tests.builders import MS, T0, resource, span, trace_of


def _drawn(trace: Trace) -> list[str]:
    return ["  " * depth + node.span.name for root in trace.roots() for depth, node in root.walk()]


def test_a_tree() -> None:
    """Children stand under their parent, the earliest first, however they arrived."""
    trace = trace_of(
        span("third", 5, parent=1, start_ms=30),
        span("first", 2, parent=1, start_ms=10),
        span("inner", 4, parent=2, start_ms=12),
        span("second", 3, parent=1, start_ms=20),
        span("root", 1),
    )

    assert _drawn(trace) == ["root", "  first", "    inner", "  second", "  third"]


def test_orphans_are_roots() -> None:
    """A span whose parent is not stored heads its own tree, in order of start."""
    trace = trace_of(
        span("root", 1, start_ms=5),
        span("child", 2, parent=1, start_ms=6),
        span("orphan", 3, parent=99, start_ms=1),
        span("its child", 4, parent=3, start_ms=2),
    )

    assert _drawn(trace) == ["orphan", "  its child", "root", "  child"]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([span("self", 1, parent=1)], ["self"]),
        (
            [span("a", 1, parent=2, start_ms=1), span("b", 2, parent=1, start_ms=2)],
            ["a", "  b"],
        ),
        (
            [
                span("top", 9, start_ms=50),
                span("a", 1, parent=3, start_ms=3),
                span("b", 2, parent=1, start_ms=1),
                span("c", 3, parent=2, start_ms=2),
                span("leaf", 4, parent=3, start_ms=4),
            ],
            ["top", "b", "  c", "    a", "    leaf"],
        ),
        (
            [
                span("a", 1, parent=2),
                span("b", 2, parent=1, start_ms=1),
                span("x", 3, parent=4, start_ms=2),
                span("y", 4, parent=3, start_ms=3),
            ],
            ["a", "  b", "x", "  y"],
        ),
    ],
)
def test_cycles_are_cut(spans: list[Span], expected: list[str]) -> None:
    """Every span appears exactly once; a cycle begins with its earliest span."""
    assert _drawn(trace_of(*spans)) == expected


def test_any_parents_at_all_make_a_forest() -> None:
    """Whatever parents a broken producer names, nothing is lost and nothing is doubled."""
    chance = random.Random(5)
    for _ in range(200):
        count = chance.randrange(1, 12)
        spans = [
            span(f"s{n}", n, parent=chance.randrange(0, 15) or None, start_ms=chance.randrange(9))
            for n in range(1, count + 1)
        ]
        names = [line.strip() for line in _drawn(trace_of(*spans))]

        assert sorted(names) == sorted(each.name for each in spans)


def test_a_chain_of_ten_thousand() -> None:
    """Depth is not bounded by the interpreter's recursion limit."""
    spans = [
        span(f"s{n}", n, parent=n - 1 or None, start_ms=n, tokens=(1, 2)) for n in range(1, 10_001)
    ]
    (root,) = trace_of(*spans).roots()
    depths = [depth for depth, _ in root.walk()]

    assert depths == list(range(10_000))
    assert root.usage == Usage(10_000, 20_000)


def test_ten_thousand_cycles() -> None:
    """Many broken pairs are cut one by one, in reasonable time."""
    spans = [
        span(f"s{n}", n, parent=n + 1 if n % 2 else n - 1, start_ms=n) for n in range(1, 10_001)
    ]

    assert len(trace_of(*spans).roots()) == 5000


def test_usage_sums_llm_spans_only() -> None:
    """Sums on tools and agents repeat what the LLM spans below them say, so they do not count."""
    trace = trace_of(
        span(
            "agent",
            1,
            attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 30},
        ),
        span("chat", 2, parent=1, tokens=(10, 5), cost=0.5),
        span("chat", 3, parent=1, tokens=(20, 7)),
        span(
            "embeddings",
            4,
            parent=1,
            attributes={"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 8},
        ),
    )
    (root,) = trace.roots()

    assert trace.usage == root.usage == Usage(30, 12, 0.5)
    assert trace.usage.total_tokens == 42
    assert root.children[1].usage == Usage(20, 7, None)


@pytest.mark.parametrize("value", ["12", -3, True, None, 1.5, (1,), {"a": 1}])
def test_foreign_token_values_count_as_nothing(value: object) -> None:
    """Anything but a positive integer under a token attribute is not a count."""
    odd = span(attributes={"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": value})

    assert Usage.of_span(odd) == Usage()


@pytest.mark.parametrize("value", ["0.1", True, None, float("nan"), float("inf"), (0.1,)])
def test_foreign_prices_count_as_unknown(value: object) -> None:
    """Only a finite number is a price: one NaN would make every sum above it NaN."""
    odd = span(tokens=(1, 1), attributes={"spanloom.cost.usd": value})

    assert Usage.of_span(odd).cost_usd is None


def test_usage_adds_up() -> None:
    """An unknown cost does not hide a known one; two unknown ones stay unknown."""
    assert Usage(1, 2) + Usage(3, 4) == Usage(4, 6, None)
    assert Usage(1, 2, 0.5) + Usage(3, 4) == Usage(4, 6, 0.5)
    assert Usage(1, 2, 0.0) + Usage(3, 4) == Usage(4, 6, 0.0)


def test_a_summary() -> None:
    """Bounds over all spans, the earliest root or orphan, sorted services, sums."""
    trace = trace_of(
        span("POST /chat", 1, start_ms=0, duration_ms=90, service="api", kind=SpanKind.SERVER),
        span("chat", 2, parent=1, start_ms=10, tokens=(3, 4), error="boom"),
        span("late", 3, parent=1, start_ms=50, duration_ms=100, service="检索"),
    )
    summary = trace.summary()

    assert summary.root_service == "api"
    assert summary.root_name == "POST /chat"
    assert summary.start_time_unix_nano == T0
    assert summary.duration_ns == 150 * MS
    assert (summary.span_count, summary.error_count) == (3, 1)
    assert summary.services == ("agent", "api", "检索")
    assert summary.usage == Usage(3, 4)


def test_a_clock_that_ran_backwards() -> None:
    """Durations are never negative."""
    back = span(end_time_unix_nano=T0 - 5)

    assert back.duration_ns == 0
    assert trace_of(back).duration_ns == 0


@pytest.mark.parametrize("name", [None, "", 5, ("a",)])
def test_a_resource_without_a_usable_name(name: object) -> None:
    """It belongs to the unknown service, as the resource conventions ask for."""
    assert Resource({"service.name": name}).service_name == "unknown_service"  # type: ignore[dict-item]
    assert Resource().service_name == "unknown_service"
    assert resource("检索").service_name == "检索"


def test_walk_starts_where_it_is_told() -> None:
    """A subtree can be drawn at the depth it has in the whole."""
    node = TreeNode(span("a"), (TreeNode(span("b")),))

    assert [(depth, each.span.name) for depth, each in node.walk(3)] == [(3, "a"), (4, "b")]
