"""A real OTLP receiver on loopback, and a real service process to watch."""

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloom import semconv

ROOT = Path(__file__).parents[2]


def any_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [any_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: any_value(item.value) for item in value.kvlist_value.values}
    return getattr(value, kind)


def attributes(holder: Any) -> dict[str, Any]:
    return {item.key: any_value(item.value) for item in holder.attributes}


class Receiver:
    """Takes OTLP over HTTP and keeps every message."""

    def __init__(self, port: int = 0) -> None:
        receiver = self
        self.spans: list[Any] = []
        self.logs: list[Any] = []
        self.events: list[Any] = []  # spanloom.*: announcements and heartbeats
        self.metrics: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.resources_of_logs: list[dict[str, Any]] = []
        self.requests: list[dict[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                receiver.requests.append({k.lower(): v for k, v in self.headers.items()})
                receiver.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # of five, a busy moment leaves the sixth to wait for a second

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(attributes(resource.resource))
                for scope in resource.scope_spans:
                    self.spans += scope.spans
        elif path == "/v1/logs":
            self._take_logs(ExportLogsServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics += scope.metrics

    def _take_logs(self, request: ExportLogsServiceRequest) -> None:
        for resource in request.resource_logs:
            self.resources_of_logs.append(attributes(resource.resource))
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    ours = record.event_name.startswith(semconv.SPANLOOM_EVENT_PREFIX)
                    (self.events if ours else self.logs).append(record)

    def spans_of(self, trace_id: str) -> list[Any]:
        return [span for span in list(self.spans) if span.trace_id.hex() == trace_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait_for(found: Callable[[], Any], timeout_s: float = 60) -> Any:
    end = time.monotonic() + timeout_s
    while not (result := found()):
        if time.monotonic() > end:
            raise AssertionError("did not happen in time")
        time.sleep(0.05)
    return result


def child_environment(**extra: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPANLOOM_"))}
    return {**inherited, "PYTHONPATH": str(ROOT), **extra}


class Script:
    """Runs Python in a process of its own; `setup` may happen once a process."""

    def run(self, text: str, *, timeout_s: float = 100, **environment: str) -> Any:
        return self._run(["-c", text], timeout_s, environment)

    def run_file(self, path: Path, *, timeout_s: float = 100, **environment: str) -> Any:
        return self._run([str(path)], timeout_s, environment)

    def _run(self, arguments: list[str], timeout_s: float, environment: dict[str, str]) -> Any:
        return subprocess.run(
            [sys.executable, *arguments],
            env=child_environment(**environment),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
        )


class Service:
    """`probe_service.py` under a real uvicorn."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        port_file = folder / "port"
        self.stdout_path = folder / "stdout"
        with self.stdout_path.open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "probe_service.py"), str(port_file)],
                env=child_environment(**environment),
                stdout=stdout,
                stderr=stderr,
            )
        try:
            wait_for(lambda: port_file.exists() or self.process.poll() is not None)
            assert self.process.poll() is None, (folder / "stderr").read_text()
            self.url = f"http://127.0.0.1:{port_file.read_text()}"
            self.client = httpx2.Client(base_url=self.url, timeout=30)
            wait_for(self._is_up)
        except BaseException:
            self.stop()
            raise

    def _is_up(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        """Every stdout line, each of which has to be a JSON object."""
        complete, _, _ = self.stdout_path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in complete.split(b"\n") if line]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=60)
