"""The providers of traces, metrics and logs, made as the `OTEL_*` variables say.

The SDK raises ValueError on a variable it cannot use, which would end the application before it
began. Here the variable is reported instead, and the SDK's default holds. (Out of reach are the
few it reads while it is imported: OTEL_PROPAGATORS and the OTEL_SPAN_*_COUNT_LIMIT.)
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from spanloom import semconv
from spanloom.telemetry.exporters import (
    CleaningLogExporter,
    CleaningSpanExporter,
    create_exporters,
)
from spanloom.telemetry.settings import TelemetrySettings

T = TypeVar("T")
Report = Callable[[str], None]
"""Takes a sentence about a setting that cannot be used."""

_LIMIT: Final = 128
"""The SDK's default for each count of attributes, events and links."""
_QUEUE_SIZE: Final = 2_048
_BATCH_SIZE: Final = 512


class Providers(NamedTuple):
    """One provider of each signal."""

    tracer: TracerProvider
    meter: MeterProvider
    logger: LoggerProvider


def create_providers(
    service_name: str | None,
    *,
    service_version: str | None,
    settings: TelemetrySettings,
    report: Report,
) -> Providers:
    """Make providers and exporters without touching anything global."""
    # None of them registers atexit by itself: the SDK's own shutdown is not bounded.
    resource = _resource(service_name, service_version)
    meter = _meter_provider(settings, resource, report)
    return Providers(
        _tracer_provider(settings, resource, meter, report),
        meter,
        _logger_provider(settings, resource, meter, report),
    )


def _resource(service_name: str | None, service_version: str | None) -> Resource:
    """The environment's resource; our arguments fill in what it does not say."""
    said = OTELResourceDetector().detect().attributes
    wanted = {semconv.SERVICE_NAME: service_name, semconv.SERVICE_VERSION: service_version}
    return Resource.create(
        {key: value for key, value in wanted.items() if value and key not in said},
        schema_url=semconv.SCHEMA_URL,
    )


def _usable(make: Callable[..., T], report: Report, **defaults: Any) -> T:
    """What `make` makes of the environment, or with `defaults` where it cannot be used."""
    try:
        return make()
    except ValueError as exc:
        report(f"an OTEL_* variable is ignored: {exc}")
        return make(**defaults)


def _meter_provider(
    settings: TelemetrySettings, resource: Resource, report: Report
) -> MeterProvider:
    readers = [
        exporter
        if isinstance(exporter, MetricReader)
        else PeriodicExportingMetricReader(exporter, settings.metric_interval_ms)
        for exporter in create_exporters("metrics", settings, report)
    ]

    def make(**defaults: Any) -> MeterProvider:
        return MeterProvider(readers, resource=resource, shutdown_on_exit=False, **defaults)

    return _usable(make, report, exemplar_filter=TraceBasedExemplarFilter())


def _tracer_provider(
    settings: TelemetrySettings, resource: Resource, meter_provider: MeterProvider, report: Report
) -> TracerProvider:
    limits = _usable(
        SpanLimits,
        report,
        max_attributes=_LIMIT,
        max_events=_LIMIT,
        max_links=_LIMIT,
        max_span_attributes=_LIMIT,
        max_event_attributes=_LIMIT,
        max_link_attributes=_LIMIT,
        max_attribute_length=SpanLimits.UNSET,
        max_span_attribute_length=SpanLimits.UNSET,
    )
    provider = TracerProvider(
        resource=resource,
        shutdown_on_exit=False,
        span_limits=limits,
        meter_provider=meter_provider,
    )
    for exporter in create_exporters("traces", settings, report):

        def make(exporter: Any = exporter, **defaults: Any) -> BatchSpanProcessor:
            return BatchSpanProcessor(
                CleaningSpanExporter(exporter),
                schedule_delay_millis=settings.span_batch_delay_ms,
                meter_provider=meter_provider,
                **defaults,
            )

        provider.add_span_processor(
            _usable(make, report, max_queue_size=_QUEUE_SIZE, max_export_batch_size=_BATCH_SIZE)
        )
    return provider


def _logger_provider(
    settings: TelemetrySettings, resource: Resource, meter_provider: MeterProvider, report: Report
) -> LoggerProvider:
    limits = _usable(
        LogRecordLimits,
        report,
        max_attributes=_LIMIT,
        max_attribute_length=LogRecordLimits.UNSET,
        max_log_record_attributes=_LIMIT,
        max_log_record_attribute_length=LogRecordLimits.UNSET,
    )
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False, log_record_limits=limits)
    for exporter in create_exporters("logs", settings, report):

        def make(exporter: Any = exporter, **defaults: Any) -> BatchLogRecordProcessor:
            return BatchLogRecordProcessor(
                CleaningLogExporter(exporter),
                schedule_delay_millis=settings.log_batch_delay_ms,
                meter_provider=meter_provider,
                **defaults,
            )

        provider.add_log_record_processor(
            _usable(make, report, max_queue_size=_QUEUE_SIZE, max_export_batch_size=_BATCH_SIZE)
        )
    return provider
