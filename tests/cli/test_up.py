import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spanloom.cli.listeners import free_ports, is_taken
from tests.cli.terminal import on_terminal

# Each chooses free ports some time before it opens them: two at once could choose the same.
pytestmark = pytest.mark.xdist_group("up")

ROOT = Path(__file__).parents[2]
START_S = 60
Eventually = Callable[..., None]
Running = Callable[[int], bool]


class Up:
    """A running `spanloom up`, ended when the test ends, however it ends."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self._processes: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "spanloom", "up", *arguments],
            cwd=self._checkout,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def ready(self, *arguments: str, **env: str) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
        """Started with `--ports auto --json`, and what it printed."""
        process = self("--ports", "auto", "--json", *arguments, **env)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=START_S)[1]
        return process, json.loads(line)

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def checkout(tmp_path: Path, server_script: Path) -> Path:
    """A folder with a processes.toml of three small servers."""
    journal = tmp_path / "journal"
    tables = []
    for number, (name, options) in enumerate(
        {"index": ["ready_after=2"], "model": [], "api": []}.items()
    ):
        command = ["{python}", str(server_script), name, f"{name.upper()}_PORT", str(journal)]
        request = 'request = { path = "/chat", body = \'{"query": "为什么？"}\' }'
        tables.append(
            f'[[process]]\nname = "{name}"\ncommand = {json.dumps(command + options)}\n'
            f'port = {9990 + number}\nport_env = "{name.upper()}_PORT"\nhealth = "/health"\n'
            f'description = "the {name}"\n{request if name == "api" else ""}\n'
        )
    folder = tmp_path / "a folder 目录"
    (folder / "service").mkdir(parents=True)
    (folder / "service/processes.toml").write_text("\n".join(tables), encoding="utf-8")
    return folder


@pytest.fixture
def up(checkout: Path) -> Iterator[Up]:
    up = Up(checkout)
    yield up
    up.end()


def journal(checkout: Path) -> list[str]:
    path = checkout.parent / "journal"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_everything_starts_in_order_and_stops_in_reverse(up: Up, checkout: Path) -> None:
    """Each process starts once the one before is healthy; Ctrl-C ends all, with exit code 0."""
    process, document = up.ready()

    assert journal(checkout) == [
        *("started index", "healthy index"),
        *("started model", "healthy model"),
        *("started api", "healthy api"),
    ]
    assert list(document["pids"]) == ["backend", "index", "model", "api"]
    assert httpx2.get(f"{document['query']}/health").json()["status"] == "ok"
    for url in document["processes"].values():
        assert httpx2.get(f"{url}/health").status_code == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=START_S)

    assert process.returncode == 0
    assert journal(checkout)[6:] == ["stopped api", "stopped model", "stopped index"]
    assert re.search(
        r"stopping\napi +stopped\nmodel +stopped\nindex +stopped\nbackend +stopped\n$", errors
    )
    assert "Traceback" not in errors


def test_the_ready_line_offers_a_request_and_its_trace(up: Up) -> None:
    """The curl's traceparent names the trace of the link; processes know where telemetry goes."""
    _, document = up.ready()

    assert re.fullmatch(rf"00-{document['trace_id']}-[0-9a-f]{{16}}-01", document["traceparent"])
    assert document["trace_url"] == f"{document['query']}/trace/{document['trace_id']}"
    assert f"{document['processes']['api']}/chat" in document["curl"]
    assert document["traceparent"] in document["curl"]
    assert "为什么？" in document["curl"]
    log = Path(document["logs"]["api"]).read_text(encoding="utf-8")
    assert f"api listens, telemetry to {document['otlp_http']}" in log


def test_a_pipe_gets_plain_lines(up: Up) -> None:
    """Progress, addresses, the request to paste, and no escape sequence."""
    process = up("--ports", "auto")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(lines)

    assert re.search(
        r"^index    http://127\.0\.0\.1:\d+  healthy in \d+\.\d s$", text, re.MULTILINE
    )
    assert re.search(r"^  api     http://127\.0\.0\.1:\d+ .*  the api$", text, re.MULTILINE)
    assert "  curl -s http://127.0.0.1:" in text
    assert re.search(r"^  http://127\.0\.0\.1:\d+/trace/[0-9a-f]{32}$", text, re.MULTILINE)
    assert "\x1b" not in text
    process.send_signal(signal.SIGTERM)
    assert process.wait(START_S) == 0


