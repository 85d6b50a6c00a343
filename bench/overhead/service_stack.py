"""The service's real processes, and the OTLP sink they export to, for measurements."""

import contextlib
import http.client
import itertools
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PARALLEL = 4
_ANSWER_S = 600
_START_S = 600
_QUESTIONS = (
    "What does a KV cache save, and what does it cost?",
    "How does HNSW search find neighbours?",
    "什么是检索增强生成？",
    "What is (17 + 4) * 3?",
)
_numbers = itertools.count()


class OtlpSink(socketserver.ThreadingTCPServer):
    """Takes every OTLP request on loopback and counts it; keeps what it took only if asked to."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken = 0
        self.kept: list[tuple[str, str, bytes]] | None = [] if keep else None
        """Path, content encoding and body of each request."""

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    """Reads no more of a request than it must: its CPU is taken from what is measured."""

    server: OtlpSink

    def handle(self) -> None:
        while line := self.rfile.readline():
            headers = {}
            while header := self.rfile.readline().strip():
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers["content-length"]))
            self.server.taken += 1
            if self.server.kept is not None:
                path = line.decode("latin-1").split(" ")[1]
                self.server.kept.append((path, headers.get("content-encoding", ""), body))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@contextlib.contextmanager
def otlp_sink(*, keep: bool = False) -> Iterator[OtlpSink]:
    """A sink that serves until the block ends."""
    sink = OtlpSink(keep=keep)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    try:
        yield sink
    finally:
        sink.shutdown()
        sink.server_close()


class ServiceStack:
    """A retrieval process, the offline model's and the API's."""

    def __init__(
        self,
        folder: Path,
        stack: contextlib.ExitStack,
        *,
        by_hand: bool = False,
        command: Sequence[str] = (sys.executable, "-m"),
        **telemetry: str,
    ) -> None:
        """Start the processes; `by_hand` with the spans of `service_by_hand` in place of ours.

        `command` runs a module with its arguments; `{name}` in it becomes the process's name.
        """
        folder.mkdir()
        self._command = [*command, *(["overhead.service_by_hand"] if by_hand else [])]
        self._folder = folder
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(
                ("AGENT_", "OTEL_", "SPANLOOM_", "OPENAI", "ANTHROPIC", "PROMETHEUS_")
            )
        } | {
            "AGENT_DATA_DIR": str(folder),
            "AGENT_LLM_PROVIDER": "offline",
            "PYTHONPATH": str(_ROOT / "bench"),
            **telemetry,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._stop)
        retrieval = self._start("retrieval_listening", "service.retrieval", "serve", "--port", "0")
        self._environment["AGENT_RETRIEVAL_URL"] = f"http://127.0.0.1:{retrieval}"
        model = self._start("offline_llm_ready", "service.llm", "serve", "--port", "0")
        self._environment["AGENT_OFFLINE_LLM_PORT"] = str(model)
        self.port = self._start("api_listening", "service.app", "--port", "0")
        self._wait_until_ready()

    def _start(self, event: str, module: str, *arguments: str) -> int:
        """Start a process and return the port that its log names in this event."""
        log = self._folder / f"{event}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*(part.format(name=event) for part in self._command), module, *arguments],
                cwd=_ROOT,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and process.poll() is None:
            for line in log.read_text("utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if record.get("event") == event:
                        return int(record["port"])
            time.sleep(0.1)
        raise SystemExit(f"{module} did not start:\n{log.read_text('utf-8')}")

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError), _connection(self.port) as api:
                api.request("GET", "/ready")
                if api.getresponse().status == 200:
                    return
            time.sleep(0.2)
        raise SystemExit("the API did not become ready")

    def batch(self, requests: int, parallel: int = _PARALLEL) -> tuple[float, float]:
        """Requests a second, and milliseconds of CPU a request of all three processes."""
        cpu, start = self._cpu_seconds(), time.perf_counter()
        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(self._ask, [requests // parallel] * parallel))
        seconds = time.perf_counter() - start
        return requests / seconds, (self._cpu_seconds() - cpu) / requests * 1000

    def _ask(self, requests: int) -> None:
        with _connection(self.port) as api:
            for _ in range(requests):
                number = next(_numbers)
                question = _QUESTIONS[number % len(_QUESTIONS)]
                body = json.dumps({"query": question, "session_id": f"bench-{number}"})
                api.request("POST", "/chat", body, {"Content-Type": "application/json"})
                answer = api.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise SystemExit(f"/chat answered {answer.status}: {text.decode()}")

    def signal(self, number: int) -> None:
        """Send a signal to all processes."""
        for process in self._processes:
            process.send_signal(number)

    def _cpu_seconds(self) -> float:
        ticks = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _connection(port: int) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    ) as api:
        yield api
