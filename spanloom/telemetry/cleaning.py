"""What every span and log record passes before it leaves the process.

Other instrumentations write exception texts as they come. So secrets are taken out, and lengths
capped, once more here. What OTLP cannot carry becomes text, and text that UTF-8 cannot carry is
escaped: protobuf would refuse the span or record for it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status

from spanloom import semconv
from spanloom.telemetry import drops
from spanloom.telemetry.counted import counted_attributes, counted_items
from spanloom.telemetry.log_lines import plain
from spanloom.telemetry.otlp_wire import MAX_DEPTH
from spanloom.telemetry.redaction import MESSAGE_LIMIT, STACK_LIMIT, redact

_logger: Final = logging.getLogger(__name__)

_LIMITS: Final = {
    # Contrib writes query strings as they come, but for the keys of signed storage addresses.
    semconv.URL_QUERY: MESSAGE_LIMIT,
    semconv.URL_FULL: MESSAGE_LIMIT,
    semconv.EXCEPTION_MESSAGE: MESSAGE_LIMIT,
    semconv.EXCEPTION_STACKTRACE: STACK_LIMIT,
}
_INT64: Final = 1 << 63


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
    has_text = (
        bool(span.events)
        or span.status.description is not None
        or must_be_cleaned(span.attributes or {})
    )
    if not has_text and _can_be_sent(span.name) and _can_be_sent(span.attributes):
        return span
    description = span.status.description
    return ReadableSpan(
        name=plain(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_clean_attributes(span.attributes, span.dropped_attributes),
        events=counted_items([*map(_clean_event, span.events)], span.dropped_events),
        links=span._links,  # noqa: SLF001 - the property hides how many were dropped
        kind=span.kind,
        status=span.status
        if description is None
        else Status(span.status.status_code, _clean_text(description, MESSAGE_LIMIT)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def must_be_cleaned(attributes: Mapping[str, Any]) -> bool:
    """Whether a span or record has attributes that may quote secrets."""
    return (
        semconv.EXCEPTION_MESSAGE in attributes
        or semconv.EXCEPTION_STACKTRACE in attributes
        or semconv.URL_QUERY in attributes
        or "?" in str(attributes.get(semconv.URL_FULL, ""))
    )


def clean_log(record: ReadableLogRecord) -> ReadableLogRecord:
    """Redact and cap the exception texts of a record, which is changed."""
    # The processor has made a copy of the record for the exporter: it is ours to change.
    log = record.log_record
    attributes = log.attributes
    if attributes and (must_be_cleaned(attributes) or not _can_be_sent(attributes)):
        log.attributes = _clean_attributes(attributes, record.dropped_attributes)
    if not _can_be_sent(log.body):
        log.body = plain(log.body)
    if not _can_be_sent(log.severity_text):
        log.severity_text = plain(log.severity_text)
    if not _can_be_sent(log.event_name):
        log.event_name = plain(log.event_name)
    return record


def _clean_event(event: Any) -> Event:
    attributes = _clean_attributes(event.attributes, event.dropped_attributes)
    return Event(plain(event.name), attributes, event.timestamp)


def _clean_attributes(attributes: Mapping[str, Any] | None, dropped: int) -> Mapping[str, Any]:
    cleaned: dict[str, Any] = {}
    for name, value in (attributes or {}).items():
        key = name if _is_utf8(name) else plain(name)
        limit = _LIMITS.get(key)
        cleaned[key] = _sendable(value) if limit is None else _without_secrets(value, limit)
    return counted_attributes(cleaned, dropped) if dropped else cleaned


def _without_secrets(value: Any, limit: int, depth: int = 1) -> Any:
    """Redact a text, and those in lists and mappings, which OTLP can carry as well."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    elif depth >= MAX_DEPTH and isinstance(value, Mapping | Sequence):
        value = str(plain(value))
    if isinstance(value, str):
        return _clean_text(value, limit)
    if isinstance(value, Mapping):
        return {
            plain(str(key)): _without_secrets(one, limit, depth + 1) for key, one in value.items()
        }
    if isinstance(value, Sequence):
        return [_without_secrets(one, limit, depth + 1) for one in value]
    return _sendable(value)


def _sendable(value: Any) -> Any:
    """Return what OTLP can carry as it is, all else as text."""
    return value if _can_be_sent(value, 1) else plain(value)


def _clean_text(text: str, limit: int) -> str:
    return redact(text, limit).encode("utf-8", "backslashreplace").decode()


def _can_be_sent(value: Any, depth: int = 0) -> bool:
    """Whether OTLP can carry a value."""
    if isinstance(value, str):
        return _is_utf8(value)
    if value is None or isinstance(value, bool | float | bytes):
        return True
    if isinstance(value, int):
        return -_INT64 <= value < _INT64
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return all(
            _is_utf8(str(key)) and _can_be_sent(one, depth + 1) for key, one in value.items()
        )
    is_list = depth < MAX_DEPTH and isinstance(value, Sequence)
    return is_list and all(_can_be_sent(one, depth + 1) for one in value)


def _is_utf8(text: str) -> bool:
    if text.isascii():  # the usual case, and quick
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
