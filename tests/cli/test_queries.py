import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from spanloom import semconv
from spanloom.cli.listeners import is_taken
from spanloom.cli.main import main
from spanloom.errors import StoreUnavailableError
from spanloom.model import LogEvent, Resource, Span, Status, StatusCode
from spanloom.server import monitoring
from spanloom.server.listening import HttpServer, listen
from spanloom.server.monitoring import Monitor
from spanloom.store import StoreStats
from tests.free_ports import free_port
from tests.live_server import LiveServer, live_server

MS = 1_000_000
START = 1_790_000_000_000_000_000
HOSTILE = "\x1b[31m[bold]x[/bold]\x1b]0;t\x07\u202ey"
GOOD_ID = "abcd0000000000000000000000000001"
BAD_ID = "abcd0000000000000000000000000002"
EVIL_ID = "ef010000000000000000000000000003"


def span(
    trace_id: str, number: int, name: str, *, parent: int = 0, ms: int = 100, **fields: Any
) -> Span:
    return Span(
        trace_id=trace_id,
        span_id=f"{number:016x}",
        parent_span_id=f"{parent:016x}" if parent else "",
        name=name,
        start_time_unix_nano=START + number * MS,
        end_time_unix_nano=START + (number + ms) * MS,
        resource=Resource({"service.name": fields.pop("service", "agent-api")}),
        **fields,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("data")) as server:
        tokens = {
            semconv.GEN_AI_OPERATION_NAME: "chat",
            semconv.GEN_AI_USAGE_INPUT_TOKENS: 1200,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: 34,
            semconv.SPANLOOM_COST_USD: 0.25,
        }
        server.send_spans(
            span(GOOD_ID, 1, "POST /chat", ms=900),
            span(GOOD_ID, 2, "chat 离线模型", parent=1, ms=600, attributes=tokens),
            span(BAD_ID, 3, "POST /chat", status=Status(StatusCode.ERROR, "boom")),
            span(EVIL_ID, 4, HOSTILE, service=HOSTILE, attributes={HOSTILE: HOSTILE}),
        )
        server.send_logs(
            LogEvent(
                START + 5 * MS,
                severity_number=9,
                severity_text="info",
                body="回答完成",
                trace_id=GOOD_ID,
                span_id=f"{2:016x}",
                resource=Resource({"service.name": "agent-api"}),
            )
        )
        yield server


