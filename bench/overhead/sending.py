"""The way to a backend while tracing is measured: everything but the network."""

from collections.abc import Callable
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from overhead.recording import QUEUE
from spanloom.telemetry.otlp_encoding import Origin
from spanloom.telemetry.spool_codec import decode_span

_ORIGIN = Origin(Resource.get_empty(), None)


class Nowhere:
    """Stands in for the HTTP transport of an OTLP exporter; takes everything."""

    def __init__(self) -> None:
        self.kept: list[ReadableSpan] | None = None

    def request(self, *_: Any, data: bytes | None = None, **__: Any) -> Any:
        if self.kept is not None:
            message = ExportTraceServiceRequest.FromString(data or b"")
            for resource_spans in message.resource_spans:
                for scope_spans in resource_spans.scope_spans:
                    self.kept += [
                        decode_span(span.SerializeToString(), _ORIGIN) for span in scope_spans.spans
                    ]
        return _Taken()

    def close(self) -> None:
        """Nothing is open."""


class _Taken:
    status_code = 200
    reason = "OK"
    error = None

    def headers(self) -> dict[str, str]:
        return {}


class NullOtlpExporter(OTLPSpanExporter):
    """The exporter that spans go to in earnest, without the network behind it."""

    def __init__(self) -> None:
        self._nowhere = Nowhere()
        super().__init__(_transport=self._nowhere)

    @property
    def kept(self) -> list[ReadableSpan] | None:
        """What was sent, while it is kept."""
        return self._nowhere.kept

    @kept.setter
    def kept(self, kept: list[ReadableSpan] | None) -> None:
        self._nowhere.kept = kept


def sending_provider(
    processor: Callable[..., SpanProcessor],
) -> tuple[TracerProvider, NullOtlpExporter]:
    """Make a provider whose spans are encoded, and all but sent."""
    exporter = NullOtlpExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(exporter, max_queue_size=QUEUE))
    return provider, exporter