def test_a_taken_port_stops_everything_before_it_starts(up: Up, checkout: Path) -> None:
    """One message: which port, who needs it, who holds it, what to set. Exit code 2."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = sock.getsockname()[1]
        free = list(map(str, free_ports(5)))
        ports = dict(zip(("INDEX_PORT", "MODEL_PORT"), free[:2], strict=True))
        process = up(
            *("--otlp-grpc-port", free[2], "--otlp-http-port", free[3], "--query-port", free[4]),
            API_PORT=str(taken),
            **ports,
        )
        out, errors = process.communicate(timeout=START_S)

    assert (process.returncode, out) == (2, "")
    assert errors.startswith("spanloom: nothing was started:\n")
    assert f"\n  port {taken}, which api needs, is held by " in errors
    assert f"pid {os.getpid()} (" in errors or "another process" in errors
    assert "set API_PORT" in errors
    assert "--ports auto" in errors
    assert journal(checkout) == []


def test_a_dying_process_ends_the_rest_and_is_explained(up: Up, checkout: Path) -> None:
    """Which, with what exit code, its last words, and where its log is; exit code 1."""
    process, document = up.ready()
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"{document['processes']['model']}/die").raise_for_status().read()
    _, errors = process.communicate(timeout=START_S)

    assert process.returncode == 1
    assert (
        f"spanloom: model ended with exit code 7. The end of {document['logs']['model']}:" in errors
    )
    assert "  last words of model\n" in errors
    assert journal(checkout)[-2:] == ["stopped api", "stopped index"]
    assert "Traceback" not in errors


def test_kill_9_of_up_leaves_nothing_behind(
    up: Up, eventually: Eventually, running: Running
) -> None:
    """Neither the backend nor a process survives."""
    process, document = up.ready()
    pids = document["pids"].values()
    assert all(map(running, pids))

    process.kill()
    process.wait()

    eventually(lambda: not any(map(running, pids)))
    # its threads may end after the process's first one, which is what is seen of it
    eventually(lambda: not is_taken(int(document["query"].rpartition(":")[2])))


def test_ctrl_c_while_starting_stops_what_has_started(
    up: Up, checkout: Path, eventually: Eventually
) -> None:
    """Nobody has to wait for readiness to stop."""
    file = checkout / "service/processes.toml"
    file.write_text(file.read_text().replace("ready_after=2", "ready_after=100000"))
    process = up("--ports", "auto")
    eventually(lambda: "started index" in journal(checkout))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=START_S)

    assert (process.returncode, errors) == (0, "")
    assert journal(checkout)[-1] == "stopped index"


def test_verbose_shows_what_the_processes_write(up: Up) -> None:
    """Each line with the name of who wrote it."""
    process, _ = up.ready("--verbose")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=START_S)

    assert re.search(r"^api     │ api listens", errors, re.MULTILINE)


def test_without_a_checkout_the_message_says_what_can_be_done(tmp_path: Path) -> None:
    """Exit code 2, and three ways out."""
    result = subprocess.run(
        [sys.executable, "-m", "spanloom", "up"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stdout) == (2, "")
    assert "there is no service/processes.toml here" in result.stderr
    assert "spanloom up -- CMD" in result.stderr


def test_a_command_of_one_s_own_is_traced_without_a_change(
    up: Up, script: Callable[[str], list[str]]
) -> None:
    """The plain SDK finds the backend by OTEL_*; the command's exit code and output are ours."""
    command = script("""
        import os, sys, time, httpx2
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        with provider.get_tracer("user").start_as_current_span("自己的命令") as span:
            trace_id = format(span.get_span_context().trace_id, "032x")
        provider.shutdown()
        url = os.environ["SPANLOOM_URL"] + "/api/spanloom/traces/" + trace_id
        print(os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"], httpx2.get(url).text)
        sys.exit(5)
    """)
    process = up("--ports", "auto", "--", *command)
    out, errors = process.communicate(timeout=START_S)

    assert process.returncode == 5, errors
    assert out.startswith("http/protobuf {")
    assert "自己的命令" in out
    assert "traces at http://127.0.0.1:" in errors


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 42), (signal.SIGTERM, 43)], ids=["ctrl-c", "sigterm"]
)
def test_signals_reach_the_command_and_its_answer_counts(
    up: Up, script: Callable[[str], list[str]], number: signal.Signals, code: int
) -> None:
    """The command decides how it ends; then the backend ends too."""
    command = script("""
        import signal, sys, time
        signal.signal(signal.SIGINT, lambda *_: sys.exit(42))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(43))
        print("ready", flush=True)
        time.sleep(600)
    """)
    process = up("--ports", "auto", "--", *command)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=START_S)

    assert process.returncode == code


def test_a_command_goes_on_when_the_backend_dies(
    up: Up, script: Callable[[str], list[str]], eventually: Eventually, tmp_path: Path
) -> None:
    """Telemetry never takes the application with it."""
    go_on = tmp_path / "go-on"
    command = script(f"""
        import pathlib, time
        while not pathlib.Path({str(go_on)!r}).exists():
            time.sleep(0.05)
        print("done")
    """)
    process, document = up.ready("--", *command)
    os.kill(document["pids"]["backend"], signal.SIGKILL)
    assert process.stderr is not None
    for line in process.stderr:
        if "Your command goes on without a backend." in line:
            break
    go_on.touch()
    out, _ = process.communicate(timeout=START_S)

    assert (process.returncode, out) == (0, "done\n")


def test_a_command_that_cannot_be_started_is_a_sentence(up: Up) -> None:
    """Exit code 2, and the backend does not stay."""
    process = up("--ports", "auto", "--", "/no/such/program")
    out, errors = process.communicate(timeout=START_S)

    assert (process.returncode, out) == (2, "")
    assert "cannot start /no/such/program (/no/such/program): No such file" in errors


def test_on_a_terminal_progress_moves_and_ctrl_c_stops(checkout: Path) -> None:
    """The keyboard's Ctrl-C goes to up alone, so the processes stop in order."""
    command = [sys.executable, "-m", "spanloom", "up", "--ports", "auto"]
    code, text = on_terminal(
        command,
        {**os.environ, "PYTHONPATH": str(ROOT)},
        at=b"Ctrl-C stops everything",
        act=lambda terminal: os.write(terminal, b"\x03"),
        folder=checkout,
    )

    assert code == 0, text
    assert "✓" in text
    assert "starting" in text
    assert journal(checkout)[-3:] == ["stopped api", "stopped model", "stopped index"]