@pytest.fixture
def spanloom(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command against the server: exit code, stdout, stderr."""
    monkeypatch.setenv("SPANLOOM_URL", server.url)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


Run = Callable[..., tuple[int, str, str]]


def test_traces_lists_what_is_stored(spanloom: Run) -> None:
    """One line a trace with root, duration, spans, errors, tokens and cost, whole in a pipe."""
    code, out, _ = spanloom("traces")

    assert code == 0
    heading, *lines = out.splitlines()
    assert " ".join(heading.split()) == (
        "TIME TRACE ROOT DURATION SPANS ERRORS TOKENS COST IN FLIGHT"
    )
    assert len(lines) == 3
    good = next(line for line in lines if GOOD_ID in line)
    assert "agent-api POST /chat" in good
    assert re.search(r" 900 ms +2 +1,234 +\$0\.2500$", good)
    bad = next(line for line in lines if BAD_ID in line)
    assert bad.split()[-3:] == ["ms", "1", "1"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--errors"], {BAD_ID}),
        (["--service", "agent-api"], {GOOD_ID, BAD_ID}),
        (["--operation", "chat 离线模型"], {GOOD_ID}),
        (["--min-duration", "500ms"], {GOOD_ID}),
        (["--max-duration", "0.2s"], {BAD_ID, EVIL_ID}),
        (["--tag", "gen_ai.operation.name=chat"], {GOOD_ID}),
        (["--tag", "gen_ai.operation.name=chat", "--tag", "error=true"], set()),
        (["--since", "1s"], set()),
        (["--limit", "1"], {EVIL_ID}),
    ],
)
def test_traces_filters(spanloom: Run, options: list[str], found: set[str]) -> None:
    """Each option is one condition, and all must hold."""
    code, out, err = spanloom("traces", "--json", *options)

    assert (code, err) == (0, "")
    assert {trace["trace_id"] for trace in json.loads(out)["traces"]} == found


def test_no_match_is_said_on_stderr(spanloom: Run) -> None:
    """A pipe gets nothing, a person gets a word."""
    assert spanloom("traces", "--service", "nobody") == (0, "", "no traces match\n")


def test_trace_shows_the_tree_with_tokens(spanloom: Run) -> None:
    """The whole id, its beginning, a traceparent and a link all name the trace."""
    code, out, _ = spanloom("trace", GOOD_ID)

    assert code == 0
    assert "POST /chat  agent-api" in out
    assert re.search(r"└─ chat 离线模型  agent-api +600 ms .*1,200→34  \$0\.2500", out)
    for name in (
        "abcd0000000000000000000000000001"[:31] + "1",
        f"00-{GOOD_ID}-00f067aa0ba902b7-01",
        f"http://127.0.0.1:16686/trace/{GOOD_ID}",
        GOOD_ID.upper(),
    ):
        assert spanloom("trace", name)[1] == out
    assert spanloom("trace", "ef01")[0] == 0


def test_trace_shows_logs_under_their_span(spanloom: Run) -> None:
    """--logs adds the log lines; without it there are none."""
    lines = spanloom("trace", GOOD_ID, "--logs")[1].splitlines()

    assert lines[-1].endswith("INFO  回答完成")
    assert lines[-2].lstrip(" └─").startswith("chat 离线模型")
    assert "回答完成" not in spanloom("trace", GOOD_ID)[1]


def test_trace_as_json_is_otlp(spanloom: Run) -> None:
    """What comes out can be sent into any OTLP endpoint."""
    code, out, _ = spanloom("trace", GOOD_ID, "--json", "--logs")

    document = json.loads(out)
    assert code == 0
    assert document["summary"]["usage"] == {
        "input_tokens": 1200,
        "output_tokens": 34,
        "cost_usd": 0.25,
    }
    spans = document["trace"]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert {span["traceId"] for span in spans} == {GOOD_ID}
    assert document["logs"]["resourceLogs"]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("f" * 32, 1, f"there is no trace {'f' * 32} here"),
        ("abcd", 1, f"2 traces begin with abcd: {BAD_ID}, {GOOD_ID}"),
        ("9999", 1, "no trace among the 3 most recent ones begins with 9999"),
        ("xyz", 2, "'xyz' is not a trace id"),
        ("abc", 2, "'abc' is not a trace id"),
        ("\x1b[31mred", 2, "is not a trace id"),
    ],
)
def test_what_is_not_there_is_a_sentence(spanloom: Run, name: str, code: int, message: str) -> None:
    """Exit code 1 for what is not there, 2 for what cannot be."""
    actual, out, err = spanloom("trace", name)

    assert (actual, out) == (code, "")
    assert message in err
    assert err.startswith("spanloom: ")
    assert "\x1b" not in err


def test_hostile_telemetry_is_shown_harmlessly(spanloom: Run) -> None:
    """Neither lists, nor trees, nor JSON pass a control character on."""
    for arguments in (
        ["traces"],
        ["traces", "--json"],
        ["trace", EVIL_ID, "--attributes", "--logs"],
        ["trace", EVIL_ID, "--json"],
    ):
        code, out, _ = spanloom(*arguments)
        assert code == 0
        assert "[bold]x[/bold]" in out
        assert not set(out) & set("\x1b\x07\u202e")


def test_a_terminal_gets_colour_unless_no_color_is_set(
    spanloom: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR is honoured, and narrow terminals get short ids that still work."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    coloured = spanloom("traces")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = spanloom("traces")[1]

    assert "\x1b[36m" in coloured
    assert "\x1b[36m" not in plain
    assert GOOD_ID[:12] in coloured
    assert GOOD_ID not in coloured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["traces", "--min-duration", "5"], "is not a duration: '5'"),
        (["traces", "--tag", "novalue"], "--tag 'novalue' is not a condition: write key=value"),
        (["traces", "--limit", "0"], "--limit"),
        (["traces", "--url", "ftp://x"], "'ftp://x' is not an address"),
        (["traces", "--db", "/no/such/file"], "/no/such/file is not a file"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_ends_with_2(spanloom: Run, arguments: list[str], message: str) -> None:
    """The message names the option and what to write."""
    code, out, err = spanloom(*arguments)

    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_no_server_is_a_sentence_that_says_what_to_start(spanloom: Run) -> None:
    """Exit code 1, and no traceback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        code, out, err = spanloom("traces", "--url", url)

    assert (code, out) == (1, "")
    assert f"nothing answers at {url}" in err
    assert "is `spanloom serve` or `spanloom up` running" in err
    assert len(err.splitlines()) == 1


def test_a_closed_pipe_is_no_error(server: LiveServer) -> None:
    """`spanloom traces | head -0` does not print a traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", "spanloom", "trace", GOOD_ID, "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_terminal_without_unicode_gets_question_marks(server: LiveServer) -> None:
    """A locale that cannot show Chinese costs characters, not the answer."""
    result = subprocess.run(
        [sys.executable, "-m", "spanloom", "trace", GOOD_ID, "--url", server.url],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )

    assert b"POST /chat" in result.stdout
    assert result.stdout.isascii()


def test_db_reads_the_file_without_a_server(spanloom: Run, tmp_path: Path) -> None:
    """--db shows what a server stored that no longer runs."""
    with live_server(tmp_path) as other:
        other.send_spans(span(GOOD_ID, 1, "from the file"))
    (store,) = tmp_path.glob("*.sqlite")

    code, out, _ = spanloom("trace", GOOD_ID, "--db", str(store))
    assert code == 0
    assert "from the file" in out


def test_doctor_finds_its_own_span(server: LiveServer, spanloom: Run) -> None:
    """A span goes through the real exporter, OTLP, the store and the query API."""
    endpoint = server.addresses.otlp_http
    code, out, _ = spanloom("doctor", "--otlp-endpoint", endpoint, "--json")

    document = json.loads(out)
    by_name = {check["name"]: check for check in document["checks"]}
    assert by_name["test span"]["ok"], by_name["test span"]
    assert by_name[f"backend {server.url}"]["ok"]
    assert by_name["python"]["ok"]
    assert document["ok"] == all(check["ok"] for check in document["checks"])
    assert code == (0 if document["ok"] else 1)
    trace_id = re.search(r"trace ([0-9a-f]{32})", by_name["test span"]["detail"])
    assert trace_id
    answer = httpx2.get(f"{server.url}/api/spanloom/traces/{trace_id[1]}").json()
    assert "spanloom-doctor" in json.dumps(answer)


def test_doctor_says_what_is_wrong_and_what_to_do(
    spanloom: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that is not there fails two checks, each with a remedy; exit code 1."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        code, out, _ = spanloom("doctor", "--url", url, "--otlp-endpoint", url)

    assert code == 1
    lines = out.splitlines()
    backend = next(i for i, line in enumerate(lines) if line.startswith(f"fail  backend {url}"))
    assert "spanloom serve" in lines[backend + 1]
    sent = next(i for i, line in enumerate(lines) if line.startswith("fail  test span"))
    assert f"could not be sent to {url}" in lines[sent]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in lines[sent + 1]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1x", "http://127.0.0.1:99999", "ftp://x"])
def test_doctor_says_what_is_no_address(spanloom: Run, url: str) -> None:
    """Wrong usage is exit code 2 and a sentence, as everywhere."""
    code, _, err = spanloom("doctor", "--url", url)

    assert code == 2
    assert err.startswith(f"spanloom: '{url}' is not an address")


def test_doctor_recognises_a_stranger_on_the_port(
    spanloom: Run, script: Callable[[str], list[str]], eventually: Callable[..., None]
) -> None:
    """Something that answers is not yet a Spanloom server."""
    port = free_port()
    stranger = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: is_taken(port))
        code, out, _ = spanloom("doctor", "--url", f"http://127.0.0.1:{port}", "--json")
    finally:
        stranger.kill()
        stranger.wait()

    check = next(c for c in json.loads(out)["checks"] if c["name"].startswith("backend"))
    assert code == 1
    assert "not a Spanloom server" in check["detail"]


def test_doctor_passes_on_what_an_ailing_backend_says(
    spanloom: Run, eventually: Callable[..., None]
) -> None:
    """A server whose store fails is not taken for a stranger's."""

    def stats() -> StoreStats:
        raise StoreUnavailableError("the disk is gone")

    with listen("127.0.0.1", 0, "the test", "none") as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = HttpServer(Starlette(routes=monitoring.routes(Monitor(stats))), listener)
        thread = threading.Thread(target=lambda: asyncio.run(server.run_until_stopped()))
        thread.start()
        try:
            eventually(lambda: server.started)
            code, out, _ = spanloom("doctor", "--url", url, "--otlp-endpoint", url, "--json")
        finally:
            server.should_exit = True
            thread.join()

    check = next(c for c in json.loads(out)["checks"] if c["name"].startswith("backend"))
    assert code == 1
    assert check["detail"] == "unavailable: the disk is gone"
