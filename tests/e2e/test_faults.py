"""What callers see when a process they depend on is gone."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanloom import semconv
from spanloom.model import Span
from tests.e2e.stack import Stack, running_stack, traceparent

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-workers"), pytest.mark.timeout(300)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running_stack(tmp_path, AGENT_DEADLINE_S="15") as running:
        yield running


def freeze(stack: Stack, name: str) -> None:
    """Stop a process without ending it: connections are taken, nothing is answered."""
    os.kill(stack.pid(name), signal.SIGSTOP)


def thaw(stack: Stack, name: str) -> None:
    os.kill(stack.pid(name), signal.SIGCONT)


def test_the_service_answers_while_its_backend_hangs(stack: Stack) -> None:
    """Telemetry that cannot be delivered costs the caller nothing, and arrives afterwards."""
    freeze(stack, "backend")
    try:
        header, trace_id, _ = traceparent()
        answer = stack.ask("What is a KV cache?", header)
        assert answer.status_code == 200
        assert answer.json()["trace_id"] == trace_id
    finally:
        thaw(stack, "backend")

    assert stack.trace(trace_id).spans


def test_a_run_past_its_deadline_is_cut_and_its_trace_says_so(stack: Stack) -> None:
    """An LLM that hangs: 504 with the trace id; the cut spans end as timeouts."""
    header, trace_id, _ = traceparent()
    freeze(stack, "offline-llm")
    try:
        started = time.monotonic()
        answer = stack.ask("What is a KV cache?", header)
        waited = time.monotonic() - started
    finally:
        thaw(stack, "offline-llm")

    assert answer.status_code == 504, answer.text
    assert waited >= 14
    assert trace_id == answer.json()["trace_id"] == answer.headers["x-trace-id"]
    trace = stack.trace(trace_id, unanswered=True)
    cut = {span.name: span for span in trace.spans if outcome(span) == semconv.OUTCOME_TIMEOUT}
    assert {"invoke_workflow agent", "invoke_node route"} <= set(cut)
    assert any(name.startswith("chat ") for name in cut)
    assert all(span.is_error for span in cut.values())
    assert cut["invoke_node route"].attributes[semconv.SPANLOOM_DEADLINE_MS] == 15_000


def outcome(span: Span) -> object:
    return span.attributes.get(semconv.SPANLOOM_OUTCOME)
