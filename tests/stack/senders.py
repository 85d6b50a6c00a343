"""What sends to the Collector in these tests: the OpenTelemetry SDK, with exact books.

Every span id and log line is written down before it leaves, so that a test compares sets and not
counts. Times may be given, so that a slow trace needs no waiting.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, format_span_id, format_trace_id
from opentelemetry.trace import set_span_in_context as within

MS = 1_000_000
# What is not acknowledged in this time the SDK drops; the books have it already.
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class SentTrace:
    """The ids of one trace."""

    trace_id: str
    span_ids: frozenset[str]


@dataclass
class Sender:
    """Traces, logs and metrics of one service to one OTLP/HTTP address."""

    url: str
    service: str
    span_ids: set[str] = field(default_factory=set)
    traces: list[SentTrace] = field(default_factory=list)
    lines: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        resource = Resource.create({"service.name": self.service})
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(f"{self.url}/v1/traces", timeout=PATIENCE_S),
                max_queue_size=200_000,
                schedule_delay_millis=200,
            )
        )
        self._logs = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self._logs.add_log_record_processor(
            BatchLogRecordProcessor(
                OTLPLogExporter(f"{self.url}/v1/logs", timeout=PATIENCE_S),
                max_queue_size=200_000,
                schedule_delay_millis=200,
            )
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{self.url}/v1/metrics", timeout=PATIENCE_S),
            export_interval_millis=500,
        )
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self.tracer = self._spans.get_tracer("tests.stack")
        self.meter = self._metrics.get_meter("tests.stack")
        self.logger = self._logs.get_logger("tests.stack")

    def trace(
        self,
        *children: str,
        root: str = "POST /chat",
        ms: float = 40,
        error: bool = False,
        **attributes: Any,
    ) -> SentTrace:
        """A SERVER span with children, which ended just now after `ms`; attributes on the root.

        In a name, `__` stands for a dot.
        """
        end = time.time_ns()
        start = end - int(ms * MS)
        outer = self.tracer.start_span(
            root, kind=SpanKind.SERVER, attributes=_dotted(attributes), start_time=start
        )
        spans: list[Span] = [outer]
        for name in children:
            inner = self.tracer.start_span(name, context=within(outer), start_time=start + MS)
            inner.end(end - MS)
            spans.append(inner)
        if error:
            outer.set_status(StatusCode.ERROR, "it failed")
        outer.end(end)
        ids = frozenset(format_span_id(span.get_span_context().span_id) for span in spans)
        sent = SentTrace(format_trace_id(outer.get_span_context().trace_id), ids)
        self.span_ids |= ids
        self.traces.append(sent)
        return sent

    def log(self, body: str, **attributes: Any) -> None:
        """One log line; `__` in a name stands for a dot."""
        self.lines.add(body)
        self.logger.emit(
            body=body,
            timestamp=time.time_ns(),
            severity_text="INFO",
            attributes=_dotted(attributes),
        )

    def flush(self) -> None:
        """Return when all has been offered to the Collector, refused or not."""
        self._spans.force_flush()
        self._logs.force_flush()
        self._metrics.force_flush()

    def close(self) -> None:
        """Flush and end the threads."""
        for provider in (self._spans, self._logs, self._metrics):
            provider.shutdown()


@contextmanager
def sender(url: str, service: str) -> Iterator[Sender]:
    """A sender that is closed at the end."""
    made = Sender(url, service)
    try:
        yield made
    finally:
        made.close()


def _dotted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in attributes.items()}
