"""From the end of a span to a real receiver, by HTTP, gRPC or somebody's own exporter."""

import http.server
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from spanloom.telemetry import otlp_export
from spanloom.telemetry.otlp_encoding import encode_span
from spanloom.telemetry.otlp_export import (
    EncodedExporter,
    EncodingLogProcessor,
    EncodingSpanProcessor,
)
from spanloom.telemetry.spool import Spool
from tests.free_ports import free_port
from tests.telemetry.live import Receiver, Script, attributes, wait_for

SENDS = """
import logging
from spanloom.telemetry import setup, step
telemetry = setup("agent-api")
with step("节点", question="你好"):
    logging.getLogger("shop").warning("卖完了")
try:
    with step("fails"):
        raise ValueError("no, sk-proj-abcdefghijklmnop")
except ValueError:
    pass
print(telemetry.force_flush(30))
"""
LONG = 60_000


class GrpcReceiver(
    trace_service_pb2_grpc.TraceServiceServicer, logs_service_pb2_grpc.LogsServiceServicer
):
    """Takes OTLP over gRPC."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.logs: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.schemas: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        Logs(self).add_to(self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            self.resources.append(attributes(resource.resource))
            self.schemas.append(resource.schema_url)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(0)


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self, receiver: GrpcReceiver) -> None:
        self._receiver = receiver

    def add_to(self, server: grpc.Server) -> None:
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(self, server)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                self._receiver.logs += scope.log_records
        return logs_service_pb2.ExportLogsServiceResponse()


@pytest.fixture
def grpc_receiver() -> Iterator[GrpcReceiver]:
    made = GrpcReceiver()
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def failed(signal: str, reason: str = "export_failed") -> float:
    labels = {"signal": signal, "reason": reason}
    return REGISTRY.get_sample_value("spanloom_telemetry_dropped_total", labels) or 0.0


@pytest.mark.parametrize("is_spooled", [False, True], ids=["memory", "spool"])
def test_everything_goes_over_grpc(
    grpc_receiver: GrpcReceiver, tmp_path: Path, is_spooled: bool
) -> None:
    spool = {"SPANLOOM_SPOOL_DIR": str(tmp_path / "spool")} if is_spooled else {}
    done = Script().run(
        SENDS,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT=grpc_receiver.url,
        OTEL_METRICS_EXPORTER="none",
        SPANLOOM_LOG_STEPS="false",
        **spool,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"
    assert [span.name for span in grpc_receiver.spans] == ["节点", "fails"]
    good, bad = grpc_receiver.spans
    assert attributes(good)["question"] == "你好"
    (event,) = bad.events
    assert attributes(event)["exception.type"] == "ValueError"
    assert b"sk-proj" not in bad.SerializeToString()
    assert "卖完了" in [record.body.string_value for record in grpc_receiver.logs]
    assert grpc_receiver.resources[0]["service.name"] == "agent-api"


def test_an_exporter_of_somebody_else_gets_the_sdk_s_objects() -> None:
    spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
    provider, loggers = TracerProvider(shutdown_on_exit=False), LoggerProvider()
    provider.add_span_processor(EncodingSpanProcessor(spans))
    loggers.add_log_record_processor(EncodingLogProcessor(logs))
    with provider.get_tracer("mine", "2").start_as_current_span(
        "节点", attributes={"n": 1}
    ) as span:
        record = LogRecord(
            timestamp=1, body="行", severity_number=SeverityNumber.INFO, attributes={"k": "v"}
        )
        loggers.get_logger("mine").emit(record)
    assert provider.force_flush()
    assert loggers.force_flush()

    (found,) = spans.get_finished_spans()
    assert (found.name, dict(found.attributes or {})) == ("节点", {"n": 1})
    context = span.get_span_context()
    assert found.context is not None
    assert found.context[:2] == (context.trace_id, context.span_id)
    assert found.instrumentation_scope is not None
    assert found.instrumentation_scope.name == "mine"
    (line,) = logs.get_finished_logs()
    assert line.log_record.body == "行"
    assert line.log_record.trace_id == context.trace_id
    provider.shutdown()
    loggers.shutdown()


def test_what_waits_to_be_sent_keeps_no_span_alive(receiver: Receiver) -> None:
    """Only bytes wait: of a span, nothing is left for the garbage collector to look at."""
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
    provider = TracerProvider(shutdown_on_exit=False)
    processor = EncodingSpanProcessor(exporter, schedule_delay_millis=3_600_000)
    provider.add_span_processor(processor)
    span: Any = provider.get_tracer("t").start_span("s", attributes={"k": "v"})
    span.end()
    gone = weakref.ref(span)
    del span

    assert gone() is None
    assert provider.force_flush()
    assert [found.name for found in receiver.spans] == ["s"]
    provider.shutdown()


def test_a_batch_that_is_too_large_goes_in_pieces(receiver: Receiver) -> None:
    """With content captured, 512 spans may be more than a Collector takes at once."""
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
    provider.add_span_processor(EncodingSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    tracer = provider.get_tracer("t")
    for number in range(100):
        tracer.start_span(f"{number}", attributes={"content": "x" * LONG}).end()
    assert provider.force_flush()

    assert [span.name for span in receiver.spans] == [f"{number}" for number in range(100)]
    sizes = [int(headers["content-length"]) for headers in receiver.requests]
    assert len(sizes) == 3
    assert max(sizes) < otlp_export.BATCH_BYTES + LONG
    provider.shutdown()


def test_a_span_larger_than_a_piece_is_sent_by_itself(receiver: Receiver) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
    provider.add_span_processor(EncodingSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    tracer = provider.get_tracer("t")
    for size in (1, otlp_export.BATCH_BYTES, 1):
        tracer.start_span("s", attributes={"content": "x" * size}).end()
    assert provider.force_flush()

    assert len(receiver.spans) == len(receiver.requests) == 3
    provider.shutdown()


def test_what_nobody_took_is_counted() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    # a port of this process's own: one that the kernel gave back, another test's receiver may get
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{free_port()}/v1/traces", timeout=1)
    provider.add_span_processor(EncodingSpanProcessor(exporter))
    before = failed("traces")
    for _ in range(3):
        provider.get_tracer("t").start_span("s").end()
    provider.force_flush()

    assert failed("traces") == before + 3
    provider.shutdown()


def test_one_that_cannot_be_encoded_costs_itself_alone(receiver: Receiver) -> None:
    """Seconds given as a start are an easy mistake: they must not cost 511 other spans."""
    provider, loggers = TracerProvider(shutdown_on_exit=False), LoggerProvider()
    provider.add_span_processor(
        EncodingSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces"))
    )
    loggers.add_log_record_processor(
        EncodingLogProcessor(OTLPLogExporter(f"{receiver.url}/v1/logs"))
    )
    tracer, logger = provider.get_tracer("t"), loggers.get_logger("l")
    before = failed("traces", "invalid"), failed("logs", "invalid")
    wrong: Any = time.time()
    for number, moment in enumerate([None, wrong, None]):
        tracer.start_span(f"{number}", start_time=moment).end()
        logger.emit(LogRecord(timestamp=moment, body=f"{number}"))
    assert provider.force_flush()
    assert loggers.force_flush()

    assert [span.name for span in receiver.spans] == ["0", "2"]
    assert [record.body.string_value for record in receiver.logs] == ["0", "2"]
    assert (failed("traces", "invalid"), failed("logs", "invalid")) == (
        before[0] + 1,
        before[1] + 1,
    )
    provider.shutdown()
    loggers.shutdown()


class Breaks(InMemorySpanExporter):
    """Raises at its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = True

    def export(self, spans: Any) -> SpanExportResult:
        """Take all but the first batch."""
        if self.is_broken:
            self.is_broken = False
            raise OSError("broken")
        return super().export(spans)


