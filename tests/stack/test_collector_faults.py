"""Backends stop, the Collector is killed, memory runs short: what was acknowledged arrives.

Every count is of distinct ids: a span that arrives twice is one span.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import grpc
import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from tests.stack import queries
from tests.stack.programs import ROOT, Collector, Jaeger, Loki, Program, Prometheus, collector
from tests.stack.programs import jaeger as make_jaeger
from tests.stack.programs import loki as make_loki
from tests.stack.programs import prometheus as make_prometheus
from tests.stack.queries import eventually
from tests.stack.senders import Sender, sender
from tests.telemetry.live import child_environment

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

# A request of 8 MB, beside eleven others, took 13 s on one core.
FLOODED_S = 120
FLOOD_SPANS = 400

_client = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)


class Stack(NamedTuple):
    collector: Collector
    jaeger: Jaeger
    prometheus: Prometheus
    loki: Loki

    def own(self, name: str) -> float:
        """One of the Collector's own metrics, summed over its labels."""
        return queries.own_metrics(self.collector.metrics_url).get(name, 0.0)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as started:
        metrics = started.enter_context(make_prometheus(folder))
        logs = started.enter_context(make_loki(folder))
        traces = started.enter_context(make_jaeger(folder, metrics))
        made = started.enter_context(collector(folder, traces, metrics, logs))
        yield Stack(made, traces, metrics, logs)


@pytest.fixture
def shop(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Sender]:
    """A service named after the test."""
    with sender(stack.collector.http, request.node.name.replace("[", "-").rstrip("]")) as made:
        yield made


def send_some(shop: Sender, count: int, tag: str) -> None:
    """So many traces of two spans, lines, and units on a counter."""
    counter = shop.meter.create_counter("app.items")
    for number in range(count):
        shop.trace("chat m-large")
        shop.log(f"{tag} {number}")
        counter.add(1)
    shop.flush()


def spans_arrived(stack: Stack, shop: Sender) -> set[str]:
    return set(
        eventually(
            lambda: set(queries.jaeger_span_ids(stack.jaeger.url, shop.service)),
            shop.span_ids.issubset,
            f"{len(shop.span_ids)} spans in Jaeger",
        )
    )


def lines_arrived(stack: Stack, shop: Sender) -> list[str]:
    return eventually(
        lambda: queries.loki_lines(stack.loki.url, shop.service),
        shop.lines.issubset,
        f"{len(shop.lines)} lines in Loki",
    )


def items_arrived(stack: Stack, shop: Sender, count: int) -> None:
    eventually(
        lambda: queries.prometheus_value(
            stack.prometheus.url, f'sum(app_items_total{{job="{shop.service}"}})'
        ),
        lambda seen: seen == count,
        f"{count} items in Prometheus",
    )
    eventually(
        lambda: queries.prometheus_value(
            stack.prometheus.url,
            f'sum(traces_span_metrics_calls_total{{service_name="{shop.service}"}})',
        ),
        lambda seen: seen == 2 * count,
        f"{2 * count} spans counted in Prometheus",
    )


def given_up(stack: Stack) -> dict[str, float]:
    """What the Collector's own books say was lost; retries are not in them."""
    own = queries.own_metrics(stack.collector.metrics_url)
    return {name: n for name, n in own.items() if "_failed_" in name and n > 0}


