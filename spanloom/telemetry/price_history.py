"""What the tokens of one model cost, one price after the other, each worked out once.

genai-prices takes each usage apart anew, which costs 25 to 60 µs a call. Nearly all prices are so
much a token of each kind however many there are, so those rates are kept; where a price has
tiers, and where counts contradict each other, genai-prices is asked.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from typing import TYPE_CHECKING, Final, NamedTuple

from spanloom.telemetry.price_file import OwnPrice

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Usage

EXACT: Final = Context(prec=40)
"""Not the application's decimal context, which may round to cents or trap."""
_LISTED: Final = (
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "requests_kcount",
)
"""Prices, as genai-prices names them, of what a call here can have: no audio, images, searches."""
_SECONDS_A_DAY: Final = 86_400


class _Rates(NamedTuple):
    """Dollars for a call and for each token in it."""

    call: Decimal
    input: Decimal
    output: Decimal
    cache_read: Decimal
    """What a token read from a cache costs more than another of the input; mostly below 0."""
    cache_write: Decimal
    cache_write_1h: Decimal
    """What a write that lives an hour costs more than another write."""


class Price:
    """One price of one model."""

    __slots__ = ("_has_output", "_listed", "_rates", "_usage")

    def __init__(self, listed: "ModelPrice", usage: "type[Usage]") -> None:
        prices = {name: getattr(listed, name) for name in _LISTED}
        self._listed = type(listed)(
            **{name: price for name, price in prices.items() if price is not None}
        )
        self._usage = usage
        self._has_output = prices["output_mtok"] is not None
        self._rates: _Rates | None = None
        """None where the price of a token depends on how many there are."""
        if all(price is None or isinstance(price, Decimal) for price in prices.values()):
            self._rates = self._rates_of_listed()

    def cost(
        self, input_tokens: int, output_tokens: int, read: int, written: int, written_1h: int
    ) -> Decimal | None:
        """Dollars for these tokens, or None where they have no price.

        `read` and `written` are the parts of the input that were cached, `written_1h` a part of
        `written`. ValueError or TypeError if they contradict each other.
        """
        if output_tokens and not self._has_output:
            return None
        rates = self._rates
        if (
            rates is None
            or not (type(input_tokens) is type(output_tokens) is int)
            or input_tokens < 0
            or output_tokens < 0
        ):
            return self._listed_cost(input_tokens, output_tokens, read, written, written_1h)
        fma = EXACT.fma
        total = fma(rates.output, output_tokens, fma(rates.input, input_tokens, rates.call))
        if read or written or written_1h:
            if not (
                type(read) is type(written) is type(written_1h) is int
                and read >= 0
                and 0 <= written_1h <= written <= input_tokens - read
            ):
                return self._listed_cost(input_tokens, output_tokens, read, written, written_1h)
            total = fma(rates.cache_write_1h, written_1h, fma(rates.cache_write, written, total))
            total = fma(rates.cache_read, read, total)
        return total

    def _listed_cost(
        self, input_tokens: int, output_tokens: int, read: int, written: int, written_1h: int
    ) -> Decimal:
        with localcontext(EXACT):
            usage = self._usage(
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cache_read_tokens=read,
                cache_write_tokens=written,
                cache_write_1h_tokens=written_1h,
            )
            return self._listed.calc_price(usage)["total_price"]

    def _rates_of_listed(self) -> _Rates:
        cost, less = self._listed_cost, EXACT.subtract
        call, plain, written = cost(0, 0, 0, 0, 0), cost(1, 0, 0, 0, 0), cost(1, 0, 0, 1, 0)
        return _Rates(
            call=call,
            input=less(plain, call),
            output=less(cost(0, 1, 0, 0, 0), call),
            cache_read=less(cost(1, 0, 1, 0, 0), plain),
            cache_write=less(written, plain),
            cache_write_1h=less(cost(1, 0, 0, 1, 1), written),
        )


class History:
    """The prices of one model as they follow each other. The one in force is kept for its day.

    All begin at midnight UTC, but for a few that change within each day.
    """

    __slots__ = ("_changes_daily", "_made", "_own", "_published", "_today", "_usage")

    def __init__(
        self,
        own: "Sequence[tuple[OwnPrice, ModelPrice]]",
        published: "ModelInfo | None",
        usage: "type[Usage]",
    ) -> None:
        """`own` are the user's prices of the model, in the order in which they are to be tried."""
        self._own = own
        self._published = published
        self._usage = usage
        self._made: dict[int, tuple[ModelPrice, Price | None]] = {}  # a model has one to five
        self._today: tuple[int, Price | None] = (-1, None)
        prices = None if published is None else published.prices
        self._changes_daily = isinstance(prices, list) and any(
            hasattr(price.constraint, "start_time") for price in prices
        )

    def at(self, moment: datetime | None) -> Price | None:
        """The price in force then (None: now); None where there is none."""
        if moment is not None or self._changes_daily:
            return self._in_force(moment or datetime.now(UTC))
        day = int(time.time()) // _SECONDS_A_DAY
        kept, price = self._today
        if day != kept:
            price = self._in_force(datetime.fromtimestamp(day * _SECONDS_A_DAY, UTC))
            self._today = day, price
        return price

    def _in_force(self, moment: datetime) -> Price | None:
        day = (moment.astimezone(UTC) if moment.tzinfo else moment).date()
        for own, price in self._own:
            if own.valid_from <= day:
                return self._price(price)
        return None if self._published is None else self._price(self._published.get_prices(moment))

    def _price(self, listed: "ModelPrice") -> Price | None:
        made = self._made.get(id(listed))
        if made is None:
            # Subscriptions and models billed by the minute or page are listed without input: a sum
            # without it is 0, and wrong.
            price = None if listed.input_mtok is None else Price(listed, self._usage)
            made = self._made[id(listed)] = listed, price
        return made[1]