def test_an_exporter_that_raises_loses_one_piece_which_is_counted() -> None:
    exporter = Breaks()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(EncodingSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    before = failed("traces")
    for name in ("first", "second"):
        attributes = {"content": "x" * otlp_export.BATCH_BYTES}
        provider.get_tracer("t").start_span(name, attributes=attributes).end()
    provider.force_flush()

    assert [span.name for span in exporter.get_finished_spans()] == ["second"]
    assert failed("traces") == before + 1
    provider.shutdown()


@pytest.mark.parametrize("status", [200, 400])
def test_the_sdk_s_own_metrics_are_as_without_us(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    span: Any = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("s")
    span.end()
    readable = span._readable_span()

    def measured(export: Callable[[OTLPSpanExporter], Any]) -> list[Any]:
        reader = InMemoryMetricReader()
        meters = MeterProvider([reader], shutdown_on_exit=False)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        export(OTLPSpanExporter(url, meter_provider=meters))
        data = reader.get_metrics_data()
        assert data is not None
        return [
            (
                metric.name,
                getattr(point, "value", None),  # the duration differs
                {**(point.attributes or {}), "otel.component.name": "counted for each exporter"},
            )
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            for point in metric.data.data_points
        ]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ours = measured(
            lambda exporter: EncodedExporter("traces", exporter).export([encode_span(readable)])
        )
        theirs = measured(lambda exporter: exporter.export([readable]))
        server.shutdown()

    assert ours == theirs
    assert any("otel.sdk.exporter.span.exported" in point for point in ours)


class Translates(GrpcSpanExporter):
    """Does something of its own between spans and request."""

    def _translate_data(self, data: Any) -> Any:
        request = super()._translate_data(data)
        for resource_spans in request.resource_spans:
            resource_spans.schema_url = "mine"
        return request


class Later(InMemorySpanExporter):
    """As the SDK's own could become: nothing that we know of its inside is there any more."""

    def export(self, spans: Any) -> SpanExportResult:
        """Take the SDK's spans."""
        return super().export(spans)

    export.__module__ = OTLPSpanExporter.__module__


def test_a_subclass_that_makes_its_own_requests_is_not_passed_by(
    grpc_receiver: GrpcReceiver,
) -> None:
    exporter = Translates(grpc_receiver.url, insecure=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(EncodingSpanProcessor(exporter))
    provider.get_tracer("t").start_span("节点").end()
    assert provider.force_flush()

    assert [span.name for span in grpc_receiver.spans] == ["节点"]
    assert grpc_receiver.schemas == ["mine"]
    provider.shutdown()


def test_an_exporter_with_another_inside_gets_the_sdk_s_objects() -> None:
    exporter = Later()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(EncodingSpanProcessor(exporter))
    provider.get_tracer("t").start_span("节点").end()
    assert provider.force_flush()

    assert [span.name for span in exporter.get_finished_spans()] == ["节点"]
    provider.shutdown()


def test_an_open_span_that_cannot_be_encoded_stops_no_heartbeat(tmp_path: Path) -> None:
    """It is noted in the same turn as all others, before the heartbeat is sent."""
    exporter = InMemorySpanExporter()
    spool = Spool(tmp_path / "spool", max_bytes=8 * 1024 * 1024)
    spool.open("traces", lambda: exporter, 0.05)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spool.span_processor())
    wrong: Any = time.time()
    for name, moment in (("wrong", wrong), ("right", None)):
        span: Any = provider.get_tracer("t").start_span(name, start_time=moment)
        spool.opened(span)
        span.end()
    provider.force_flush()
    provider.shutdown()

    assert [span.name for span in exporter.get_finished_spans()] == ["right"]


def test_a_span_too_large_for_grpc_does_not_hold_up_the_spool(
    grpc_receiver: GrpcReceiver, tmp_path: Path
) -> None:
    """A receiver takes 4 MiB: a larger span, tried for ever, would keep all behind it waiting."""
    spool = Spool(tmp_path / "spool", max_bytes=64 * 1024 * 1024)
    spool.open("traces", lambda: GrpcSpanExporter(grpc_receiver.url, insecure=True), 0.05)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spool.span_processor())
    before = failed("traces", "rejected")
    for name, size in (("before", 1), ("large", 5 * 1024 * 1024), ("after", 1)):
        provider.get_tracer("t").start_span(name, attributes={"content": "x" * size}).end()
    wait_for(lambda: len(grpc_receiver.spans) >= 2, 60)
    provider.shutdown()

    assert [span.name for span in grpc_receiver.spans] == ["before", "after"]
    assert failed("traces", "rejected") == before + 1


def test_what_ends_after_shutdown_is_not_sent_and_not_raised(receiver: Receiver) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        EncodingSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces"))
    )
    late = provider.get_tracer("t").start_span("late")
    provider.get_tracer("t").start_span("in time").end()
    provider.shutdown()
    late.end()

    assert [span.name for span in receiver.spans] == ["in time"]


def test_spans_of_many_threads_all_arrive(receiver: Receiver) -> None:
    """Some with an event, which wait as they are and are encoded later."""
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
    provider.add_span_processor(EncodingSpanProcessor(exporter, schedule_delay_millis=20))
    tracer = provider.get_tracer("t")

    def work(number: int) -> None:
        for turn in range(200):
            span = tracer.start_span(f"{number}.{turn}", attributes={"turn": turn})
            if turn % 5 == 0:
                span.add_event("e", {"n": turn})
            span.end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.force_flush()
    wait_for(lambda: len(receiver.spans) >= 800)

    assert {span.name for span in receiver.spans} == {
        f"{n}.{t}" for n in range(4) for t in range(200)
    }
    assert len(receiver.spans) == 800
    assert sum(len(span.events) for span in receiver.spans) == 160
    provider.shutdown()
