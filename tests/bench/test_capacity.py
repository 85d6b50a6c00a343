"""The capacity model's arithmetic."""

import dataclasses

import pytest

from bench.sampling.capacity import Measured, Prices, Storage, longest_wait_gib, plan

MEASURED = Measured(spans_per_request=40, agent_spans_per_cpu_second=40_000)


def test_ten_times_the_requests_take_ten_times_the_collectors() -> None:
    """Until storage is full, everything grows alike, and nothing is dropped."""
    small = plan(1_000, 10**9, MEASURED, Prices(), Storage())
    large = plan(10_000, 10**9, MEASURED, Prices(), Storage())

    assert small.stored_share == pytest.approx(1)
    for name in ("spans", "wire_mb", "agent_cores", "gateway_cores", "gateway_gib", "stored_tb"):
        assert getattr(large, name) == pytest.approx(10 * getattr(small, name)), name
    assert small.spans == 40_000
    assert small.agent_cores == pytest.approx(1 / 0.6)


def test_storage_bounds_what_is_stored_and_not_what_is_received() -> None:
    """Sampling saves storage; the Collectors see all of it."""
    bounded = plan(100_000, 400_000, MEASURED, Prices(), Storage())
    free = plan(100_000, 10**9, MEASURED, Prices(), Storage())

    assert bounded.stored_spans == pytest.approx(400_000)
    assert bounded.agent_cores == free.agent_cores
    assert bounded.clickhouse_nodes < free.clickhouse_nodes
    assert bounded.month_usd < free.month_usd


def test_what_must_be_kept_exceeds_a_budget_that_is_too_small() -> None:
    """Errors are not dropped to keep to a number: the plan says that storage has to grow."""
    bounded = plan(1_000_000, 1_000, MEASURED, Prices(), Storage())

    assert bounded.stored_spans > 1_000
    assert bounded.stored_share == pytest.approx(0.0072, abs=0.0002)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Prices)])
def test_every_price_counts(field: str) -> None:
    """A price that changed nothing would be a figure for show."""
    dear = dataclasses.replace(Prices(), **{field: 10 * getattr(Prices(), field)})

    assert (
        plan(1_000, 10**9, MEASURED, dear, Storage()).month_usd
        > plan(1_000, 10**9, MEASURED, Prices(), Storage()).month_usd
    )


def test_memory_has_to_hold_what_waits_without_roots() -> None:
    """The decision wait is the longest that a span stays."""
    usual = plan(1_000, 10**9, MEASURED, Prices(), Storage()).gateway_gib

    assert longest_wait_gib(1_000, MEASURED) > usual
