"""A real backend on free ports, in a thread of the test process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from spanloom.model import LogEvent, MetricPoint, Span
from spanloom.otlp import logs_to_json, metrics_to_json, traces_to_json
from spanloom.server.app import Addresses, ServerConfig, serve


@dataclass(frozen=True, slots=True)
class LiveServer:
    """Where it listens, and a way in."""

    addresses: Addresses

    @property
    def url(self) -> str:
        return self.addresses.query

    def send_spans(self, *spans: Span) -> None:
        """By OTLP/HTTP JSON, as an application would; returns when they are stored."""
        self._send("traces", traces_to_json(spans))

    def send_logs(self, *logs: LogEvent) -> None:
        self._send("logs", logs_to_json(logs))

    def send_metrics(self, *points: MetricPoint) -> None:
        self._send("metrics", metrics_to_json(points))

    def _send(self, signal: str, document: object) -> None:
        answer = httpx2.post(f"{self.addresses.otlp_http}/v1/{signal}", json=document, timeout=30)
        assert answer.status_code == 200, answer.text
        assert "partialSuccess" not in answer.json(), answer.text


@contextmanager
def live_server(data_dir: Path) -> Iterator[LiveServer]:
    ready = threading.Event()
    found: list[Addresses] = []
    stopping: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        stopping.append((asyncio.get_running_loop(), stop))

        def on_ready(addresses: Addresses) -> None:
            found.append(addresses)
            ready.set()

        config = ServerConfig(data_dir, otlp_grpc_port=0, otlp_http_port=0, query_port=0)
        try:
            await serve(config, on_ready=on_ready, stop=stop)
        finally:
            ready.set()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(60)
        assert found, "the server did not start"
        yield LiveServer(found[0])
    finally:
        loop, stop = stopping[0]
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
