"""What a span costs the two tiers of Collectors: CPU of agent and gateway, memory while it waits.

    python bench/collector_load.py              # two minutes; needs make stack-tools
    python bench/collector_load.py --write      # docs/scaling.md

The service's own spans, recorded once and sent again with new trace ids at a bounded rate, through
the committed configurations into a sink that takes all and does nothing.
"""

import argparse
import contextlib
import gzip
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from overhead.report import Table, machine, write
from overhead.service_stack import ServiceStack, otlp_sink

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from scripts import stack_tools  # noqa: E402  # the checkout's root is not a package's

DOCUMENT = ROOT / "docs/scaling.md"
TRACES_PER_REQUEST = 13  # about 512 spans, as the SDK's batches have
WARM_UP_S = 15
START_S = 60


@dataclass(frozen=True)
class Recorded:
    """One trace of the service, encoded, with the id that others get in its place."""

    trace_id: bytes
    body: bytes
    spans: int

    def again(self) -> bytes:
        """The same trace under a new id; concatenated, encoded requests are one request."""
        return self.body.replace(self.trace_id, secrets.token_bytes(16))


def record(folder: Path, requests: int) -> list[Recorded]:
    """Traces of the real service answering questions."""
    print("recording the service's spans", file=sys.stderr)
    with otlp_sink(keep=True) as sink, contextlib.ExitStack() as processes:
        assert sink.kept is not None
        service = ServiceStack(
            folder / "service", processes, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint
        )
        service.batch(requests)
        time.sleep(3)
        bodies = [
            gzip.decompress(body) if encoding == "gzip" else body
            for path, encoding, body in sink.kept
            if path == "/v1/traces"
        ]
    traces: defaultdict[bytes, ExportTraceServiceRequest] = defaultdict(ExportTraceServiceRequest)
    counts: defaultdict[bytes, int] = defaultdict(int)
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    # One resource for each span would be costlier than what is really sent.
                    one = traces[span.trace_id]
                    held = next(
                        (each for each in one.resource_spans if each.resource == resource.resource),
                        None,
                    )
                    if held is None:
                        held = one.resource_spans.add(resource=resource.resource)
                    scopes = next(
                        (each for each in held.scope_spans if each.scope == scope.scope), None
                    )
                    if scopes is None:
                        scopes = held.scope_spans.add(scope=scope.scope)
                    scopes.spans.append(span)
                    counts[span.trace_id] += 1
    whole = [
        Recorded(trace_id, one.SerializeToString(), counts[trace_id])
        for trace_id, one in traces.items()
        if len(one.resource_spans) > 1  # of several processes: a question, not a probe
    ]
    if not whole:
        raise SystemExit("the service sent no trace of several processes")
    return whole


class _Storage(TraceServiceServicer):  # type: ignore[misc]  # generated without types
    """In Jaeger's place: what storage costs is storage's figure."""

    def __init__(self) -> None:
        self.spans = 0

    def Export(self, request: ExportTraceServiceRequest, _context: object) -> object:  # noqa: N802  # gRPC's name
        self.spans += sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        return ExportTraceServiceResponse()


@contextlib.contextmanager
def storage() -> Iterator[tuple[_Storage, str]]:
    """A gRPC sink and its address."""
    server = grpc.server(
        ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 128 * 2**20)]
    )
    sink = _Storage()
    add_TraceServiceServicer_to_server(sink, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield sink, f"127.0.0.1:{port}"
    finally:
        server.stop(1).wait()


class Collector:
    """A Collector process with a committed configuration, ended with the block that it is in."""

    def __init__(self, binary: Path, config: str, folder: Path, **settings: str) -> None:
        ports = [_free_port() for _ in range(4)]
        self.grpc, self.http = (f"127.0.0.1:{port}" for port in ports[:2])
        self._health = f"127.0.0.1:{ports[2]}"
        folder.mkdir()
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary), "--config", str(ROOT / "deploy/collector" / config)],
                env={
                    **os.environ,
                    "OTLP_GRPC_ENDPOINT": self.grpc,
                    "OTLP_HTTP_ENDPOINT": self.http,
                    "COLLECTOR_HEALTH_ENDPOINT": self._health,
                    "COLLECTOR_METRICS_PORT": str(ports[3]),
                    "COLLECTOR_QUEUE_DIR": str(folder / "queue"),
                    **settings,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Until it is healthy."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self._health}", timeout=5).close()
                return
            time.sleep(0.2)
        raise SystemExit(f"a Collector did not start:\n{self._log.read_text('utf-8')}")

    def cpu_seconds(self) -> float:
        """User and system, of all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End it; what it still holds is of no interest."""
        self._process.kill()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Load:
    """Sends recorded traces at a bounded rate, until stopped."""

    def __init__(self, traces: Sequence[Recorded], address: str, spans_per_second: float) -> None:
        self.sent = 0
        self.refused = 0
        self._traces, self._address, self._rate = traces, address, spans_per_second
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        start, number = time.monotonic(), 0
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._over.is_set():
            chosen = [
                self._traces[(number + each) % len(self._traces)]
                for each in range(TRACES_PER_REQUEST)
            ]
            number += TRACES_PER_REQUEST
            body = b"".join(trace.again() for trace in chosen)
            connection.request(
                "POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"}
            )
            answer = connection.getresponse()
            answer.read()
            spans = sum(trace.spans for trace in chosen)
            if answer.status == 200:
                self.sent += spans
            else:
                self.refused += spans
            ahead = (self.sent + self.refused) / self._rate - (time.monotonic() - start)
            if ahead > 0:
                self._over.wait(ahead)
        connection.close()

    def stop(self) -> None:
        """After the request that is on its way."""
        self._over.set()
        self._thread.join()


