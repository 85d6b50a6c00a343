"""Starts processes in order, watches them, and stops them in reverse order.

One thread, no signal handling of its own: the caller's handlers set a `StopRequest`, and every
wait here looks at it twenty times a second.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Self

from spanloom.cli import guardian
from spanloom.cli.safe_text import clean
from spanloom.errors import ConfigurationError, SpanloomError

POLL_S = 0.05
STOP_GRACE_S = 10.0
LOG_TAIL_LINES = 20
_PROBE_TIMEOUT_S = 1.0
_TAIL_BYTES = 64 * 1024


class ChildDiedError(SpanloomError):
    """A process ended that should have kept running."""

    def __init__(self, child: "Child") -> None:
        code = child.popen.returncode
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        super().__init__(f"{child.name} {how}.{child.log_excerpt()}")


class NotHealthyError(SpanloomError):
    """A process runs but does not get healthy."""

    def __init__(self, child: "Child", url: str, timeout_s: float, answer: str) -> None:
        super().__init__(
            f"{child.name} is not healthy after {timeout_s:g} s: GET {url} {answer}."
            f"{child.log_excerpt()}"
        )


class StopRequestedError(SpanloomError):
    """The user wants everything stopped."""


class StopRequest:
    """Counts SIGINT, SIGTERM and SIGHUP. A flag, not an Event: handlers must not take locks."""

    def __init__(self) -> None:
        self.count = 0
        self.last_signal = 0

    def install(self) -> None:
        """Take the signals over from Python's defaults."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asked to outlive it
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.last_signal = number


@dataclass
class Child:
    """A started process. `own_group` is False for one that shares the terminal with us."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path | None = None
    own_group: bool = True
    followed: IO[bytes] | None = field(default=None, repr=False)

    @property
    def target(self) -> str:
        """How the guardian names it."""
        return f"{self.popen.pid}" if self.own_group else f"p{self.popen.pid}"

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        """Signal it, with its group where it has one of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.own_group:
                os.killpg(self.popen.pid, number)
            elif self.alive():
                os.kill(self.popen.pid, number)

    def log_excerpt(self) -> str:
        """The end of its log as a paragraph, cleaned for the terminal; "" without a log."""
        if self.log is None:
            return ""
        lines = tail(self.log, LOG_TAIL_LINES)
        if not lines:
            return f" It wrote nothing to {self.log}"
        text = "\n".join(f"  {clean(line)}" for line in lines)
        return f" The end of {self.log}:\n{text}"


