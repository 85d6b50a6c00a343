"""What the server says about itself: `/metrics` (Prometheus) and `/health`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spanloom import __version__
from spanloom.errors import StoreError
from spanloom.server.responses import json_response
from spanloom.store import StoreStats

_LABELS: Final = ("signal",)


class Monitor:
    """Counts what comes in. Its registry is its own, so several servers fit in one process."""

    def __init__(self, stats: Callable[[], StoreStats]) -> None:
        self._stats = stats
        self._started = time.monotonic()
        self.turned_away = 0
        """Items that were not stored for want of room, or because the store failed."""
        self.registry = CollectorRegistry()
        self._received = Counter(
            "spanloom_received_items",
            "Spans, log records and data points that arrived.",
            _LABELS,
            registry=self.registry,
        )
        self._stored = Counter(
            "spanloom_stored_items",
            "Items acknowledged to their sender.",
            _LABELS,
            registry=self.registry,
        )
        self._rejected = Counter(
            "spanloom_rejected_items",
            "Items refused: invalid, queue_full (the sender comes again), store_failed.",
            ("signal", "reason"),
            registry=self.registry,
        )
        self._failed_requests = Counter(
            "spanloom_rejected_requests",
            "Requests refused before their items could be counted, by status.",
            ("signal", "status"),
            registry=self.registry,
        )
        self._reaped = Counter(
            "spanloom_reaped_spans",
            "Open spans that were ended because their process died or lost them.",
            ("error_type",),
            registry=self.registry,
        )
        self.registry.register(_StoreCollector(stats, self.uptime_s))

    def received(self, signal: str, items: int) -> None:
        """Items that could be decoded, valid or not."""
        self._received.labels(signal).inc(items)

    def stored(self, signal: str, items: int) -> None:
        """Items that survive kill -9 from now on."""
        self._stored.labels(signal).inc(items)

    def rejected(self, signal: str, reason: str, items: int) -> None:
        """Items that were not stored."""
        if reason != "invalid":
            self.turned_away += items
        self._rejected.labels(signal, reason).inc(items)

    def refused(self, signal: str, status: int | str) -> None:
        """A request that was answered with an error."""
        self._failed_requests.labels(signal, str(status)).inc()

    def reaped(self, error_type: str, spans: int) -> None:
        """Open spans that were ended here."""
        self._reaped.labels(error_type).inc(spans)

    def uptime_s(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started

    def health(self) -> dict[str, Any]:
        """The body of `/health`. Raises StoreError where the store cannot answer."""
        return {
            "status": "ok",
            "version": __version__,
            "uptime_seconds": round(self.uptime_s(), 3),
            "store": asdict(self._stats()),
        }


class _StoreCollector(Collector):
    """Reads the store once per scrape."""

    def __init__(self, stats: Callable[[], StoreStats], uptime_s: Callable[[], float]) -> None:
        self._stats = stats
        self._uptime_s = uptime_s

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance, so that registering does not read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Current values."""
        stats = self._stats()
        for name, description, value in (
            ("uptime_seconds", "Seconds since the server started.", self._uptime_s()),
            ("store_bytes", "Size of the store's files.", stats.bytes),
            ("store_spans", "Spans stored.", stats.spans),
            ("store_traces", "Traces stored.", stats.traces),
            ("store_logs", "Log records stored.", stats.logs),
            ("store_metric_points", "Metric data points stored.", stats.metric_points),
            ("inflight_spans", "Spans that have not ended.", stats.open_spans),
            ("queue_items", "Items that wait for their commit.", stats.queue_items),
            ("queue_capacity_items", "Items that may wait.", stats.queue_capacity),
        ):
            yield GaugeMetricFamily(f"spanloom_{name}", description, value)
        yield CounterMetricFamily(
            "spanloom_inflight_refused_announcements",
            "Announcements of open spans for which there was no room.",
            stats.open_spans_refused,
        )


def routes(monitor: Monitor) -> list[Route]:
    """`/health` and `/metrics`."""

    def health(_request: Request) -> Response:
        try:
            return json_response(monitor.health())
        except StoreError as error:
            return json_response({"status": "unavailable", "error": str(error)}, 503)

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(monitor.registry), headers={"Content-Type": content_type})

    return [Route("/health", health), Route("/metrics", metrics)]
