"""Run something that may hang, for a bounded time, also while the interpreter ends.

From Python 3.12 on no thread can be started any more when `atexit` callbacks run, and that is when
most programs send their last spans. So a few threads are started in time and wait.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

_logger: Final = logging.getLogger(__name__)

_COUNT: Final = 3
"""As many as there are providers to shut down: one that hangs must not hold up the others."""
_waiting_work: "queue.SimpleQueue[Callable[[], None]]" = queue.SimpleQueue()
_prepared_in: int | None = None


def prepare() -> None:
    """Start the waiting threads of this process; a forked child does so by itself."""
    global _prepared_in  # noqa: PLW0603 - one process, one set of threads
    if _prepared_in == os.getpid():
        return
    if _prepared_in is None and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
    _prepared_in = os.getpid()
    for _ in range(_COUNT):
        threading.Thread(target=_serve, daemon=True, name="spanloom-exit").start()


def _after_fork() -> None:
    global _waiting_work  # noqa: PLW0603
    _waiting_work = queue.SimpleQueue()  # the parent's may be locked by a thread that is not here
    try:
        prepare()
    except RuntimeError:
        _logger.debug("no thread for the end of a forked process", exc_info=True)


def _serve() -> None:
    work = _waiting_work
    while True:
        work.get()()


def run_bounded(actions: Sequence[Callable[[], Any]], timeout_s: float) -> bool:
    """Run all actions at once; whether each returned in time and was not False.

    In daemon threads, because the SDK's own timeouts are 30 s or ignored: a thread that hangs on
    a dead backend is left behind.
    """
    results: dict[int, bool] = {}
    ended = [threading.Event() for _ in actions]

    def run(index: int) -> None:
        try:
            results[index] = actions[index]() is not False
        except Exception:  # telemetry never breaks the application
            _logger.debug("flush failed", exc_info=True)
            results[index] = False
        finally:
            ended[index].set()

    deadline = time.monotonic() + timeout_s
    for index in range(len(actions)):
        try:
            threading.Thread(target=run, args=(index,), daemon=True, name="spanloom-flush").start()
        except RuntimeError:  # the interpreter ends
            if _prepared_in != os.getpid():
                return False
            _waiting_work.put(lambda index=index: run(index))  # type: ignore[misc]  # a default binds it
    for event in ended:
        event.wait(max(0.0, deadline - time.monotonic()))
    return len(results) == len(actions) and all(results.values())
