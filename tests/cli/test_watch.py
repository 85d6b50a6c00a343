"""`spanloom trace --watch` follows work until it has ended."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanloom.cli.main import main
from tests.builders import span, trace_id
from tests.builders_inflight import announced, heartbeat
from tests.cli.terminal import on_terminal
from tests.live_server import LiveServer, live_server

WAIT_S = 60
HOSTILE = "\x1b]0;owned\x07\x1b[31m工具 <b>\u202ex"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with live_server(tmp_path) as server:
        yield server


def command(server: LiveServer, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "spanloom", "trace", trace_id(1), "--watch", "--url", server.url,
            *arguments]  # fmt: skip


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "TERM": "xterm-256color",
        "LINES": "24",
        "COLUMNS": "100",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


@pytest.fixture
def hanging(server: LiveServer) -> Iterator[LiveServer]:
    """A request whose tool hangs, in a process that lives."""
    server.send_logs(announced("POST /chat", 1), announced(HOSTILE, 2, parent=1))
    over = threading.Event()

    def beat(sequence: int) -> None:
        server.send_logs(heartbeat(1, 2, sequence=sequence, at_ms=3_000))

    def go_on_beating() -> None:
        sequence = 1
        while not over.wait(0.3):
            sequence += 1
            beat(sequence)

    beat(1)  # stored before any test looks: without it the spans would be open for 1 s only
    thread = threading.Thread(target=go_on_beating)
    thread.start()
    yield server
    over.set()
    thread.join()


def finish(server: LiveServer) -> None:
    """It goes on and ends."""
    server.send_spans(
        span(HOSTILE, 2, parent=1, duration_ms=9_000, error="too slow"),
        span("POST /chat", 1, duration_ms=9_500),
    )


def test_a_pipe_gets_a_line_for_each_change(hanging: LiveServer) -> None:
    """Begun, ended, and how; nothing twice; then the command ends by itself."""
    with subprocess.Popen(
        command(hanging), stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment()
    ) as process:
        assert process.stdout is not None
        begun = [process.stdout.readline() for _ in range(2)]
        finish(hanging)
        ends, _ = process.communicate(timeout=WAIT_S)

    assert process.returncode == 0
    assert [line.split()[1] for line in begun] == ["running", "running"]
    words = [re.split(r"\s{2,}", line.strip()) for line in ends.splitlines()]
    final = {row[2]: row for row in words if row[1] == "ended"}
    assert set(final) == {"POST /chat", "工具 <b>x"}
    assert final["工具 <b>x"][4:] == ["9 s", "ERROR"]
    assert final["POST /chat"][4:] == ["9.5 s"]


def test_a_terminal_shows_the_tree_growing(hanging: LiveServer) -> None:
    """Running spans are drawn anew, and what stays at the end is the finished tree."""
    code, text = on_terminal(
        command(hanging),
        environment(),
        at=b"Ctrl-C stops watching",
        act=lambda _: finish(hanging),
    )

    assert code == 0, text
    assert "running" in text
    assert "2 in flight" in text
    assert "\x1b]0;owned" not in text
    assert "\u202e" not in text
    last = text.rpartition("Ctrl-C stops watching")[2]
    assert "9.5 s" in last
    assert "running" not in last


@pytest.fixture
def spanloom(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command against the server: its stdout."""
    monkeypatch.setenv("SPANLOOM_URL", server.url)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    return run


@pytest.mark.usefixtures("hanging")
def test_lists_and_trees_mark_what_is_in_flight(
    spanloom: Callable[..., str],
) -> None:
    """How many spans are open, at least how long, and in what state."""
    listed = spanloom("traces", "--tag", "spanloom.in_flight=true").splitlines()
    assert listed[0].endswith("IN FLIGHT")
    assert re.search(r" 3 s\+ +2 +2$", listed[1])
    tree = spanloom("trace", trace_id(1))
    assert "2 in flight" in tree.splitlines()[0]
    assert re.search(r"└─ 工具 <b>x +agent +3 s\+ +▒+ +running", tree)
    assert '"open_span_count": 2' in spanloom("traces", "--json")
    assert '"state": "running"' in spanloom("trace", trace_id(1), "--json")


def test_a_finished_trace_is_not_waited_for(
    server: LiveServer, spanloom: Callable[..., str]
) -> None:
    """Its lines, and the end; with --json the whole trace once it has ended."""
    finish(server)

    assert [line.split()[1] for line in spanloom("trace", trace_id(1), "--watch").splitlines()] == [
        "ended",
        "ended",
    ]
    assert '"spans"' in spanloom("trace", trace_id(1), "--watch", "--json")
