import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanloom.cli import supervisor as supervising
from spanloom.cli.supervisor import (
    ChildDiedError,
    NotHealthyError,
    StopRequest,
    StopRequestedError,
    Supervisor,
    tail,
)
from spanloom.errors import ConfigurationError
from tests.free_ports import free_port

Script = Callable[[str], list[str]]
Eventually = Callable[..., None]


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


@pytest.fixture
def supervisor(tmp_path: Path, stop: StopRequest) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "log", stop) as supervisor:
        yield supervisor


def server_command(script: Path, name: str, journal: Path, *options: str) -> list[str]:
    return [sys.executable, str(script), name, "PORT", str(journal), *options]


def test_a_process_is_awaited_until_its_health_answers_200(
    supervisor: Supervisor, server_script: Path, tmp_path: Path
) -> None:
    """Health is polled through refused connections and 503 answers."""
    port = free_port()
    journal = tmp_path / "journal"
    command = server_command(server_script, "slow", journal, "ready_after=3")
    child = supervisor.start("slow", command, {**os.environ, "PORT": str(port)})
    ticks: list[float] = []

    supervisor.wait_healthy(child, f"http://127.0.0.1:{port}/health", 30, ticks.append)

    assert journal.read_text(encoding="utf-8").split("\n")[:2] == ["started slow", "healthy slow"]
    assert len(ticks) >= 3


def test_a_process_that_never_gets_healthy_is_reported_with_its_answer(
    supervisor: Supervisor, server_script: Path, tmp_path: Path, eventually: Eventually
) -> None:
    """The message has the address, the last answer and the end of the log."""
    port = free_port()
    command = server_command(server_script, "ill", tmp_path / "journal", "ready_after=9999")
    child = supervisor.start("ill", command, {**os.environ, "PORT": str(port)})
    url = f"http://127.0.0.1:{port}/health"
    eventually(lambda: supervising.probe(url)[1].startswith("answers"))  # 3 s may not start Python
    with pytest.raises(NotHealthyError) as caught:
        supervisor.wait_healthy(child, url, 3, lambda _: None)

    assert f"ill is not healthy after 3 s: GET {url} answers 503 warming up" in str(caught.value)
    assert "ill listens" in str(caught.value)


def test_a_death_is_reported_with_exit_code_and_the_end_of_the_log(
    supervisor: Supervisor, script: Script, eventually: Eventually
) -> None:
    """Twenty lines are shown, without the escape sequences a terminal would act on."""
    command = script("""
        for number in range(100):
            print(f"line {number} \\x1b[31mred\\x1b[0m 中文")
        raise SystemExit(3)
    """)
    child = supervisor.start("brief", command, os.environ)
    eventually(lambda: not child.alive())
    with pytest.raises(ChildDiedError) as caught:
        supervisor.check()

    message = str(caught.value)
    assert message.startswith(f"brief ended with exit code 3. The end of {child.log}:\n")
    assert message.split("\n")[1:] == [f"  line {number} red 中文" for number in range(80, 100)]


def test_a_death_by_signal_is_named(
    supervisor: Supervisor, script: Script, eventually: Eventually
) -> None:
    """An exit code of -9 says little; the signal's name says more."""
    child = supervisor.start("victim", script("import time; time.sleep(600)"), os.environ)
    child.popen.kill()
    eventually(lambda: not child.alive())
    with pytest.raises(ChildDiedError, match=r"^victim was killed by SIGKILL\. It wrote nothing"):
        supervisor.check()


def test_a_command_that_does_not_exist_is_a_sentence(supervisor: Supervisor) -> None:
    """The message names the process and the command."""
    with pytest.raises(ConfigurationError, match=r"cannot start api \(/no/such\): No such file"):
        supervisor.start("api", ["/no/such"], os.environ)


def test_everything_stops_in_reverse_order(
    supervisor: Supervisor, server_script: Path, tmp_path: Path
) -> None:
    """Who was started last and depends on the others goes first."""
    journal = tmp_path / "journal"
    for name in ("one", "two", "three"):
        port = free_port()
        command = server_command(server_script, name, journal)
        child = supervisor.start(name, command, {**os.environ, "PORT": str(port)})
        supervisor.wait_healthy(child, f"http://127.0.0.1:{port}/health", 30, lambda _: None)
    told: list[tuple[str, bool]] = []

    supervisor.stop_all(lambda name, killed: told.append((name, killed)))

    stopped = [line for line in journal.read_text().splitlines() if line.startswith("stopped")]
    assert stopped == ["stopped three", "stopped two", "stopped one"]
    assert told == [("three", False), ("two", False), ("one", False)]


