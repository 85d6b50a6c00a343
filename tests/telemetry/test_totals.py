import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk.metrics import Counter, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from spanloom.telemetry import totals
from spanloom.telemetry.lean_meters import lean
from spanloom.telemetry.totals import MAX_SERIES, Sums, Total
from tests.telemetry.forking import DONE, exit_code, forked_while_held
from tests.telemetry.live import Script


class Metrics:
    """A meter provider, and what it would export."""

    def __init__(self, **temporality: Any) -> None:
        self._reader = InMemoryMetricReader(**temporality)
        self.provider = sdk_metrics.MeterProvider([self._reader], shutdown_on_exit=False)

    def total(self, name: str, **options: Any) -> Total:
        return Total(self.provider.get_meter("m"), Sums.of(self.provider), name, **options)

    def read(self) -> dict[str, dict[frozenset[tuple[str, Any]], Any]]:
        data = self._reader.get_metrics_data()
        return {
            metric.name: {
                frozenset(point.attributes.items()): getattr(
                    point, "value", getattr(point, "count", None)
                )
                for point in metric.data.data_points
            }
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def exported() -> Iterator[Metrics]:
    found = Metrics()
    yield found
    found.provider.shutdown()


def series(**attributes: Any) -> frozenset[tuple[str, Any]]:
    return frozenset(attributes.items())


def test_what_many_threads_add_is_what_is_read(exported: Metrics) -> None:
    """Not one of 40,000 is lost, whatever thread adds it and while others read."""
    calls = exported.total("calls")

    def add(model: str) -> None:
        for _ in range(5_000):
            calls.add(1, {"model": model, "kind": "问"})

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(add, f"m{number % 2}") for number in range(8)]
        while not all(one.done() for one in running):
            exported.read()
    assert exported.read()["calls"] == {
        series(model="m0", kind="问"): 20_000,
        series(model="m1", kind="问"): 20_000,
    }


def test_delta_readers_get_differences() -> None:
    """OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta asks for this."""
    delta = AggregationTemporality.DELTA
    exported = Metrics(preferred_temporality={ObservableCounter: delta, Counter: delta})
    calls = exported.total("calls")
    calls.add(3)
    assert exported.read()["calls"] == {series(): 3}
    calls.add(4)
    assert exported.read()["calls"] == {series(): 4}


def test_what_is_no_count_is_left_out(exported: Metrics) -> None:
    """One wrong value must not cost the other series, or all that is exported with them."""
    calls = exported.total("calls")
    calls.add(2, {"model": "a"})
    calls.add(-1, {"model": "a"})
    calls.add(float("nan"), {"model": "a"})
    for wrong in ("7", None):
        with pytest.raises(TypeError):
            calls.add(wrong, {"model": "b"})  # type: ignore[arg-type]
    assert exported.read()["calls"] == {series(model="a"): 2}


def test_series_are_bounded(exported: Metrics) -> None:
    """What comes after the first 2,000 is counted in one, as the specification says."""
    calls = exported.total("calls")
    for number in range(MAX_SERIES + 7):
        calls.add(1, {"address": number})
    calls.add(1, {"address": 0})

    found = exported.read()["calls"]
    assert len(found) == MAX_SERIES + 1
    assert found[series(address=0)] == 2
    assert found[series(**{"otel.metric.overflow": True})] == 7


def test_two_counters_of_one_name_are_one(exported: Metrics) -> None:
    """The SDK reads the first of them only: what the second adds has to be there."""
    exported.total("calls").add(1)
    exported.total("calls").add(1)
    assert exported.read()["calls"] == {series(): 2}


def test_what_is_counted_before_the_setup_is_exported(script: Script) -> None:
    """Counters made on the global provider before there is one go on after it is set."""
    done = script.run(
        "from opentelemetry import metrics as api\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
        "from spanloom.telemetry import genai_metrics, metrics\n"
        "metrics.record_request('/early', '200', 0.1)\n"
        "reader = InMemoryMetricReader()\n"
        "provider = MeterProvider([reader])\n"
        "api.set_meter_provider(provider)\n"
        "genai_metrics.use_meter_provider(provider)\n"
        "metrics.record_request('/late', '200', 0.1)\n"
        "(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics\n"
        "(found,) = [m for m in scope.metrics if m.name == 'agent_requests_total']\n"
        "print(sorted((p.attributes['endpoint'], p.value) for p in found.data.data_points))\n"
    )
    assert done.stdout.strip() == "[('/early', 1), ('/late', 1)]", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_an_addition_counts(exported: Metrics) -> None:
    """Another thread held the lock, and is not there to give it back."""
    calls = exported.total("calls")
    child = forked_while_held(totals._lock, lambda: calls.add(1))
    assert exit_code(child) == DONE


def test_lean_meters_measure_requests_and_no_sizes(exported: Metrics) -> None:
    """Durations and requests in progress are exported; sizes of bodies are not."""
    meter = lean(exported.provider).get_meter("contrib", "1")
    active = meter.create_up_down_counter("http.server.active_requests", unit="{request}")
    duration = meter.create_histogram("http.server.request.duration", unit="s")
    size = meter.create_histogram("http.server.request.body.size", unit="By")
    for change in (1, 1, -1):
        active.add(change, {"http.request.method": "GET"})
    duration.record(0.1, {"http.request.method": "GET"})
    size.record(100, {"http.request.method": "GET"})

    get = series(**{"http.request.method": "GET"})
    assert exported.read() == {
        "http.server.active_requests": {get: 1},
        "http.server.request.duration": {get: 1},
    }


def test_a_lean_provider_is_one_to_those_who_ask(exported: Metrics) -> None:
    """Contrib checks nothing, but others may: it behaves as the provider it stands before."""
    found = lean(exported.provider)
    assert isinstance(found, MeterProvider)
    assert found.get_meter("other").name == "other"
