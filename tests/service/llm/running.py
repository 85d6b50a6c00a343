"""The real endpoint as a process of its own, and a loopback collector for its telemetry."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).parents[3]
START_TIMEOUT_S = 100


@dataclass
class Collector:
    """Takes OTLP over HTTP and keeps the spans."""

    url: str
    spans: list[Any] = field(default_factory=list)

    def wait_for(self, name: str, trace_id: str, timeout_s: float = 30) -> Any:
        """The span of that name in that trace, once it has arrived."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for span in list(self.spans):
                if span.name == name and span.trace_id.hex() == trace_id:
                    return span
            time.sleep(0.05)
        raise AssertionError(
            f"no span {name!r} in {trace_id}: {[each.name for each in self.spans]}"
        )


@dataclass
class Endpoint:
    """A running endpoint process."""

    port: int
    process: subprocess.Popen[str]
    lines: list[dict[str, Any]]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


def start_endpoint(data_dir: Path, **environment: str) -> Endpoint:
    """Start `python -m service.llm serve` on a free port and wait until it says which."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OTEL_", "AGENT_", "OPENAI_", "TIKTOKEN"))
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service.llm", "serve", "--port", "0"],
        cwd=ROOT,
        env={**clean, "AGENT_DATA_DIR": str(data_dir), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    lines: list[dict[str, Any]] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line.rstrip()}
            lines.append(entry)
            if entry["event"] == "offline_llm_ready":
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    assert ready.wait(START_TIMEOUT_S), lines
    port = next((each["port"] for each in lines if each["event"] == "offline_llm_ready"), None)
    assert port is not None, lines
    return Endpoint(port, process, lines)


@contextmanager
def collecting() -> Iterator[Collector]:
    """An OTLP/HTTP receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        kept.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    server.server_close()