@pytest.mark.parametrize("backend", ["jaeger", "prometheus", "loki"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_backend_that_is_away_for_a_while_misses_nothing(
    stack: Stack, shop: Sender, backend: str, how: str
) -> None:
    """And the other two get theirs while it is away."""
    program: Program = getattr(stack, backend)
    send_some(shop, 100, "before")
    if how == "stopped":
        program.stop()
    else:
        program.kill()
    send_some(shop, 300, "during")

    if backend != "jaeger":
        assert shop.span_ids == spans_arrived(stack, shop)
    if backend != "loki":
        assert shop.lines == set(lines_arrived(stack, shop))
    if backend != "prometheus":
        items_arrived(stack, shop, 400)

    program.start()
    send_some(shop, 100, "after")
    assert shop.span_ids == spans_arrived(stack, shop)
    lines = lines_arrived(stack, shop)
    assert sorted(shop.lines) == sorted(lines), "each line once"
    items_arrived(stack, shop, 500)
    assert stack.own("otelcol_exporter_sent_spans") > 0
    assert given_up(stack) == {}


def test_prometheus_has_the_points_of_the_time_it_was_away(stack: Stack, shop: Sender) -> None:
    """Not only the sum: no gap in the graph, and exemplars of that time."""
    counter = shop.meter.create_counter("app.steps")
    counter.add(1)
    shop.flush()
    stack.prometheus.stop()
    meanwhile = set()
    for _ in range(4):
        with shop.tracer.start_as_current_span("step") as span:
            counter.add(1)
        meanwhile.add(f"{span.get_span_context().trace_id:032x}")
        shop.flush()
        time.sleep(1.1)
    stack.prometheus.start()

    def values() -> set[float]:
        found = queries.prometheus(
            stack.prometheus.url, f'app_steps_total{{job="{shop.service}"}}[10m]'
        )
        return {float(value) for series in found for _, value in series["values"]}

    eventually(values, {1.0, 2.0, 3.0, 4.0, 5.0}.issubset, "each step's value")
    for series in (
        f'app_steps_total{{job="{shop.service}"}}',
        f'traces_span_metrics_duration_seconds_bucket{{service_name="{shop.service}"}}',
    ):
        exemplars = eventually(
            lambda series=series: queries.prometheus_exemplars(stack.prometheus.url, series),
            bool,
            f"exemplars of {series}",
        )
        assert {exemplar["labels"]["trace_id"] for exemplar in exemplars} <= meanwhile


@pytest.mark.parametrize("backend", ["jaeger", "prometheus", "loki"])
def test_a_backend_that_hangs_stalls_no_other(stack: Stack, shop: Sender, backend: str) -> None:
    """Frozen, not gone: its connections stay open and nothing answers."""
    program: Program = getattr(stack, backend)
    program.freeze()
    try:
        send_some(shop, 200, "during")
        if backend != "jaeger":
            spans_arrived(stack, shop)
        if backend != "loki":
            lines_arrived(stack, shop)
        if backend != "prometheus":
            items_arrived(stack, shop, 200)
    finally:
        program.resume()

    assert shop.span_ids == spans_arrived(stack, shop)
    assert sorted(shop.lines) == sorted(lines_arrived(stack, shop)), "each line once"
    items_arrived(stack, shop, 200)


def test_a_collector_killed_loses_nothing_it_had_acknowledged(stack: Stack, shop: Sender) -> None:
    """With every backend away, so that all of it is in the queues on disk."""
    for program in (stack.jaeger, stack.loki, stack.prometheus):
        program.stop()
    send_some(shop, 500, "in the queue")
    assert stack.own("otelcol_exporter_queue_size") > 0
    stack.collector.kill()

    for program in (stack.jaeger, stack.loki, stack.prometheus, stack.collector):
        program.start()

    assert shop.span_ids == spans_arrived(stack, shop)
    assert sorted(shop.lines) == sorted(lines_arrived(stack, shop))
    eventually(
        lambda: queries.prometheus_value(
            stack.prometheus.url, f'sum(app_items_total{{job="{shop.service}"}})'
        ),
        lambda seen: seen == 500,
        "the counter in Prometheus",
    )


def test_a_collector_killed_again_and_again_under_load_loses_nothing(
    stack: Stack, shop: Sender
) -> None:
    """Answered 200 means on disk: whatever was not answered, the sender sends again."""
    acknowledged: set[str] = set()
    again = 0
    stop = threading.Event()

    def send() -> None:
        nonlocal again
        number = 0
        while not stop.is_set():
            number += 1
            body, ids = encoded(shop.service, spans=20)
            while True:
                try:
                    code = post(stack.collector.http, body, timeout_s=10)
                except httpx2.HTTPError:
                    again += 1
                    time.sleep(0.05)
                    continue
                if code == 200:
                    acknowledged.update(ids)
                    time.sleep(0.01)  # or a fast machine sends more than a search returns
                    break
                assert code in {429, 503}, code
                again += 1

    senders = [threading.Thread(target=send) for _ in range(2)]
    for thread in senders:
        thread.start()
    for _ in range(4):
        time.sleep(1.5)
        stack.collector.kill()
        stack.collector.start()
    end = time.monotonic() + 60
    while len(acknowledged) <= 200 and time.monotonic() < end:
        time.sleep(0.1)
    stop.set()
    for thread in senders:
        thread.join(60)

    assert again, "the kills hit no request"
    assert len(acknowledged) > 200
    seen = eventually(
        lambda: set(queries.jaeger_span_ids(stack.jaeger.url, shop.service)),
        acknowledged.issubset,
        f"{len(acknowledged)} acknowledged spans",
    )
    logger.info("acknowledged %d, stored %d, sent again %d", len(acknowledged), len(seen), again)


def post(url: str, body: bytes, timeout_s: float = 30) -> int:
    """Send one request of spans; the status code."""
    kind = {"content-type": "application/x-protobuf"}
    return _client.post(
        f"{url}/v1/traces", content=body, headers=kind, timeout=timeout_s
    ).status_code


def encoded(service: str, *, spans: int, filling: str = "") -> tuple[bytes, set[str]]:
    """One OTLP request of one trace, and the ids of its spans."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    scope = resource.scope_spans.add()
    trace_id = os.urandom(16)
    now = time.time_ns()
    ids = set()
    for number in range(spans):
        span = scope.spans.add()
        span.trace_id, span.span_id, span.name = trace_id, os.urandom(8), "step"
        span.start_time_unix_nano = now - 1_000_000 * (number + 1)
        span.end_time_unix_nano = now
        if filling:
            span.attributes.add(key="app.text").value.string_value = filling
        ids.add(span.span_id.hex())
    return request.SerializeToString(), ids


def test_red_counts_since_the_last_flush_are_what_a_kill_costs(stack: Stack, shop: Sender) -> None:
    """The only thing that is in memory alone; the spans themselves are in Jaeger."""
    calls = f'traces_span_metrics_calls_total{{service_name="{shop.service}"}}'
    stack.collector.stop()
    interval = dict(stack.collector.env)
    try:
        stack.collector.env = {**interval, "COLLECTOR_RED_INTERVAL": "1h"}
        stack.collector.start()
        send_some(shop, 50, "before")
        stack.collector.kill()
    finally:
        stack.collector.env = interval
    stack.collector.start()
    send_some(shop, 30, "after")

    assert shop.span_ids == spans_arrived(stack, shop)
    counted = eventually(
        lambda: queries.prometheus_value(stack.prometheus.url, f"sum({calls})"),
        lambda seen: seen == 60,
        "the 60 spans after the kill counted",
    )
    logger.info("RED counted %g of %d spans", counted, len(shop.span_ids))


SERVICE = """
import json, sys, time
from spanloom.telemetry import setup
from spanloom.telemetry import drops
from opentelemetry import trace
from prometheus_client import REGISTRY

telemetry = setup(sys.argv[1])
tracer = trace.get_tracer("burst")
ids = []
for number in range(int(sys.argv[2])):
    with tracer.start_as_current_span("step", attributes={"app.text": "x" * 20_000}) as span:
        ids.append(f"{span.get_span_context().span_id:016x}")
    if number % 50 == 49:
        time.sleep(0.05)
print(json.dumps(ids), flush=True)
sys.stdin.readline()  # until the test has seen the Collector recover
telemetry.shutdown()
lost = sum(
    sample.value
    for family in REGISTRY.collect()
    for sample in family.samples
    if sample.name == "spanloom_telemetry_dropped_total" and sample.labels["signal"] == "traces"
)
print(json.dumps(lost), flush=True)
"""


class Flood:
    """Twelve senders of 8 MB each, all the time; what they were answered."""

    def __init__(self, to: Collector) -> None:
        self.codes: list[int] = []
        self.answers: list[grpc.StatusCode] = []
        self._to = to
        self._body, _ = encoded("burst", spans=FLOOD_SPANS, filling="y" * 20_000)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(12)

    def __enter__(self) -> Self:
        self._senders = [self._pool.submit(self._by_http) for _ in range(10)]
        self._senders += [self._pool.submit(self._by_grpc) for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for one in self._senders:
            one.result()

    def is_refused(self) -> bool:
        """Whether both transports were."""
        return 503 in self.codes and grpc.StatusCode.UNAVAILABLE in self.answers

    def refused_spans(self) -> int:
        unavailable = self.answers.count(grpc.StatusCode.UNAVAILABLE)
        return FLOOD_SPANS * (self.codes.count(503) + unavailable)

    def _by_http(self) -> None:
        while not self._stop.is_set():
            self.codes.append(post(self._to.http, self._body, timeout_s=FLOODED_S))
            if self.codes[-1] == 503:
                time.sleep(0.05)

    def _by_grpc(self) -> None:
        request = ExportTraceServiceRequest.FromString(self._body)
        with grpc.insecure_channel(self._to.grpc) as channel:
            stub = TraceServiceStub(channel)
            while not self._stop.is_set():
                try:
                    stub.Export(request, timeout=FLOODED_S)
                    self.answers.append(grpc.StatusCode.OK)
                except grpc.RpcError as exc:
                    self.answers.append(exc.code())
                    time.sleep(0.05)


def test_memory_running_short_refuses_what_may_be_sent_again_and_senders_recover(
    tmp_path: Path, stack: Stack
) -> None:
    """0 lost with a spool; without one, what the exporter gave up is counted, to the span."""
    limited = collector(
        tmp_path, stack.jaeger, stack.prometheus, stack.loki, name="limited",
        COLLECTOR_MEMORY_LIMIT_MIB="120", COLLECTOR_MEMORY_SPIKE_MIB="40",
        COLLECTOR_MEMORY_CHECK_INTERVAL="50ms",
    )  # fmt: skip
    with limited:
        with ExitStack() as processes:
            with Flood(limited) as flood:
                eventually(flood.is_refused, lambda refused: refused, "both transports are refused")
                # Only now, or all they have may be taken before the first refusal.
                services = {
                    name: processes.enter_context(
                        service(name, limited.http, tmp_path, spool=spool)
                    )
                    for name, spool in (("with-spool", True), ("without-spool", False))
                }
                sent = {name: json.loads(read_line(process)) for name, process in services.items()}
                time.sleep(5)  # both services send in the meantime
            eventually(
                lambda: post(limited.http, encoded("calm", spans=1)[0]),
                lambda code: code == 200,
                "the Collector takes data again",
            )
            # While they still run: at its end a process leaves the rest of a spool to the next one.
            eventually(
                lambda: set(queries.jaeger_span_ids(stack.jaeger.url, "with-spool")),
                set(sent["with-spool"]).issubset,
                f"{len(sent['with-spool'])} spans from the spool",
            )
            lost = {name: finish(process) for name, process in services.items()}

        refused = queries.own_metrics(limited.metrics_url)["otelcol_receiver_refused_spans"]
        codes, answers = set(flood.codes), set(flood.answers)
        assert codes == {200, 503}
        assert answers <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
        ours = refused - flood.refused_spans()
        assert ours > 0, "none of the services' spans was refused"
        assert lost["with-spool"] == 0
        ids = set(sent["without-spool"])
        seen = eventually(
            lambda: set(queries.jaeger_span_ids(stack.jaeger.url, "without-spool")),
            lambda seen: len(ids - seen) <= lost["without-spool"],
            f"{len(ids)} spans without a spool, but for {lost['without-spool']}",
        )
        logger.info(
            "without a spool: %d sent, %d missing, %g counted as lost",
            len(ids), len(ids - seen), lost["without-spool"],
        )  # fmt: skip
    assert "panic" not in limited.log


def service(name: str, url: str, folder: Path, *, spool: bool) -> "subprocess.Popen[str]":
    """A process set up by spanloom.telemetry that makes 2,000 spans of 20 kB."""
    env = child_environment(OTEL_EXPORTER_OTLP_ENDPOINT=url, SPANLOOM_INFLIGHT="false",
                            OTEL_BSP_MAX_QUEUE_SIZE="8192")  # fmt: skip
    if spool:
        env["SPANLOOM_SPOOL_DIR"] = str(folder / "spool")
        env["SPANLOOM_SPOOL_MAX_BYTES"] = "268435456"
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, name, "2000"],
        cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def read_line(process: "subprocess.Popen[str]") -> str:
    """The next JSON line that is not a log line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("[", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")):
            return line
    raise AssertionError("the service ended early")


def finish(process: "subprocess.Popen[str]") -> float:
    """Let it flush and end; how many spans it says it lost."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    lost = float(read_line(process))
    process.wait(60)
    return lost


def test_a_full_queue_makes_its_senders_wait_and_no_others(tmp_path: Path, stack: Stack) -> None:
    """Beyond a queue's size: nothing is dropped, the sender is told, other signals go on."""
    small = collector(
        tmp_path, None, stack.prometheus, stack.loki, name="small",
        COLLECTOR_TRACE_QUEUE_BYTES="2000000",
    )  # fmt: skip
    with small, sender(small.http, "full-queue") as shop:
        taken: set[str] = set()
        for _ in range(20):
            body, ids = encoded("full-queue", spans=10, filling="z" * 30_000)
            try:
                code = post(small.http, body, timeout_s=15)
            except httpx2.ReadTimeout:
                break
            assert code == 200
            taken |= ids
        else:
            raise AssertionError("the queue was never full")
        assert 20 <= len(taken) < 100, len(taken)

        counter = shop.meter.create_counter("app.items")
        for number in range(100):
            shop.log(f"line {number}")
            counter.add(1)
        shop._logs.force_flush()
        shop._metrics.force_flush()
        assert shop.lines == set(lines_arrived(stack, shop))
        eventually(
            lambda: queries.prometheus_value(
                stack.prometheus.url, 'sum(app_items_total{job="full-queue"})'
            ),
            lambda seen: seen == 100,
            "metrics went on",
        )
        # Jaeger comes: what was taken is all there.
        small.stop()
        small.env = {**small.env, "JAEGER_OTLP_ENDPOINT": stack.jaeger.otlp_grpc}
        small.start()
        eventually(
            lambda: set(queries.jaeger_span_ids(stack.jaeger.url, "full-queue")),
            taken.issubset,
            f"{len(taken)} spans that were taken",
        )
