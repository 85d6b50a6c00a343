"""OTLP sent by hand: what no well-behaved service would send."""

import secrets
import time

import httpx2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.stack.programs import Collector


def old_line(otlp: Collector) -> None:
    """A log line of last year, which Loki refuses for good."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.time_unix_nano = int((time.time() - 365 * 86_400) * 1e9)
    record.body.string_value = "去年的一行"
    _post(otlp, "logs", request.SerializeToString())


def spans(otlp: Collector, count: int = 10, *, note_bytes: int = 0) -> None:
    """A request with traces of one span each, with an attribute of that size on it."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(
        KeyValue(key="service.name", value=AnyValue(string_value="by-hand"))
    )
    made = resource.scope_spans.add().spans
    for _ in range(count):
        span = made.add(name="一步", trace_id=secrets.token_bytes(16))
        span.span_id = secrets.token_bytes(8)
        span.start_time_unix_nano = span.end_time_unix_nano = time.time_ns()
        note = AnyValue(string_value="x" * note_bytes)
        span.attributes.append(KeyValue(key="note", value=note))
    _post(otlp, "traces", request.SerializeToString())


def _post(otlp: Collector, signal: str, body: bytes) -> None:
    answer = httpx2.post(
        f"{otlp.http}/v1/{signal}",
        content=body,
        headers={"Content-Type": "application/x-protobuf"},
        timeout=30,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
