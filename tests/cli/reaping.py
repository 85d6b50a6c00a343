"""`spanloom reap` as a process, agents as processes, and what stands for the Collector's two ends.

    agent ─ spans ──────────────────────────────▶ Target ◀─ final spans ─┐
          └ logs: spans' announcements, heartbeats ─▶ spanloom reap ─────┘

Both receivers are real OTLP over HTTP on loopback; the target says what a test wants it to say.
"""

import contextlib
import gzip
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.free_ports import free_port
from tests.telemetry.live import attributes, child_environment, wait_for

WAIT_S = 60
AFTER_S = 5
"""How long the reaper waits; a busy machine keeps a heartbeat back for a second or two."""

AGENT = """
import sys
from spanloom.telemetry import setup, step, tool
telemetry = setup("agent-api")
with step("POST /chat", question="你好"):
    with step("done before"):
        pass
    with tool("天气"):
        print("hanging", flush=True)
        sys.stdin.readline()
print("ended", flush=True)
sys.stdin.readline()
telemetry.shutdown()
"""


class Target:
    """Takes spans by OTLP/HTTP, and answers each request as `answer` says."""

    def __init__(self, port: int | None = None) -> None:
        target = self
        self.spans: list[Span] = []
        """Those of requests that were taken."""
        self.bodies: list[bytes] = []
        """All requests, empty ones included, whatever the answer was."""
        self.answer: Callable[[list[Span]], tuple[int, bytes]] = lambda _: (200, b"")

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                status, said = target.take(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                made = super().get_request()
                target._connections.append(made[0])
                return made

        self._connections: list[socket.socket] = []
        # Not one of the kernel's: nobody may take it before another target stands here again.
        self._server = Server(("127.0.0.1", port or free_port()), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> tuple[int, bytes]:
        request = ExportTraceServiceRequest.FromString(body)
        spans = [
            span
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.bodies.append(body)
        status, said = self.answer(spans)
        if status == 200:
            self.spans += spans
        return status, said

    def times(self) -> Counter[str]:
        """How often each span id was taken."""
        return Counter(span.span_id.hex() for span in list(self.spans))

    def close(self) -> None:
        """Go away, open connections included."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # the other side was quicker
                connection.shutdown(socket.SHUT_RDWR)


def refuses_some(count: int, message: str) -> bytes:
    """The answer that takes a request but for so many spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = count
    answer.partial_success.error_message = message
    return answer.SerializeToString()


class Reap:
    """A running `spanloom reap`."""

    def __init__(self, folder: Path, to: str, *, after: str = f"{AFTER_S}s", port: int = 0) -> None:
        command = [sys.executable, "-m", "spanloom", "reap", "--json", "--data-dir", str(folder)]
        command += ["--to", to, "--reap-after", after, "--admin", "127.0.0.1:0"]
        command += ["--listen", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(
            command,
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        addresses = json.loads(line)
        self.otlp: str = addresses["otlp_http"]
        self.port = int(self.otlp.rpartition(":")[2])
        self.admin: str = addresses["admin"]
        self._admin = httpx2.Client(base_url=self.admin, trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._admin.close()
        self.process.kill()
        self.process.communicate()

    def kill(self) -> None:
        """As if the machine's memory had run out."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> tuple[int, str]:
        """SIGTERM; its exit code, and what it said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said

    def post(self, body: bytes, **headers: str) -> httpx2.Response:
        """One OTLP logs request, as the Collector sends it."""
        given = {"Content-Type": "application/x-protobuf"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.otlp}/v1/logs"
        return httpx2.post(url, content=body, headers=given, trust_env=False, timeout=30)

    def health(self) -> dict[str, Any]:
        answer = self._admin.get("/health")
        assert answer.status_code == 200, answer.text
        seen: dict[str, Any] = answer.json()
        return seen

    def metrics(self) -> dict[str, float]:
        """Its series by name and labels, as they are written."""
        lines = self._admin.get("/metrics").text.splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    def waits_for(self, name: str, value: float) -> None:
        """Until a metric has a value."""
        wait_for(lambda: self.metrics().get(name) == value, WAIT_S)


class Agent:
    """A process with two spans that stay open until `go_on`, and which lives until the next."""

    def __init__(self, traces: str, logs: str, *, script: str = AGENT, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=child_environment(
                OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{traces}/v1/traces",
                OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{logs}/v1/logs",
                OTEL_METRICS_EXPORTER="none",
                SPANLOOM_INFLIGHT_AFTER="0.2",
                **env,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.waits_for("hanging")

    def go_on(self) -> None:
        """End what it waits in."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def waits_for(self, said: str) -> None:
        """Until it says a word on a line of its own."""
        assert self.process.stdout is not None
        assert f"{said}\n" in iter(self.process.stdout.readline, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def is_reaped(span: Span) -> bool:
    """Whether somebody else than its process ended a span."""
    return attributes(span).get("spanloom.incomplete") is True
