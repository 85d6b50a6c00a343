"""What the server says about itself: `/metrics` (Prometheus) and `/health`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spanloom import __version__
from spanloom.server.responses import json_response

_LABELS: Final = ("signal",)


class Monitor:
    """Counts what comes in. Its registry is its own, so several servers fit in one process."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._started = time.monotonic()
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
        self._waiting = Gauge(
            "spanloom_waiting_items",
            "Items handed to the writer and not yet safe.",
            registry=self.registry,
        )
        Gauge(
            "spanloom_store_bytes",
            "Size of the store's files.",
            registry=self.registry,
        ).set_function(self.store_bytes)
        Gauge(
            "spanloom_uptime_seconds",
            "Seconds since the server started.",
            registry=self.registry,
        ).set_function(self.uptime_s)

    def received(self, signal: str, items: int) -> None:
        """Items that could be decoded, valid or not."""
        self._received.labels(signal).inc(items)

    def stored(self, signal: str, items: int) -> None:
        """Items that survive kill -9 from now on."""
        self._stored.labels(signal).inc(items)

    def rejected(self, signal: str, reason: str, items: int) -> None:
        """Items that were not stored."""
        self._rejected.labels(signal, reason).inc(items)

    def refused(self, signal: str, status: int | str) -> None:
        """A request that was answered with an error."""
        self._failed_requests.labels(signal, str(status)).inc()

    @contextmanager
    def waiting(self, items: int) -> Iterator[None]:
        """While the writer works on these items."""
        self._waiting.inc(items)
        try:
            yield
        finally:
            self._waiting.dec(items)

    def uptime_s(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started

    def store_bytes(self) -> float:
        """Bytes of all files in the data directory."""
        total = 0
        for file in self._data_dir.rglob("*"):
            try:
                total += file.stat().st_size
            except OSError:  # removed between listing and looking, such as a -wal file
                continue
        return float(total)

    def health(self) -> dict[str, Any]:
        """The body of `/health`."""
        return {
            "status": "ok",
            "version": __version__,
            "uptime_seconds": round(self.uptime_s(), 3),
            "store": {"path": str(self._data_dir), "bytes": int(self.store_bytes())},
        }


def routes(monitor: Monitor) -> list[Route]:
    """`/health` and `/metrics`."""

    def health(_request: Request) -> Response:
        return json_response(monitor.health())

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(monitor.registry), headers={"Content-Type": content_type})

    return [Route("/health", health), Route("/metrics", metrics)]