def test_who_ignores_sigterm_is_killed(
    supervisor: Supervisor,
    server_script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the grace SIGKILL follows, and the caller is told."""
    monkeypatch.setattr(supervising, "STOP_GRACE_S", 0.3)
    port = free_port()
    command = server_command(server_script, "mule", tmp_path / "journal", "stubborn=1")
    child = supervisor.start("mule", command, {**os.environ, "PORT": str(port)})
    supervisor.wait_healthy(child, f"http://127.0.0.1:{port}/health", 30, lambda _: None)
    told: list[tuple[str, bool]] = []

    supervisor.stop_all(lambda name, killed: told.append((name, killed)))

    assert told == [("mule", True)]
    assert child.popen.returncode == -signal.SIGKILL


def test_a_second_signal_cuts_the_waiting_short(
    supervisor: Supervisor, stop: StopRequest, server_script: Path, tmp_path: Path
) -> None:
    """Who presses Ctrl-C again does not want to wait ten seconds."""
    port = free_port()
    command = server_command(server_script, "mule", tmp_path / "journal", "stubborn=1")
    child = supervisor.start("mule", command, {**os.environ, "PORT": str(port)})
    supervisor.wait_healthy(child, f"http://127.0.0.1:{port}/health", 30, lambda _: None)
    previous = {number: signal.getsignal(number) for number in (2, 15, 1)}
    stop.install()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequestedError):
            supervisor.check()
        killer = subprocess.Popen(
            [sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({os.getpid()}, 2)"]
        )
        supervisor.stop_all()
        killer.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

    assert child.popen.returncode == -signal.SIGKILL
    assert stop.count == 2


def test_workers_of_a_dead_process_are_stopped_too(
    supervisor: Supervisor,
    script: Script,
    tmp_path: Path,
    eventually: Eventually,
    running: Callable[[int], bool],
) -> None:
    """A server killed from outside leaves workers behind; they are in its process group."""
    worker_file = tmp_path / "worker"
    command = script(f"""
        import pathlib, subprocess, sys, time
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(worker_file)!r}).write_text(str(worker.pid))
        time.sleep(600)
    """)
    child = supervisor.start("server", command, os.environ)
    eventually(lambda: worker_file.exists() and worker_file.read_text())
    worker = int(worker_file.read_text())
    os.kill(child.popen.pid, signal.SIGKILL)
    eventually(lambda: not child.alive())
    assert running(worker)

    supervisor.stop_all()

    eventually(lambda: not running(worker))


def test_the_log_of_the_run_before_is_kept(supervisor: Supervisor, script: Script) -> None:
    """One run's log is not mixed with another's, and yesterday's crash can still be read."""
    for word in ("first", "second"):
        supervisor.start("api", script(f"print({word!r})"), os.environ).popen.wait()

    log = supervisor.children[-1].log
    assert log is not None
    assert log.read_text() == "second\n"
    assert log.with_name("api.log.1").read_text() == "first\n"


def test_output_is_followed_line_by_line(
    supervisor: Supervisor, script: Script, tmp_path: Path, eventually: Eventually
) -> None:
    """A line is passed on when it is complete, not in the middle of a word."""
    go_on = tmp_path / "go-on"
    heard: list[tuple[str, str]] = []
    supervisor.on_output = lambda name, line: heard.append((name, line))
    child = supervisor.start(
        "talker",
        script(f"""
            import pathlib, time
            print("one\\nhalf a", end="", flush=True)
            while not pathlib.Path({str(go_on)!r}).exists():
                time.sleep(0.02)
            print(" line 中文", flush=True)
        """),
        os.environ,
    )
    log = child.log
    assert log is not None
    eventually(lambda: "half" in log.read_text())
    supervisor.follow()
    assert heard == [("talker", "one")]
    go_on.touch()
    child.popen.wait()
    supervisor.follow()

    assert heard == [("talker", "one"), ("talker", "half a line 中文")]


def test_kill_9_leaves_no_process_behind(
    script: Script, tmp_path: Path, eventually: Eventually, running: Callable[[int], bool]
) -> None:
    """Whoever supervises may die in any way: its children, and their workers, go too."""
    pids_file = tmp_path / "pids"
    child = script(f"""
        import os, subprocess, sys, time
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open({str(pids_file)!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n{{worker.pid}}\\n")
        time.sleep(600)
    """)
    supervising_program = script(f"""
        import os, pathlib, time
        from spanloom.cli.supervisor import StopRequest, Supervisor
        with Supervisor(pathlib.Path({str(tmp_path / "log")!r}), StopRequest()) as supervisor:
            supervisor.start("one", {child!r}, os.environ)
            supervisor.start("two", {child!r}, os.environ)
            time.sleep(600)
    """)
    parent = subprocess.Popen(
        supervising_program, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    eventually(lambda: pids_file.exists() and len(pids_file.read_text().splitlines()) == 4)
    pids = [int(line) for line in pids_file.read_text().splitlines()]
    assert all(map(running, pids))

    parent.kill()
    parent.wait()

    eventually(lambda: not any(map(running, pids)))


def test_tail_reads_only_the_end(tmp_path: Path) -> None:
    """A log of any size costs the same; a file that is not there has no lines."""
    log = tmp_path / "log"
    log.write_text("\n".join(f"行 {number}" for number in range(100_000)), encoding="utf-8")

    assert tail(log, 2) == ["行 99998", "行 99999"]
    assert tail(tmp_path / "none", 2) == []
