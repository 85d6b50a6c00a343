"""The three OTLP signals, and the one way in that both transports share.

HTTP body ─┐                                              ┌─ full: StoreFullError
           ├─▶ Signal.decode ─▶ Intake.take ─▶ Writer ────┤
gRPC bytes ┘   (thread if big)  (waits)                   └─ safe: acknowledged
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

from spanloom.contract import Batch, Writer
from spanloom.errors import StoreFullError
from spanloom.otlp import Decoded, decode_logs, decode_metrics, decode_traces, decompress
from spanloom.server.monitoring import Monitor

OFF_LOOP_BYTES: Final = 256 * 1024
"""Bodies over this are decoded in a thread: 256 kB take some 20 ms, during which nobody else
would be answered."""
_HELD: Final = 4
"""Bodies of all connections together, as a multiple of the limit of one (4 × 64 MiB)."""


@dataclass(frozen=True, slots=True)
class Signal:
    """How one kind of telemetry travels."""

    name: str
    path: str
    grpc_service: str
    decode: Callable[[bytes, str], Decoded[Any]]
    batch: Callable[[tuple[Any, ...]], Batch]
    response: Callable[[int, str], Message]
    """The answer for (rejected, message); (0, "") leaves partial_success unset."""


def _responder(response: type[Message], rejected_field: str) -> Callable[[int, str], Message]:
    def respond(rejected: int, message: str) -> Message:
        made: Any = response()
        if rejected or message:
            setattr(made.partial_success, rejected_field, rejected)
            made.partial_success.error_message = message
        return made  # type: ignore[no-any-return]

    return respond


_PACKAGE: Final = "opentelemetry.proto.collector"

TRACES: Final = Signal(
    "traces",
    "/v1/traces",
    f"{_PACKAGE}.trace.v1.TraceService",
    decode_traces,
    lambda items: Batch(spans=items),
    _responder(ExportTraceServiceResponse, "rejected_spans"),
)
LOGS: Final = Signal(
    "logs",
    "/v1/logs",
    f"{_PACKAGE}.logs.v1.LogsService",
    decode_logs,
    lambda items: Batch(logs=items),
    _responder(ExportLogsServiceResponse, "rejected_log_records"),
)
METRICS: Final = Signal(
    "metrics",
    "/v1/metrics",
    f"{_PACKAGE}.metrics.v1.MetricsService",
    decode_metrics,
    lambda items: Batch(metrics=items),
    _responder(ExportMetricsServiceResponse, "rejected_data_points"),
)
SIGNALS: Final = (TRACES, LOGS, METRICS)


class QueueFullError(StoreFullError):
    """The write queue is full, as against the disk: it will have room in a moment."""


class HeldBytes:
    """Bodies of all requests that are being read or stored, both transports together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def add(self, size: int) -> None:
        """Hold so many bytes more; raises QueueFullError where there is no room for them."""
        if self._held + size > self._limit:
            raise QueueFullError("Too many large requests at once; send again in a moment.")
        self._held += size

    def remove(self, size: int) -> None:
        """What `add` took, once the request is answered."""
        self._held -= size


class Intake:
    """Decodes requests and hands them to the writer. Close it after the last request."""

    def __init__(self, writer: Writer, monitor: Monitor, max_body_bytes: int) -> None:
        self._writer = writer
        self._monitor = monitor
        self._limit = max_body_bytes
        self.held = HeldBytes(_HELD * max_body_bytes)
        # Threads of its own, so that slow queries never hold up ingest; two, so that no more
        # than two unfolded bodies are in memory at a time.
        self._decoders = ThreadPoolExecutor(2, "spanloom-decode")

    def close(self) -> None:
        """End the decoding threads."""
        self._decoders.shutdown()

    async def take(
        self, signal: Signal, body: bytes, content_type: str, content_encoding: str = ""
    ) -> Message:
        """Store one request; returns once it survives kill -9 of this process.

        Args:
            signal: what the endpoint takes.
            body: the request as received.
            content_type: `application/x-protobuf` or `application/json`.
            content_encoding: `gzip`, or empty where nothing is to be unfolded.

        Raises:
            PayloadError: the request cannot be taken, whoever sends it again.
            QueueFullError: come again in a moment.
            StoreError: it is not stored.
        """
        decode = partial(self._decode, signal, body, content_type, content_encoding)
        # How far gzip unfolds is not known before, so it never runs on the loop.
        if content_encoding or len(body) > OFF_LOOP_BYTES:
            decoded = await asyncio.get_running_loop().run_in_executor(self._decoders, decode)
        else:
            decoded = decode()
        self._monitor.received(signal.name, len(decoded.items) + decoded.rejected)
        if decoded.rejected:
            self._monitor.rejected(signal.name, "invalid", decoded.rejected)
        if decoded.items:
            await self._store(signal, signal.batch(decoded.items))
        return signal.response(decoded.rejected, decoded.message)

    def _decode(
        self, signal: Signal, body: bytes, content_type: str, content_encoding: str
    ) -> Decoded[Any]:
        return signal.decode(decompress(body, content_encoding, self._limit), content_type)

    async def _store(self, signal: Signal, batch: Batch) -> None:
        size = len(batch)
        try:
            future = self._writer.submit(batch)
        except StoreFullError as full:
            self._monitor.rejected(signal.name, "queue_full", size)
            raise QueueFullError(str(full), full.retry_after_s) from full
        # Counted where it is decided: the client may have hung up by then.
        future.add_done_callback(partial(self._count, signal, size))
        # A client that hangs up must not cancel a write that others are grouped with.
        await asyncio.shield(asyncio.wrap_future(future))

    def _count(self, signal: Signal, size: int, future: "Future[None]") -> None:
        if future.exception() is None:
            self._monitor.stored(signal.name, size)
        else:
            self._monitor.rejected(signal.name, "store_failed", size)
