"""The meters that contrib's HTTP instrumentations get: what they count is cheap, and no sizes.

A request is five measurements to contrib's ASGI middleware. Its duration stays one. What is in
progress is added up here (`totals`), and the sizes of bodies, which the conventions leave to be
asked for, are not measured.
"""

from typing import Any, Final, cast

import wrapt
from opentelemetry.metrics import Histogram, MeterProvider, NoOpHistogram

from spanloom import semconv
from spanloom.telemetry.totals import Sums, Total

_UNWANTED: Final = frozenset(
    {semconv.METRIC_HTTP_REQUEST_BODY_SIZE, semconv.METRIC_HTTP_RESPONSE_BODY_SIZE}
)


def lean(provider: MeterProvider) -> MeterProvider:
    """Return a provider of lean meters, which hand on to those of this one."""
    return cast("MeterProvider", _LeanMeterProvider(provider))


class _LeanMeterProvider(wrapt.ObjectProxy):  # type: ignore[type-arg]  # generic from wrapt 2 on
    def get_meter(self, *arguments: Any, **named: Any) -> "_LeanMeter":
        provider: MeterProvider = self.__wrapped__
        return _LeanMeter(provider.get_meter(*arguments, **named), Sums.of(provider))


class _LeanMeter(wrapt.ObjectProxy):  # type: ignore[type-arg]
    def __init__(self, meter: Any, sums: Sums) -> None:
        super().__init__(meter)
        self._self_sums = sums

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Total:
        return Total(self.__wrapped__, self._self_sums, name, unit, description, goes_down=True)

    def create_histogram(self, name: str, *arguments: Any, **named: Any) -> Histogram:
        if name in _UNWANTED:
            return NoOpHistogram(name)
        made: Histogram = self.__wrapped__.create_histogram(name, *arguments, **named)
        return made
