"""A program on a terminal of its own."""

import os
import pty
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path

WAIT_S = 60


def on_terminal(
    command: list[str],
    environment: Mapping[str, str],
    *,
    at: bytes,
    act: Callable[[int], None],
    folder: Path | None = None,
) -> tuple[int, str]:
    """Run a program to its end; its exit code, and all that the terminal showed.

    `act` is called once, with the terminal's descriptor, when `at` has been shown.
    """
    pid, main_end = pty.fork()
    if pid == 0:
        if folder is not None:
            os.chdir(folder)
        os.execve(command[0], command, {**environment, "TERM": "xterm-256color"})
    shown = b""
    until = time.monotonic() + WAIT_S
    acted = False
    while time.monotonic() < until:
        readable, _, _ = select.select([main_end], [], [], 1)
        if readable:
            try:
                chunk = os.read(main_end, 65536)
            except OSError:  # Linux's way to say that the terminal is closed
                break
            if not chunk:
                break
            shown += chunk
        if at in shown and not acted:
            act(main_end)
            acted = True
    _, status = os.waitpid(pid, 0)
    os.close(main_end)
    return os.waitstatus_to_exitcode(status), shown.decode()
