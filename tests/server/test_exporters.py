"""The OpenTelemetry SDK's own exporters reach the store through both transports."""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import format_trace_id

from tests.server.running import WAIT_S, Client

RESOURCE = Resource.create({"service.name": "代理"})

EXPORTERS: dict[str, Callable[[Client], Any]] = {
    "http": lambda server: HttpSpanExporter(f"{server.addresses.otlp_http}/v1/traces"),
    "http-gzip": lambda server: HttpSpanExporter(
        f"{server.addresses.otlp_http}/v1/traces", compression=Compression.Gzip
    ),
    "grpc": lambda server: GrpcSpanExporter(server.addresses.otlp_grpc, insecure=True),
}


@pytest.mark.parametrize("transport", EXPORTERS)
def test_spans_of_the_sdk_arrive_with_their_tree(server: Client, transport: str) -> None:
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(EXPORTERS[transport](server)))
    tracer = provider.get_tracer("test", "1.0")

    with (
        tracer.start_as_current_span("outer") as outer,
        tracer.start_as_current_span("inner", attributes={"问题": "什么是 KV 缓存"}),
    ):
        pass
    provider.shutdown()

    trace_id = format_trace_id(outer.get_span_context().trace_id)
    trace = server.json(f"/api/traces/{trace_id}")["data"][0]
    spans = {span["operationName"]: span for span in trace["spans"]}
    assert spans["outer"]["spanID"] == spans["inner"]["references"][0]["spanID"]
    assert trace["processes"]["p1"]["serviceName"] == "代理"
    assert server.json("/api/services")["data"] == ["代理"]


def test_logs_and_metrics_of_the_sdk_arrive(server: Client) -> None:
    logs = LoggerProvider(resource=RESOURCE)
    exporter = OTLPLogExporter(f"{server.addresses.otlp_http}/v1/logs")
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{server.addresses.otlp_http}/v1/metrics"), 60_000
    )
    metrics = MeterProvider([reader], resource=RESOURCE)
    spans = TracerProvider(resource=RESOURCE)

    with spans.get_tracer("test").start_as_current_span("outer") as outer:
        logs.get_logger("test").emit(body="你好", attributes={"n": 1})
        metrics.get_meter("test").create_histogram("gen_ai.latency", "s").record(0.25)
    assert metrics.force_flush(WAIT_S * 1000)
    for provider in (logs, metrics):
        provider.shutdown()

    trace_id = format_trace_id(outer.get_span_context().trace_id)
    found = server.json(f"/api/spanloom/traces/{trace_id}/logs")
    record = found["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert record["body"] == {"stringValue": "你好"}
    assert server.json("/api/spanloom/metrics", service="代理")["metrics"] == ["gen_ai.latency"]