def measure(binary: Path, spans_per_second: float, seconds: float, wait_s: int) -> list[list[str]]:
    """Agent, gateway and a sink; CPU and memory once as many traces wait as will."""
    with (
        tempfile.TemporaryDirectory() as name,
        storage() as (stored, jaeger),
        otlp_sink() as metrics,
        contextlib.ExitStack() as programs,
    ):
        folder = Path(name)
        traces = record(folder, 60)
        prometheus = f"{metrics.endpoint}/api/v1/otlp"
        gateway = Collector(
            binary,
            "gateway.yaml",
            folder / "gateway",
            JAEGER_OTLP_ENDPOINT=jaeger,
            PROMETHEUS_OTLP_ENDPOINT=prometheus,
            TAIL_WAIT_AFTER_ROOT=f"{wait_s}s",
            TAIL_DECISION_WAIT=f"{wait_s}s",
            TAIL_SLOW_MS="10000",
        )
        programs.callback(gateway.stop)
        agent = Collector(
            binary,
            "agent.yaml",
            folder / "agent",
            PROMETHEUS_OTLP_ENDPOINT=prometheus,
            COLLECTOR_GATEWAY_RESOLVER=json.dumps({"static": {"hostnames": [gateway.grpc]}}),
        )
        programs.callback(agent.stop)
        for one in (gateway, agent):
            one.wait()
        empty = gateway.resident()
        print(f"sending {spans_per_second:,.0f} spans a second", file=sys.stderr)
        load = Load(traces, agent.http, spans_per_second)
        programs.callback(load.stop)
        time.sleep(WARM_UP_S + wait_s)
        before, sent, kept = (agent.cpu_seconds(), gateway.cpu_seconds()), load.sent, stored.spans
        start = time.monotonic()
        resident = []
        while time.monotonic() < start + seconds:
            time.sleep(1)
            resident.append(gateway.resident())
        took = time.monotonic() - start
        spans = load.sent - sent
        agent_cpu = agent.cpu_seconds() - before[0]
        gateway_cpu = gateway.cpu_seconds() - before[1]
        if load.refused:
            raise SystemExit(f"{load.refused:,} spans were refused: send fewer a second")
        if stored.spans == kept:
            raise SystemExit("nothing came out of the gateway")
        waiting = spans / took * wait_s
        return [
            ["spans a second, taken", f"{spans / took:,.0f}"],
            ["… stored", f"{(stored.spans - kept) / took:,.0f}"],
            ["agent: spans a second of CPU", f"{spans / agent_cpu:,.0f}"],
            ["gateway: spans a second of CPU", f"{spans / gateway_cpu:,.0f}"],
            ["gateway: spans that wait", f"{waiting:,.0f}"],
            ["gateway: memory, empty", f"{empty / 2**20:,.0f} MiB"],
            ["… at most", f"{max(resident) / 2**20:,.0f} MiB"],
            ["… a waiting span", f"{(max(resident) - empty) / waiting:,.0f} bytes"],
            ["agent: memory", f"{agent.resident() / 2**20:,.0f} MiB"],
        ]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans-per-second", type=float, default=8_000)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--wait", type=int, default=20, help="seconds that traces wait")
    parser.add_argument("--write", action="store_true", help=f"write into {DOCUMENT.name}")
    arguments = parser.parse_args()
    binary = stack_tools.find("otelcol")
    if binary is None:
        print("no Collector: `make stack-tools` builds it (needs Go); nothing measured")
        return
    rows = measure(binary, arguments.spans_per_second, arguments.seconds, arguments.wait)
    table = Table(
        "What a span costs the Collectors",
        f"{machine()}. Sender and sink on the same cores; one agent, one gateway that keeps 10 %.",
        ("what", "found"),
        rows,
    )
    table.show()
    if arguments.write:
        write(DOCUMENT, "collectors", table.markdown())


if __name__ == "__main__":
    main()
