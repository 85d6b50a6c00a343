"""Exporters: which ones the settings ask for, and what every span and log passes before them.

Other instrumentations write exception texts as they come. So secrets are taken out, and lengths
capped, once more here, in the export thread. Text that UTF-8 cannot carry is escaped: protobuf
would refuse the whole batch for it.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status

from spanloom import semconv
from spanloom.telemetry import drops
from spanloom.telemetry.log_lines import plain
from spanloom.telemetry.redaction import MESSAGE_LIMIT, STACK_LIMIT, redact
from spanloom.telemetry.settings import Signal, TelemetrySettings

_logger: Final = logging.getLogger(__name__)

_LIMITS: Final = {
    # Contrib writes query strings as they come, but for the keys of signed storage addresses.
    semconv.URL_QUERY: MESSAGE_LIMIT,
    semconv.URL_FULL: MESSAGE_LIMIT,
    semconv.EXCEPTION_MESSAGE: MESSAGE_LIMIT,
    semconv.EXCEPTION_STACKTRACE: STACK_LIMIT,
}


def create_exporters(
    signal: Signal, settings: TelemetrySettings, report: Callable[[str], None]
) -> list[Any]:
    """Make the exporters of one signal; one that cannot be made is reported and left out."""
    made: list[Any] = []
    if not settings.enabled:
        return made
    for name in settings.exporters[signal]:
        if name == "none":
            continue
        try:
            made.append(_create(signal, name, settings))
        except Exception as exc:  # noqa: BLE001 - a wrong setting must not stop the application
            report(f"no {signal} are exported by {name}: {exc}")
    return made


def create_otlp_exporter(signal: Signal, settings: TelemetrySettings, **arguments: Any) -> Any:
    """Make one more exporter to the OTLP endpoint of a signal; None where there is none."""
    for name in settings.exporters[signal] if settings.enabled else ():
        if is_otlp(name):
            try:
                return _create(signal, name, settings, **arguments)
            except Exception:
                _logger.debug("no exporter for %s", signal, exc_info=True)
    return None


def is_otlp(name: str) -> bool:
    """Whether an exporter's name means OTLP in one of its protocols."""
    return name in {"otlp", "otlp_proto_http", "otlp_proto_grpc"}


def _create(signal: Signal, name: str, settings: TelemetrySettings, **arguments: Any) -> Any:
    if name == "otlp":
        name = "otlp_proto_grpc" if settings.protocols[signal] == "grpc" else "otlp_proto_http"
    if name.startswith("otlp_proto_") and not _endpoint_is_set(signal):
        arguments |= (
            {"endpoint": settings.grpc_endpoint, "insecure": True}
            if name == "otlp_proto_grpc"
            else {"endpoint": f"{settings.endpoint.rstrip('/')}/v1/{signal}"}
        )
    if name == "otlp_proto_http" and not _makes_its_session(signal):
        from spanloom.telemetry.otlp_session import OtlpSession  # noqa: PLC0415 - with the exporter

        arguments["session"] = OtlpSession()
    return _load(signal, name)(**arguments)


def _endpoint_is_set(signal: Signal) -> bool:
    return any(
        os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", f"{signal.upper()}_")
    )


def _makes_its_session(signal: Signal) -> bool:
    """Whether the exporter gets one from an installed provider of credentials."""
    return any(
        os.environ.get(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{kind}CREDENTIAL_PROVIDER")
        for kind in ("", f"{signal.upper()}_")
    )


def _load(signal: Signal, name: str) -> Any:
    for entry_point in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        return entry_point.load()
    package = name.replace("_", "-")
    raise LookupError(f"not installed, try: pip install opentelemetry-exporter-{package}")


class CleaningSpanExporter(SpanExporter):
    """Redacts, caps and escapes what needs it, then hands the spans on."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export one batch."""
        result = self._exporter.export([clean_span(span) for span in spans])
        if result is not SpanExportResult.SUCCESS:
            drops.record_drop("traces", drops.EXPORT_FAILED, len(spans))
        return result

    def shutdown(self) -> None:
        """Close the exporter inside."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter inside."""
        return self._exporter.force_flush(timeout_millis)


class CleaningLogExporter(LogRecordExporter):
    """Redacts and caps exception texts of log records, then hands them on."""

    def __init__(self, exporter: LogRecordExporter) -> None:
        self._exporter = exporter

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Export one batch."""
        result = self._exporter.export([clean_log(record) for record in batch])
        if result is not LogRecordExportResult.SUCCESS:
            drops.record_drop("logs", drops.EXPORT_FAILED, len(batch))
        return result

    def shutdown(self) -> None:
        """Close the exporter inside."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        """Flush the exporter inside."""
        return self._exporter.force_flush(timeout_millis)


def clean_span(span: ReadableSpan) -> ReadableSpan:
    """Return the span, or a copy in which secrets are gone, texts capped and all UTF-8."""
    try:
        return _cleaned(span)
    except Exception:  # one odd span must not cost the batch, nor tell what might be a secret
        _logger.debug("could not clean a span", exc_info=True)
        return ReadableSpan(
            name="span that could not be redacted",
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            links=[Link(link.context) for link in span.links],
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


def _cleaned(span: ReadableSpan) -> ReadableSpan:
    attributes = span.attributes or {}
    has_text = (
        bool(span.events)
        or span.status.description is not None
        or semconv.URL_QUERY in attributes
        or "?" in str(attributes.get(semconv.URL_FULL, ""))
    )
    if not has_text and _is_utf8(span.name) and _are_utf8(span.attributes):
        return span
    description = span.status.description
    return ReadableSpan(
        name=plain(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_clean_attributes(span.attributes),
        events=[
            Event(event.name, _clean_attributes(event.attributes), event.timestamp)
            for event in span.events
        ],
        links=span.links,
        kind=span.kind,
        status=span.status
        if description is None
        else Status(span.status.status_code, _clean_text(description, MESSAGE_LIMIT)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def clean_log(record: ReadableLogRecord) -> ReadableLogRecord:
    """Redact and cap the exception texts of a record, which is changed."""
    attributes = record.log_record.attributes
    if not attributes or semconv.EXCEPTION_MESSAGE not in attributes:
        return record
    # The processor has made a copy of the record for the exporter: it is ours to change.
    record.log_record.attributes = _clean_attributes(attributes)
    return record


def _clean_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    cleaned: dict[str, Any] = {}
    for key, value in (attributes or {}).items():
        limit = _LIMITS.get(key)
        if limit is not None and isinstance(value, str):
            cleaned[key] = _clean_text(value, limit)
        elif _is_utf8(value):
            cleaned[key] = value
        else:
            cleaned[key] = plain(value)
    return cleaned


def _clean_text(text: str, limit: int) -> str:
    return redact(text, limit).encode("utf-8", "backslashreplace").decode()


def _are_utf8(attributes: Mapping[str, Any] | None) -> bool:
    return attributes is None or all(_is_utf8(value) for value in attributes.values())


def _is_utf8(value: Any) -> bool:
    """Whether a value holds no text that cannot be encoded; ASCII, the usual case, is quick."""
    if isinstance(value, str):
        if value.isascii():
            return True
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, Mapping):
        return all(_is_utf8(item) for item in value.values())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return all(_is_utf8(item) for item in value)
    return True
