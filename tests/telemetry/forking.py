"""A child forked while another thread holds a lock, which nobody in the child gives back."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

DONE: Final = 7
"""Exit code of a child whose work came to its end."""


def forked_while_held(lock: Any, work: Callable[[], object]) -> int:
    """Process id of a child that does `work` and exits with DONE, or with 1 where it raises."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(DONE)
        finally:
            os._exit(1)
    done.set()
    holder.join()
    return child


def exit_code(child: int) -> int | None:
    """Of a child that ends within a minute; None for one that hangs."""
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
