"""A user's own prices, for models that no public table has.

SPANLOOM_PRICES names a TOML file:

    [[price]]
    provider = "openai"        # gen_ai.provider.name; without it the price holds for any
    model = "qwen3-*"          # the model that answered; * ? [] as in a shell
    valid_from = 2026-03-01    # first day, UTC; without it always
    input = 0.20               # dollars per million tokens
    output = 0.60
    cache_read = 0.02          # without it cached tokens cost what input costs
    cache_write = 0.25

Prices with the same provider and model are one history. The first history in the file that
matches a call and has begun decides, so special patterns stand above general ones.
"""

import datetime as dt
import fnmatch
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

_RATES: Final = ("input", "output", "cache_read", "cache_write")
_KEYS: Final = frozenset({"provider", "model", "valid_from", *_RATES})


class PriceFileError(Exception):
    """The file cannot be used; the text says what is wrong and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPrice:
    """One price of one model; rates in dollars per million tokens."""

    provider: str | None
    model: str
    valid_from: dt.date
    input: Decimal
    output: Decimal
    cache_read: Decimal | None
    cache_write: Decimal | None

    def matches(self, provider: str | None, model: str) -> bool:
        """Whether it is a price of this model, in force or not."""
        if self.provider is not None and self.provider != (provider or "").lower():
            return False
        return fnmatch.fnmatchcase(model.lower(), self.model)


def read_price_file(path: Path) -> tuple[OwnPrice, ...]:
    """Read a file; the result is in the order in which prices are to be tried.

    Raises:
        PriceFileError: The file cannot be read, is not TOML, or has an entry that is no price.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file, parse_float=Decimal)
    except OSError as exc:
        raise PriceFileError(f"{path}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise PriceFileError(f"{path} is not UTF-8") from exc
    except (tomllib.TOMLDecodeError, ValueError, ArithmeticError, RecursionError) as exc:
        raise PriceFileError(f"{path} is not TOML: {exc}") from exc
    entries = content.pop("price", None)
    if content:
        raise PriceFileError(f"{path}: {next(iter(content))!r} is unknown; prices are [[price]]")
    if not isinstance(entries, list) or not entries:
        raise PriceFileError(f"{path} has no [[price]]")
    return _in_order(
        [_price(entry, f"{path}, price {number}") for number, entry in enumerate(entries, 1)]
    )


def _in_order(prices: list[OwnPrice]) -> tuple[OwnPrice, ...]:
    histories: dict[tuple[str | None, str], list[OwnPrice]] = {}
    for price in prices:
        histories.setdefault((price.provider, price.model), []).append(price)
    return tuple(
        price
        for history in histories.values()
        for price in sorted(history, key=lambda price: price.valid_from, reverse=True)
    )


def _price(entry: Any, where: str) -> OwnPrice:
    if not isinstance(entry, dict):
        raise PriceFileError(f"{where} is not a table: write [[price]] above its lines")
    if unknown := sorted(entry.keys() - _KEYS):
        raise PriceFileError(f"{where}: {unknown[0]!r} is unknown; known are {_listed(_KEYS)}")
    for key in ("model", "input", "output"):
        if key not in entry:
            raise PriceFileError(f"{where} has no {key!r}")
    for key in ("model", "provider"):
        if key in entry and (not isinstance(entry[key], str) or not entry[key].strip()):
            raise PriceFileError(f"{where}: {key!r} must be a text")
    valid_from = entry.get("valid_from", dt.date.min)
    if type(valid_from) is not dt.date:  # a datetime is one, too
        raise PriceFileError(f"{where}: 'valid_from' must be a day such as 2026-03-01, unquoted")
    provider = entry.get("provider")
    return OwnPrice(
        provider=None if provider is None else provider.strip().lower(),
        model=entry["model"].strip().lower(),
        valid_from=valid_from,
        **{key: _rate(entry.get(key), f"{where}: {key!r}") for key in _RATES},
    )


def _rate(value: object, what: str) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PriceFileError(f"{what} must be a number: dollars per million tokens")
    rate = Decimal(value)
    if not rate.is_finite() or rate < 0:
        raise PriceFileError(f"{what} must be 0 or more")
    return rate


def _listed(words: frozenset[str]) -> str:
    return ", ".join(sorted(words))
