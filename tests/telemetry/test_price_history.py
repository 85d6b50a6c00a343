"""Prices that are kept are those of genai-prices, to the last digit and on every day."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

import pytest
from genai_prices import Usage, data_snapshot
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, StartDateConstraint
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloom.telemetry import price_history
from spanloom.telemetry.price_history import EXACT, History, Price
from spanloom.telemetry.pricing import rounded

MODELS = [model for provider in data_snapshot.get_snapshot().providers for model in provider.models]
counts = st.one_of(st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 10**12))
moments = st.one_of(
    st.datetimes(datetime(2023, 1, 1), datetime(2028, 1, 1)),  # noqa: DTZ001 - naive is UTC
    st.datetimes(datetime(2023, 1, 1), datetime(2028, 1, 1), timezones=st.timezones()),  # noqa: DTZ001
)


@st.composite
def usages(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Input, output, and the parts of the input that were cached; mostly as they come from APIs."""
    tokens, output = draw(counts), draw(counts)
    if draw(st.booleans()):
        return tokens, output, 0, 0, 0
    read = draw(st.integers(0, tokens))
    written = draw(st.integers(0, tokens - read))
    return tokens, output, read, written, draw(st.integers(0, written))


def listed_cost(price: ModelPrice, usage: tuple[int, int, int, int, int]) -> Decimal | None:
    """What genai-prices itself makes of the price, all that it lists included."""
    if price.input_mtok is None or (price.output_mtok is None and usage[1]):
        return None  # not sold by the token
    names = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
    with localcontext(EXACT):
        tokens = {f"{name}_tokens": count for name, count in zip(names, usage, strict=True)}
        return price.calc_price(Usage(**tokens))["total_price"]


@settings(max_examples=300, deadline=None)
@given(model=st.sampled_from(MODELS), moment=moments, usage=usages())
def test_every_cost_is_that_of_the_table(
    model: ModelInfo, moment: datetime, usage: tuple[int, int, int, int, int]
) -> None:
    """Whatever model, day and counts; asked twice, because the second answer is from memory."""
    history = History((), model, Usage)
    expected = listed_cost(model.get_prices(moment), usage)

    for _ in range(2):
        price = history.at(moment)
        found = None if price is None else price.cost(*usage)
        assert found == expected
        if found is not None and expected is not None:
            assert float(rounded(found)) == float(rounded(expected))  # as spans carry it


def test_every_model_costs_what_the_table_says() -> None:
    """All of them, with a usage of each kind, whose digits all show."""
    now, usage = datetime(2026, 9, 1, tzinfo=UTC), (1_234_567, 7_654_321, 100_003, 90_001, 70_009)
    different = [
        model.id
        for model in MODELS
        for price in [History((), model, Usage).at(now)]
        if (price and price.cost(*usage)) != listed_cost(model.get_prices(now), usage)
    ]

    assert len(MODELS) > 1000
    assert different == []


@pytest.mark.parametrize(
    "usage",
    [
        (-1, 0, 0, 0, 0),
        (0, -1, 0, 0, 0),
        (5, 0, 6, 0, 0),
        (5, 0, 0, 6, 0),
        (5, 0, 3, 3, 0),
        (5, 0, -1, 0, 0),
        (5, 0, 0, 2, 3),
        (5, 0, 0, 0, -1),
        ("5", 0, 0, 0, 0),
        (5, None, 0, 0, 0),
        (5, 0, 2.5, 0, 0),
        (True, 0, 0, 0, 0),
    ],
)
def test_counts_that_contradict_are_left_to_the_table(usage: Any) -> None:
    """What genai-prices refuses is refused, with the same error, and what it takes is taken."""
    listed = ModelPrice(
        input_mtok=Decimal(2),
        output_mtok=Decimal(8),
        cache_read_mtok=Decimal("0.5"),
        cache_write_mtok=Decimal(3),
        cache_write_1h_mtok=Decimal(4),
    )

    def outcome(cost: Any) -> Any:
        try:
            return cost()
        except Exception as exc:  # noqa: BLE001 - compared below
            return type(exc), str(exc)

    assert outcome(lambda: Price(listed, Usage).cost(*usage)) == outcome(
        lambda: listed_cost(listed, usage)
    )


def test_a_price_changes_at_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs on into the first day of a new price uses it from 0:00 UTC on."""
    model = ModelInfo(
        id="m",
        match=MODELS[0].match,
        prices=[
            ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(1))),
            ConditionalPrice(
                constraint=StartDateConstraint(date(2026, 6, 1)),
                prices=ModelPrice(input_mtok=Decimal(2)),
            ),
        ],
    )
    midnight = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
    clock = [midnight - 1]
    monkeypatch.setattr(price_history.time, "time", lambda: clock[0])
    history = History((), model, Usage)

    def million_costs() -> Decimal | None:
        price = history.at(None)
        return price and price.cost(10**6, 0, 0, 0, 0)

    assert million_costs() == 1
    assert million_costs() == 1
    clock[0] = midnight
    assert million_costs() == 2
    clock[0] = midnight - 1  # the clock is set back
    assert million_costs() == 1


def test_a_price_of_the_hour_is_never_kept() -> None:
    """Some providers are cheaper at night: such a price is looked at for every call."""
    nightly = [
        model
        for model in MODELS
        if isinstance(model.prices, list)
        and any(hasattr(price.constraint, "start_time") for price in model.prices)
    ]
    assert nightly
    for model in nightly:
        history = History((), model, Usage)
        for minutes in range(0, 24 * 60, 15):
            moment = datetime(2026, 9, 1, tzinfo=UTC) + timedelta(minutes=minutes)
            price = history.at(moment)
            assert price is not None
            assert price.cost(10**6, 10**6, 0, 0, 0) == listed_cost(
                model.get_prices(moment), (10**6, 10**6, 0, 0, 0)
            )
        assert history._today == (-1, None)
        history.at(None)
        assert history._today == (-1, None)
