import os
import threading
from typing import Any

import pytest

from spanloom.telemetry import bounded


def no_new_threads(*_: Any) -> None:
    raise RuntimeError("can't start new thread at interpreter shutdown")


def test_actions_run_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a program from Python 3.12 on: threads that wait take the work."""
    bounded.prepare()
    monkeypatch.setattr(threading.Thread, "start", no_new_threads)
    done: list[str] = []

    assert bounded.run_bounded([lambda: done.append("a"), lambda: done.append("b")], 30)
    assert sorted(done) == ["a", "b"]


def test_one_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are run, and the answer says that not all was done."""
    bounded.prepare()
    monkeypatch.setattr(threading.Thread, "start", no_new_threads)
    release, ran = threading.Event(), threading.Event()

    assert not bounded.run_bounded([release.wait, ran.set], 0.2)
    assert ran.wait(30)
    release.set()


def test_what_fails_is_not_done() -> None:
    """An exception and an answer of False both mean no."""

    def broken() -> None:
        raise OSError("gone")

    assert not bounded.run_bounded([broken], 30)
    assert not bounded.run_bounded([lambda: False], 30)
    assert bounded.run_bounded([], 30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of the parent are not there; the child's are."""
    bounded.prepare()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(threading.Thread, "start", no_new_threads)
        done = bounded.run_bounded([lambda: None], 30)
        os._exit(0 if done else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
