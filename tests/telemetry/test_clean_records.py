import logging
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits, ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.resources import Resource

from spanloom.telemetry import clean_records, get_logger, logs, step
from spanloom.telemetry.log_capture import logs_sent_to
from spanloom.telemetry.testing import capture_spans

LINE = {
    "text": "文",
    "number": 7,
    "share": 0.5,
    "yes": True,
    "nothing": None,
    "list": [1, "a", {"deep": [None, 2.5]}],
    "map": {"a": {"b": ("c",)}},
    "huge": 1 << 80,
    "surrogate": "\ud800",
    "object": ValueError("x"),
}


def emitted(limits: LogRecordLimits | None = None, **fields: Any) -> list[ReadableLogRecord]:
    """What two processors get of one line."""
    provider = LoggerProvider(
        Resource({"service.name": "s"}), shutdown_on_exit=False, log_record_limits=limits
    )
    exporters = [InMemoryLogRecordExporter(), InMemoryLogRecordExporter()]
    provider.add_log_record_processor(BatchLogRecordProcessor(exporters[0]))
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporters[1]))
    with capture_spans(), step("work"), logs_sent_to(provider):
        get_logger("l").warning("said", **fields)
    provider.shutdown()
    found = [record for one in exporters for record in one.get_finished_logs()]
    return [one for one in found if one.log_record.body == "said"]


def without_times(record: ReadableLogRecord) -> str:
    copy = encode_logs([record]).resource_logs[0]
    inner = copy.scope_logs[0].log_records[0]
    for name in ("time_unix_nano", "observed_time_unix_nano", "trace_id", "span_id"):
        assert getattr(inner, name)
        inner.ClearField(name)
    return str(copy)


def test_what_is_sent_is_what_the_sdk_would_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, for all processors, whatever values a line has."""
    ours = emitted(**LINE)
    monkeypatch.setattr(logs, "as_sdk_record", lambda *_: None)
    theirs = emitted(**LINE)

    assert len(ours) == len(theirs) == 2
    assert {without_times(one) for one in ours} == {without_times(one) for one in theirs}
    assert any(isinstance(one.log_record.attributes, dict) for one in ours)


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")
def test_limits_are_kept() -> None:
    """A limit on the number or the length of attributes is the SDK's to apply."""
    for found in emitted(LogRecordLimits(max_log_record_attributes=3), **LINE):
        assert found.dropped_attributes == len(LINE) - 3
        assert len(found.log_record.attributes or ()) == 3
    for found in emitted(LogRecordLimits(max_log_record_attribute_length=2), text="abcd"):
        assert dict(found.log_record.attributes or {}) == {"text": "ab"}


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")
def test_keys_that_are_no_text_are_left_to_the_sdk() -> None:
    """`extra` may hold any; one of them must not cost the batch."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    with logs_sent_to(provider):
        logging.getLogger("odd").warning("said", extra={7: "seven", "": "none", "a": 1})  # type: ignore[dict-item]
    (record,) = exporter.get_finished_logs()
    assert dict(record.log_record.attributes or {}) == {"7": "seven", "a": 1}
    encode_logs([record])


def test_somebody_elses_logger_gets_the_record() -> None:
    """Only the SDK's own logger is known to take its own record."""

    class Logger:
        _log_record_limits = LogRecordLimits()

    assert clean_records.as_sdk_record(object(), Logger()) is None  # type: ignore[arg-type]
