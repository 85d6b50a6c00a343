"""A process forked in the middle of something: the lock's holder is not there to give it back."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from spanloom.telemetry import drops, usage
from tests.telemetry.forking import DONE, exit_code, forked_while_held

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
    child = forked_while_held(module._lock, work)
    assert exit_code(child) == DONE
