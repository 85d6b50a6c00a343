"""Counters that are added up here, and that OpenTelemetry reads only when it exports.

The SDK takes 25 µs for a measurement: it copies, cleans and hashes the attributes, and offers an
exemplar. A model call adds to nine counters. What is lost is the exemplars of these; those
for Prometheus, and of histograms, stay.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.util.types import AttributeValue

from spanloom import semconv

MAX_SERIES: Final = 2_000
"""Sets of attributes that are told apart, the specification's limit; the others are one series."""

_Key = tuple[tuple[str, AttributeValue], ...]
_OVERFLOW: Final[_Key] = ((semconv.OTEL_METRIC_OVERFLOW, True),)


class Sums:
    """The sums of one meter provider by counter and attributes.

    They are not the instruments' own: of two that are made with one name on one meter, the SDK
    reads the first, whichever of them is added to.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], dict[_Key, float]] = {}

    @classmethod
    def of(cls, provider: MeterProvider | None) -> "Sums":
        """Return those of a provider (None: the global one, also before it is set)."""
        if provider is None or provider is metrics.get_meter_provider():
            return _global
        return _others.setdefault(provider, cls())

    def sums_of(self, meter: str, counter: str) -> dict[_Key, float]:
        """Return those of one counter, by the names of its meter and of itself."""
        return self._of.setdefault((meter, counter), {})


_global: Final = Sums()
_others: Final[WeakKeyDictionary[MeterProvider, Sums]] = WeakKeyDictionary()
_NO_ATTRIBUTES: Final[Mapping[str, AttributeValue]] = MappingProxyType({})
_lock = threading.Lock()  # one for all counters: it is held for less than a microsecond


def _renew_lock() -> None:
    """In a forked child, a thread that is not there may hold it."""
    global _lock  # noqa: PLW0603 - one process, one lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Total:
    """A counter (`goes_down`: an up-down counter) of OpenTelemetry."""

    def __init__(
        self,
        meter: Meter,
        sums: Sums,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        goes_down: bool = False,
    ) -> None:
        self._sums = sums.sums_of(meter.name, name)
        self._goes_down = goes_down
        create = (
            meter.create_observable_up_down_counter
            if goes_down
            else meter.create_observable_counter
        )
        create(name, callbacks=[self._observe], unit=unit, description=description)

    def add(
        self,
        amount: float,
        attributes: Mapping[str, AttributeValue] = _NO_ATTRIBUTES,
        context: Context | None = None,  # noqa: ARG002 - only exemplars need it
    ) -> None:
        """Add to the series of these attributes, which callers name in always the same order.

        What cannot be added to a counter is left out: below zero, and NaN.

        Raises:
            TypeError: the amount is no number.
        """
        if not (self._goes_down or amount >= 0):
            return
        key = tuple(attributes.items())
        sums = self._sums
        with _lock:
            if key not in sums and len(sums) >= MAX_SERIES:
                key = _OVERFLOW
            sums[key] = sums.get(key, 0) + amount

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        with _lock:
            sums = list(self._sums.items())
        return [Observation(total, dict(key)) for key, total in sums]
