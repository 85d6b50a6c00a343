"""The providers of traces, metrics and logs, made as the `OTEL_*` variables say.

The SDK raises ValueError on a variable it cannot use, which would end the application before it
began. Here the variable is reported instead, and the SDK's default holds. (Out of reach are the
few it reads while it is imported: OTEL_PROPAGATORS and the OTEL_SPAN_*_COUNT_LIMIT.)
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits, LogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider

from spanloom import semconv
from spanloom.telemetry import drops
from spanloom.telemetry.cleaning import CleaningLogExporter, CleaningSpanExporter
from spanloom.telemetry.drops import CountingLogProcessor, CountingSpanProcessor
from spanloom.telemetry.exporters import (
    create_exporters,
    create_otlp_exporter,
    is_otlp,
)
from spanloom.telemetry.hashed_resource import HashedResource
from spanloom.telemetry.otlp_export import EncodingLogProcessor, EncodingSpanProcessor
from spanloom.telemetry.reaped import Claims
from spanloom.telemetry.sampling import InheritingSampler
from spanloom.telemetry.settings import Signal, TelemetrySettings

if TYPE_CHECKING:
    from spanloom.telemetry.spool import Spool

T = TypeVar("T")
Report = Callable[[str], None]
"""Takes a sentence about a setting that cannot be used."""

_LIMIT: Final = 128
"""The SDK's default for each count of attributes, events and links."""
_QUEUE: Final = {"max_queue_size": 2_048, "max_export_batch_size": 512}
"""The SDK's defaults."""


class Providers(NamedTuple):
    """One provider of each signal."""

    tracer: TracerProvider
    meter: MeterProvider
    logger: LoggerProvider
    spool: "Spool | None"
    claims: Claims | None


def create_providers(
    service_name: str | None,
    *,
    service_version: str | None,
    settings: TelemetrySettings,
    report: Report,
) -> Providers:
    """Make providers and exporters without touching anything global."""
    if settings.enabled:
        drops.begin_at_zero()
    # None of them registers atexit by itself: the SDK's own shutdown is not bounded.
    resource = _resource(service_name, service_version)
    meter = _meter_provider(settings, resource, report)
    claims = None
    is_watched = settings.inflight and create_otlp_exporter("logs", settings) is not None
    if settings.reaped_after_s is not None and is_watched:
        claims = Claims(settings.reaped_after_s)
    spool = _open_spool(settings, report, claims)
    return Providers(
        _tracer_provider(settings, resource, meter, spool, report, claims=claims),
        meter,
        _logger_provider(settings, resource, meter, spool, report),
        spool,
        claims,
    )


def _open_spool(
    settings: TelemetrySettings, report: Report, claims: Claims | None
) -> "Spool | None":
    if settings.spool_dir is None or not settings.enabled:
        return None
    try:
        from spanloom.telemetry.spool import Spool  # noqa: PLC0415 - needs flock, so Unix

        return Spool(
            settings.spool_dir,
            max_bytes=settings.spool_max_bytes,
            fsync=settings.spool_fsync,
            claims=claims,
        )
    except (ImportError, OSError) as exc:
        report(f"SPANLOOM_SPOOL_DIR={str(settings.spool_dir)!r} is ignored: {exc}")
        return None


def _spooled(
    signal: Signal, settings: TelemetrySettings, spool: "Spool | None", delay_ms: float
) -> tuple[bool, TelemetrySettings]:
    """Give a signal's OTLP exporter to the spool; whether it took it, and what else is wanted."""
    names = list(settings.exporters[signal])
    otlp = next((name for name in names if is_otlp(name)), None)
    if spool is None or otlp is None or create_otlp_exporter(signal, settings) is None:
        return False, settings
    spool.open(signal, lambda: create_otlp_exporter(signal, settings), delay_ms / 1000)
    names.remove(otlp)
    exporters = {**settings.exporters, signal: tuple(names)}
    return True, dataclasses.replace(settings, exporters=exporters)


def _resource(service_name: str | None, service_version: str | None) -> Resource:
    """The environment's resource; our arguments fill in what it does not say."""
    said = OTELResourceDetector().detect().attributes
    wanted = {semconv.SERVICE_NAME: service_name, semconv.SERVICE_VERSION: service_version}
    return HashedResource(
        Resource.create(
            {key: value for key, value in wanted.items() if value and key not in said},
            schema_url=semconv.SCHEMA_URL,
        )
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
    settings: TelemetrySettings,
    resource: Resource,
    meter_provider: MeterProvider,
    spool: "Spool | None",
    report: Report,
    *,
    claims: Claims | None,
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
    provider.sampler = InheritingSampler.before(provider.sampler)  # as the variables say
    is_spooled, settings = _spooled("traces", settings, spool, settings.span_batch_delay_ms)
    if is_spooled and spool is not None:
        provider.add_span_processor(spool.span_processor())
    for exporter, name in _exporters("traces", settings, report):
        if is_otlp(name):
            queue: Callable[..., SpanProcessor] = partial(
                EncodingSpanProcessor, exporter, claims=claims
            )
        else:  # what is printed or goes elsewhere is no business of the reaper's
            queue = partial(CountingSpanProcessor, CleaningSpanExporter(exporter))
        make = partial(
            queue,
            schedule_delay_millis=settings.span_batch_delay_ms,
            meter_provider=meter_provider,
        )
        provider.add_span_processor(_usable(make, report, **_QUEUE))
    return provider


def _logger_provider(
    settings: TelemetrySettings,
    resource: Resource,
    meter_provider: MeterProvider,
    spool: "Spool | None",
    report: Report,
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
    is_spooled, settings = _spooled("logs", settings, spool, settings.log_batch_delay_ms)
    if is_spooled and spool is not None:
        provider.add_log_record_processor(spool.log_processor())
    for exporter, name in _exporters("logs", settings, report):
        queue: Callable[..., LogRecordProcessor] = (
            partial(EncodingLogProcessor, exporter)
            if is_otlp(name)
            else partial(CountingLogProcessor, CleaningLogExporter(exporter))
        )
        make = partial(
            queue,
            schedule_delay_millis=settings.log_batch_delay_ms,
            meter_provider=meter_provider,
        )
        provider.add_log_record_processor(_usable(make, report, **_QUEUE))
    return provider


def _exporters(
    signal: Signal, settings: TelemetrySettings, report: Report
) -> Iterator[tuple[Any, str]]:
    """Make the exporters of a signal, each with the name it was asked for by."""
    for name in settings.exporters[signal]:
        one = dataclasses.replace(settings, exporters={**settings.exporters, signal: (name,)})
        for exporter in create_exporters(signal, one, report):
            yield exporter, name
