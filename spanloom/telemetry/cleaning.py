"""What every span and log record passes before it leaves the process.

Other instrumentations write exception texts as they come. So secrets are taken out, and lengths
capped, once more here. Text that UTF-8 cannot carry is escaped: protobuf would refuse the whole
batch for it.
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
from spanloom.telemetry.log_lines import plain
from spanloom.telemetry.redaction import MESSAGE_LIMIT, STACK_LIMIT, redact

_logger: Final = logging.getLogger(__name__)

_LIMITS: Final = {
    # Contrib writes query strings as they come, but for the keys of signed storage addresses.
    semconv.URL_QUERY: MESSAGE_LIMIT,
    semconv.URL_FULL: MESSAGE_LIMIT,
    semconv.EXCEPTION_MESSAGE: MESSAGE_LIMIT,
    semconv.EXCEPTION_STACKTRACE: STACK_LIMIT,
}


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
