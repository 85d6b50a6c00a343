"""From the end of a span, or a log record, to the OTLP exporter: encoded at once, sent in batches.

on_end ─▶ encoded ─▶ the SDK's batch processor ─▶ one request ─▶ the SDK's client, its retries
└ what must be redacted waits as it is, and is encoded in the export thread
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from opentelemetry.context import Context
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from spanloom import semconv
from spanloom.telemetry import drops, otlp_encoding
from spanloom.telemetry.drops import CountingLogProcessor, CountingSpanProcessor
from spanloom.telemetry.otlp_encoding import Encoded
from spanloom.telemetry.reaped import Claims
from spanloom.telemetry.settings import Signal
from spanloom.telemetry.spool_codec import decode_log, decode_span

_logger: Final = logging.getLogger(__name__)

BATCH_BYTES: Final = 2 * 1024 * 1024
"""Collectors take 4 MiB by default; resources and framing come on top."""
_REQUESTS: Final[dict[Signal, Any]] = {
    "traces": ExportTraceServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_ENCODERS: Final[dict[Signal, Callable[[Any], Encoded]]] = {
    "traces": otlp_encoding.encode_span,
    "logs": otlp_encoding.encode_log,
}
_DECODERS: Final[dict[Signal, Callable[..., Any]]] = {"traces": decode_span, "logs": decode_log}
_HTTP: Final = "opentelemetry.exporter.otlp.proto.http."
_GRPC: Final = "opentelemetry.exporter.otlp.proto.grpc."


class EncodedExporter:
    """Sends what is encoded through an exporter of the SDK.

    Its HTTP client gets the request's bytes, its gRPC stub the message read from them. An exporter
    that works in another way gets the SDK's objects, decoded again.
    """

    def __init__(self, signal: Signal, exporter: Any) -> None:
        self.exporter = exporter
        self._signal: Signal = signal
        self._send = self._how()

    def _how(self) -> Callable[[Sequence[Encoded]], bool]:
        exporter = self.exporter
        client = getattr(exporter, "_client", None)
        # Of the methods, not of the class: what a subclass does of its own is not passed by.
        if (
            _is_from(_HTTP, exporter, "export")
            and hasattr(client, "export")
            and hasattr(exporter, "_metrics")
            and hasattr(exporter, "_shutdown")
        ):
            return self._send_bytes
        if _is_from(_GRPC, exporter, "export") and _is_from(_GRPC, exporter, "_translate_data"):
            message = _REQUESTS[self._signal]
            exporter._translate_data = lambda items: message.FromString(  # noqa: SLF001
                otlp_encoding.request(items)
            )
            return self._send_items
        return self._send_decoded

    def export(self, items: Sequence[Encoded]) -> bool:
        """Send one batch; whether the backend has it."""
        return self._send(items)

    def _send_bytes(self, items: Sequence[Encoded]) -> bool:
        exporter = self.exporter
        if exporter._shutdown:  # noqa: SLF001
            return False
        with exporter._metrics.export_operation(len(items)) as operation:  # noqa: SLF001
            sent = exporter._client.export(otlp_encoding.request(items))  # noqa: SLF001
            operation.error = sent.error
            if not sent.success and sent.status_code is not None:
                operation.error_attrs = {semconv.HTTP_RESPONSE_STATUS_CODE: sent.status_code}
        return bool(sent.success)

    def _send_items(self, items: Sequence[Any]) -> bool:
        return getattr(self.exporter.export(items), "name", "") == "SUCCESS"

    def _send_decoded(self, items: Sequence[Encoded]) -> bool:
        decode = _DECODERS[self._signal]
        return self._send_items([decode(item.body, item.origin) for item in items])

    def shutdown(self) -> None:
        """Close the exporter inside."""
        self.exporter.shutdown()


def _is_from(package: str, exporter: Any, method: str) -> bool:
    module = getattr(getattr(type(exporter), method, None), "__module__", None)
    return isinstance(module, str) and module.startswith(package)


class _BatchExporter:
    """What the SDK's batch processors call: sends a batch, in pieces of at most 2 MiB."""

    def __init__(self, signal: Signal, exporter: Any, claims: Claims | None = None) -> None:
        self._signal: Signal = signal
        self._sender = EncodedExporter(signal, exporter)
        self._claims = claims

    def export(self, items: Sequence[Any]) -> None:
        """Send one batch; what is lost is counted.

        Raises:
            Exception: of the exporter, for the SDK, which logs it, but not again and again.
        """
        encoded = [*self._encoded(items)]
        drops.record_drop(self._signal, drops.INVALID, len(items) - len(encoded))
        if self._claims is not None:
            encoded = self._claims.settle(encoded)
        failure: Exception | None = None
        for piece in _pieces(encoded):
            is_sent = False
            try:
                is_sent = self._sender.export(piece)
            except Exception as exc:  # noqa: BLE001 - the next piece may get through
                failure = exc
            if not is_sent:
                drops.record_drop(self._signal, drops.EXPORT_FAILED, len(piece))
        if failure is not None:
            raise failure

    def _encoded(self, items: Sequence[Any]) -> Iterator[Encoded]:
        encode: Callable[[Any], Encoded] = _ENCODERS[self._signal]
        for item in items:
            try:
                yield item if type(item) is Encoded else encode(item)
            except Exception:  # one that is odd must not cost the batch
                _logger.debug("one of the %s cannot be encoded", self._signal, exc_info=True)

    def shutdown(self) -> None:
        """Close the exporter inside."""
        self._sender.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's
        """Nothing waits here."""
        return True


def _pieces(items: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    begin = size = 0
    for number, item in enumerate(items):
        if size and size + len(item.body) > BATCH_BYTES:
            yield items[begin:number]
            begin, size = number, 0
        size += len(item.body)
    if items:
        yield items[begin:]


class EncodingSpanProcessor(CountingSpanProcessor):
    """The SDK's batch processor, whose queue holds spans that are encoded already."""

    def __init__(self, exporter: Any, *, claims: Claims | None = None, **arguments: Any) -> None:
        # It calls nothing but the three methods, with what is in its queue.
        batches = cast("Any", _BatchExporter("traces", exporter, claims))
        super().__init__(batches, **arguments)

    def on_end(self, span: ReadableSpan) -> None:
        """Encode and queue one ended span."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.count_if_full()
            encoded: Any = otlp_encoding.encode_span_quickly(span)
            self._batch_processor.emit(span if encoded is None else encoded)


class EncodingLogProcessor(CountingLogProcessor):
    """The SDK's batch processor, whose queue holds records that are encoded already."""

    def __init__(self, exporter: Any, **arguments: Any) -> None:
        batches = cast("Any", _BatchExporter("logs", exporter))
        super().__init__(batches, **arguments)

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Encode and queue one record."""
        self.count_if_full()
        encoded: Any = otlp_encoding.encode_log_quickly(log_record)
        self._batch_processor.emit(readable(log_record) if encoded is None else encoded)


def readable(record: ReadWriteLogRecord) -> ReadableLogRecord:
    """Copy a record as the SDK's processors do, without the context it was emitted in."""
    bare = copy.copy(record.log_record)
    bare.context = Context()
    return ReadableLogRecord(
        bare, record.resource or Resource.get_empty(), record.instrumentation_scope, record.limits
    )