class Supervisor:
    """The children of one `up`, as a context manager that leaves none behind."""

    def __init__(self, log_dir: Path, stop: StopRequest) -> None:
        self._log_dir = log_dir
        self._stop = stop
        self.children: list[Child] = []
        self.on_output: Callable[[str, str], None] | None = None
        """Called with (name, line) for what children write, if set before they start."""
        self._guardian = subprocess.Popen(  # noqa: S603  # our own script
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # nobody's pipe is kept open by it
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()
        if self._guardian.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guardian.stdin.close()
        self._guardian.wait()

    def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
    ) -> Child:
        """Start a process in a session of its own, its output going to `<log dir>/<name>.log`.

        The log of the run before is kept as `<name>.log.1`.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        path = self._log_dir / f"{name}.log"
        if path.exists():
            path.replace(path.with_name(f"{name}.log.1"))
        with path.open("ab") as log:
            child = Child(
                name,
                _popen(
                    name,
                    command,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    before_exec=self._registration(""),
                ),
                log=path,
            )
        if self.on_output is not None:
            child.followed = path.open("rb")
        self.children.append(child)
        return child

    def start_attached(self, command: Sequence[str], env: Mapping[str, str]) -> Child:
        """Start the user's own command on our stdin, stdout and stderr.

        On a terminal it stays in our process group: it may read the keyboard, and Ctrl-C reaches
        it directly.
        """
        own_group = not sys.stdin.isatty()
        popen = _popen(
            command[0],
            command,
            env=dict(env),
            start_new_session=own_group,
            before_exec=self._registration("" if own_group else "p"),
        )
        child = Child(command[0], popen, own_group=own_group)
        self.children.append(child)
        return child

    def _registration(self, prefix: str) -> Callable[[], None] | None:
        """What a child does between fork and exec: write its own id into the guardian's pipe.

        Were that left to us afterwards, a kill -9 in between would leave the child behind. As it
        is, the pipe stays open until the child has registered. One write(2) is safe after a fork.
        """
        if self._guardian.poll() is not None or self._guardian.stdin is None:
            return None  # somebody ended it, and a broken pipe would end the child
        descriptor = self._guardian.stdin.fileno()

        def register() -> None:
            os.write(descriptor, b"+%b%d\n" % (prefix.encode(), os.getpid()))

        return register

    def _tell_guardian(self, line: str) -> None:
        if self._guardian.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody ended it: we still stop in order
                self._guardian.stdin.write(f"{line}\n".encode())
                self._guardian.stdin.flush()

    def wait_healthy(
        self, child: Child, url: str, timeout_s: float, tick: Callable[[float], None]
    ) -> float:
        """Poll `url` until it answers 200; the seconds that took. `tick` gets the seconds so far.

        Raises ChildDiedError if any child dies, NotHealthyError, StopRequestedError.
        """
        started = time.monotonic()
        while True:
            healthy, answer = probe(url)
            waited = time.monotonic() - started
            self.check()
            if healthy:
                return waited
            if waited > timeout_s:
                raise NotHealthyError(child, url, timeout_s, answer)
            tick(waited)
            time.sleep(POLL_S)

    def check(self) -> None:
        """Pass on new output; raise if a child has died or a stop was asked for."""
        self.follow()
        if self._stop.count:
            raise StopRequestedError("stopped")
        for child in self.children:
            if not child.alive():
                raise ChildDiedError(child)

    def follow(self) -> None:
        """Hand what the children have written since last time to `on_output`."""
        for child in self.children:
            if child.followed is None or self.on_output is None:
                continue
            while (line := child.followed.readline()).endswith(b"\n"):
                self.on_output(child.name, line.decode(errors="replace").rstrip("\n"))
            child.followed.seek(-len(line), os.SEEK_CUR)  # half a line: the rest is on its way

    def stop_all(self, on_stopped: Callable[[str, bool], None] | None = None) -> None:
        """SIGTERM, at most ten seconds, then SIGKILL, for one child after the other, last first.

        `on_stopped` gets each name and whether it had to be killed. One more signal from the user
        cuts the waiting short.
        """
        already = self._stop.count
        while self.children:
            child = self.children[-1]
            was_alive = child.alive()
            child.send(signal.SIGTERM)
            killed = not self._wait_for_end(child, lambda: self._stop.count > already)
            # Also where the leader has ended: its workers may be left in the group.
            child.send(signal.SIGKILL)
            child.popen.wait()
            self.follow()
            if child.followed is not None:
                child.followed.close()
            self.children.pop()
            self._tell_guardian(f"-{child.target}")
            if was_alive and on_stopped is not None:
                on_stopped(child.name, killed)

    @staticmethod
    def _wait_for_end(child: Child, hurry: Callable[[], bool]) -> bool:
        until = time.monotonic() + STOP_GRACE_S
        while child.alive():
            if hurry() or time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        return True


def _popen(
    name: str,
    command: Sequence[str],
    *,
    env: dict[str, str],
    start_new_session: bool,
    before_exec: Callable[[], None] | None,
    stdin: int | None = None,
    stdout: IO[bytes] | None = None,
    stderr: int | None = None,
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(  # noqa: S603  # the user's own command is the point
            list(command),
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=start_new_session,
            preexec_fn=before_exec,  # noqa: PLW1509  # one write(2), see _registration
        )
    except OSError as error:
        raise ConfigurationError(f"cannot start {name} ({command[0]}): {error.strerror}") from error


def probe(url: str) -> tuple[bool, str]:
    """Whether GET answers 200, and what happened in words."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        body = response.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"gets no answer ({clean(str(error)) or type(error).__name__})"
    finally:
        connection.close()
    return response.status == http.client.OK, f"answers {response.status} {clean(body)}".rstrip()


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file, without reading all of it."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def signal_name(number: int) -> str:
    """`SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
