"""A process forked in the middle of something: the lock's holder is not there to give it back."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from spanloom.telemetry import drops, usage

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


def add_usage() -> None:
    with usage.UsageScope() as scope:
        usage.add_usage(3, 4)
    assert scope.output_tokens == 4


@pytest.mark.parametrize(
    ("module", "work"),
    [(usage, add_usage), (drops, lambda: drops.record_drop("traces", drops.QUEUE_FULL))],
    ids=["usage", "drops"],
)
def test_a_child_goes_on(module: Any, work: Callable[[], None]) -> None:
    """Another thread held the lock when the child was forked."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with module._lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(7)
        finally:
            os._exit(1)
    done.set()
    holder.join()
    assert exit_code(child) == 7


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
