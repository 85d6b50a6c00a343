import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# A process as `up` meets them: it listens on the port its variable names, answers /health once
# `ready_after` probes have failed, and writes to a shared file what happened to it and when.
SERVER = """
import http.server, os, signal, sys
name, variable, journal = sys.argv[1:4]
options = dict(option.split("=") for option in sys.argv[4:])
failing = int(options.get("ready_after", 0))
probes = 0

def note(what):
    with open(journal, "a", encoding="utf-8") as file:
        file.write(f"{what} {name}\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global probes
        probes += 1
        healthy = self.path == "/health" and probes > failing
        if healthy and probes == failing + 1:
            note("healthy")
        self.send_response(200 if healthy else 503)
        self.end_headers()
        self.wfile.write(b"fine" if healthy else b"warming up")
        if self.path == "/die":
            print("\\x1b[31mlast words\\x1b[0m of", name, flush=True)
            os._exit(7)
    def log_message(self, *args):
        pass

def stop(*_):
    note("stopped")
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in options else stop)
note("started")
server = http.server.HTTPServer(("127.0.0.1", int(os.environ[variable])), Handler)
print(f"{name} listens, telemetry to {os.environ.get('OTEL_EXPORTER_OTLP_ENDPOINT')}", flush=True)
server.serve_forever()
"""


@pytest.fixture
def server_script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER, encoding="utf-8")
    return path


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], list[str]]:
    """The command that runs a small Python program."""

    def write(source: str) -> list[str]:
        path = tmp_path / f"program-{len(list(tmp_path.glob('program-*')))}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return [sys.executable, str(path)]

    return write


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds."""

    def wait(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.05)

    return wait


@pytest.fixture
def running() -> Callable[[int], bool]:
    """Whether a process runs; one that ended and waits to be reaped does not."""

    def look(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return not Path("/proc").is_dir()
        return state[0] not in "ZX"

    return look
