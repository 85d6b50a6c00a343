"""Asking a program until it has the answer."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx2

WAIT_S = 60
_Answer = TypeVar("_Answer")


def eventually(ask: Callable[[], _Answer], what: str, *, within_s: float = WAIT_S) -> _Answer:
    """The first answer that is not empty; AssertionError after a minute."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.5)
    raise AssertionError(f"nothing after {within_s} s: {what}")


def data(url: str, **params: str | float) -> Any:
    """The `data` of an answer of Prometheus, Loki or Jaeger."""
    answer = httpx2.get(url, params=params, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]
