"""What a model call cost, in US dollars: the only place that knows prices.

    cost_usd(provider="openai", model="o3", input_tokens=1_000_000, output_tokens=0)   # 2
    cost_usd(..., at=datetime(2025, 5, 1, tzinfo=UTC))                                 # 10

Order, and no guess after the last:

1. the user's own price file (`price_file`), for whoever provides the model
2. genai-prices' table of the provider whose API host was called
3. the same of the provider that the client names, where the host is not known as anybody's

Tables, history and tiers are genai-prices' (extra `cost`); nothing is fetched. Reading them takes
0.17 s and 20 MB in a process that has LangChain, 0.35 s in one that has no pydantic yet, so they
are read when LangChain's models are imported, or in a thread while the first `llm_call` runs.
"""

import logging
import os
import threading
import time
from datetime import datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spanloom.telemetry.price_file import OwnPrice, PriceFileError, read_price_file
from spanloom.telemetry.price_history import EXACT, History

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, Provider

_logger: Final = logging.getLogger(__name__)

PRICES_VARIABLE: Final = "SPANLOOM_PRICES"
_ROUNDED: Final = Context(prec=10)
_MAX_KNOWN: Final = 1024
"""Models remembered, priced or not; beyond that it starts afresh: a lookup each, 0.1 ms."""

_PROVIDERS: Final = {
    # gen_ai.provider.name → genai-prices' id, where they differ. Nothing fuzzy: to genai-prices
    # an "openai-compatible" server is OpenAI.
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "x_ai": "x-ai",
}

_Key = tuple[str | None, str | None, str]


def cost_usd(
    *,
    provider: str | None,
    model: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    cache_read: int | None = 0,
    cache_write: int | None = 0,
    cache_write_1h: int | None = 0,
    server_address: str | None = None,
    at: datetime | None = None,
) -> Decimal | None:
    """Dollars for one call, to 10 significant digits; None where price or tokens are not known.

    `provider` is a `gen_ai.provider.name`, `model` the one that answered. `input_tokens` is all
    input: `cache_read` and `cache_write` are parts of it, `cache_write_1h` (Anthropic's writes
    that live an hour) a part of `cache_write`. `at` defaults to now; without a zone it is UTC.
    Never raises.
    """
    if model is None or input_tokens is None or output_tokens is None:
        return None
    try:
        prices = _READER.prices()
        price = None if prices is None else prices.of(provider, server_address, model).at(at)
        if price is None:
            return None
        cost = price.cost(
            input_tokens, output_tokens, cache_read or 0, cache_write or 0, cache_write_1h or 0
        )
        return None if cost is None else _ROUNDED.plus(cost)
    except Exception:  # counts that contradict each other; telemetry never breaks the application
        _logger.debug("a call of %s cannot be priced", model, exc_info=True)
        return None


def rounded(dollars: Decimal) -> Decimal:
    """Keep 10 significant digits: enough for any sum, and no digits of arithmetic."""
    return _ROUNDED.plus(dollars)


def added(total: Decimal | None, dollars: Decimal) -> Decimal:
    """Exact sum, whatever the application's decimal context is; None counts as nothing."""
    return dollars if total is None else EXACT.add(total, dollars)


class _Prices:
    """Both sources of prices, and every model that was looked up in them."""

    def __init__(self, own: tuple[OwnPrice, ...]) -> None:
        """Import genai-prices and its table; ImportError without the extra `cost`."""
        from genai_prices import Usage, data_snapshot  # noqa: PLC0415 - optional and slow
        from genai_prices.types import ModelPrice  # noqa: PLC0415

        self._usage: type[Usage] = Usage
        self._snapshot_now = data_snapshot.get_snapshot
        self._snapshot: DataSnapshot = data_snapshot.get_snapshot()
        self._own = [
            (
                price,
                ModelPrice(
                    input_mtok=price.input,
                    output_mtok=price.output,
                    cache_read_mtok=price.cache_read,
                    cache_write_mtok=price.cache_write,
                ),
            )
            for price in own
        ]
        self._known: dict[_Key, History] = {}

    def of(self, provider: str | None, server_address: str | None, model: str) -> History:
        """The prices of a model; looked up once."""
        snapshot = self._snapshot_now()
        if snapshot is not self._snapshot:  # the application lets genai-prices update itself
            self._snapshot, self._known = snapshot, {}
        key = (provider, server_address, model)
        known = self._known
        try:
            return known[key]
        except KeyError:
            pass
        if len(known) >= _MAX_KNOWN:
            known = self._known = {}
        own = [(own, price) for own, price in self._own if own.matches(provider, model)]
        published = _published(self._snapshot, provider, server_address, model)
        if not own and published is None:
            _logger.debug("no price for model %r of %r at %r", model, provider, server_address)
        history = known[key] = History(own, published, self._usage)
        return history


