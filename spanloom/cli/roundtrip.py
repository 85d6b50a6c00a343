"""One real span, sent by OTLP as any application would, and asked for until it is there."""

import logging
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import format_trace_id

from spanloom import semconv
from spanloom.errors import SpanloomError
from spanloom.sources.http import HttpReader

SERVICE_NAME = "spanloom-doctor"
_EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.http"
_SEND_TIMEOUT_S = 3.0
_POLL_S = 0.1


class NotSentError(SpanloomError):
    """The span did not get to the OTLP endpoint."""


def send_span(otlp_endpoint: str) -> str:
    """Send one span of `spanloom-doctor`; its trace id. Raises NotSentError with the reason.

    The provider is not made the global one, and no processor is in between: the exporter's own
    answer counts.
    """
    provider = TracerProvider(
        resource=Resource.create({semconv.SERVICE_NAME: SERVICE_NAME}),
        sampler=sampling.ALWAYS_ON,
        shutdown_on_exit=False,
    )
    span = provider.get_tracer("spanloom.cli.doctor").start_span("doctor test span")
    span.end()
    if not isinstance(span, ReadableSpan):
        raise NotSentError("OTEL_SDK_DISABLED switches tracing off in this environment")
    messages = _Messages()
    logger = logging.getLogger(_EXPORTER_LOGGER)
    propagate = logger.propagate
    logger.addHandler(messages)
    logger.propagate = False
    exporter = OTLPSpanExporter(_traces_url(otlp_endpoint), timeout=_SEND_TIMEOUT_S)
    try:
        result = exporter.export([span])
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK left it out
        logger.removeHandler(messages)
        logger.propagate = propagate
    if result is not SpanExportResult.SUCCESS:
        raise NotSentError(messages.last or "the exporter gave no reason")
    return format_trace_id(span.get_span_context().trace_id)


def find_span(url: str, trace_id: str, timeout_s: float) -> bool:
    """Whether the server has the trace, asked again and again until the time is over."""
    reader = HttpReader(url, timeout_s=timeout_s)
    until = time.monotonic() + timeout_s
    try:
        while reader.get_trace(trace_id) is None:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        return True
    finally:
        reader.close()


def _traces_url(otlp_endpoint: str) -> str:
    # As the exporter does with OTEL_EXPORTER_OTLP_ENDPOINT; its argument is taken as it is.
    return otlp_endpoint.rstrip("/") + "/v1/traces"


class _Messages(logging.Handler):
    """Keeps the last thing the exporter complained about."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()