def _published(
    snapshot: "DataSnapshot", provider: str | None, server_address: str | None, model: str
) -> "ModelInfo | None":
    """Look in genai-prices' table; without its own lookups, which guess and never forget."""
    seller = _seller(snapshot, provider, server_address)
    found = seller and seller.find_model(model, all_providers=snapshot.providers)
    return found or None


def _seller(
    snapshot: "DataSnapshot", provider: str | None, server_address: str | None
) -> "Provider | None":
    """Who is paid: whose host it is, else whom the client names (many speak OpenAI's protocol)."""
    if server_address:
        try:
            return snapshot.find_provider(None, None, f"https://{server_address}/")
        except LookupError:
            pass  # a gateway, or a server of one's own
    name = _PROVIDERS.get(provider or "", provider)
    return next((seller for seller in snapshot.providers if seller.id == name), None)


class _Reader:
    """Reads the prices once a process, when they are needed or a little before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prices: _Prices | None = None
        self._is_done = False
        self._own: tuple[OwnPrice, ...] | None = None
        """None until a price file was chosen, by `setup` or by the environment."""
        self._thread: threading.Thread | None = None

    def prices(self) -> _Prices | None:
        """The prices, or None without the extra; waits for whoever is reading them."""
        if not self._is_done:
            self.load()
        return self._prices

    def load(self) -> None:
        """Read the tables unless that has been done. Takes its time (see above); never raises."""
        with self._lock:
            if self._is_done:
                return
            started = time.perf_counter()
            try:
                if self._own is None:  # only the instrumentor runs, and no `setup`
                    path = os.environ.get(PRICES_VARIABLE, "").strip()
                    self._own = _read(Path(path) if path else None)
                self._prices = _Prices(self._own)
                _logger.debug("prices read in %.0f ms", (time.perf_counter() - started) * 1000)
            except ImportError as exc:
                level = logging.WARNING if self._own else logging.DEBUG  # a price file asks for it
                _logger.log(level, "spans carry no cost: install spanloom[cost] (%s)", exc)
            except Exception:
                _logger.warning("spans carry no cost: genai-prices is broken", exc_info=True)
            self._is_done = True

    def warm(self) -> None:
        """Begin to read the tables in a thread, so that they are there when a call has ended."""
        if self._is_done or self._thread is not None:
            return
        try:
            self._thread = threading.Thread(target=self.load, name="spanloom-prices", daemon=True)
            self._thread.start()
        except RuntimeError:  # no more threads: they are read when the call ends
            _logger.debug("no thread to read prices in", exc_info=True)

    def use_price_file(self, path: Path | None) -> None:
        """Use the user's own prices from this file, or none; what is wrong in it is one warning."""
        own = _read(path)
        with self._lock:
            self._own, self._prices, self._is_done = own, None, False

    def forget_thread(self) -> None:
        """Do without prices in a process forked while they were read: its import never ends."""
        if self._lock.locked():
            self._lock, self._is_done = threading.Lock(), True


def _read(path: Path | None) -> tuple[OwnPrice, ...]:
    if path is None:
        return ()
    try:
        return read_price_file(path.expanduser())
    except (PriceFileError, RuntimeError) as exc:  # RuntimeError: ~ of nobody
        _logger.warning("%s is ignored: %s", PRICES_VARIABLE, exc)
        return ()


_READER: Final = _Reader()
load: Final = _READER.load
warm: Final = _READER.warm
use_price_file: Final = _READER.use_price_file
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_READER.forget_thread)
