"""A task is given its traced `proc` in place; a task that cannot be is left as it is."""

from typing import Any, NamedTuple

import pytest
from langgraph.types import PregelExecutableTask
from opentelemetry import trace

from spanloom.telemetry.langgraph import context
from spanloom.telemetry.langgraph.nodes import TracedProc, trace_task

TRACER = trace.NoOpTracer()


class Proc:
    """What runs a node."""


def task(proc: Any, **config: Any) -> Any:
    fields: dict[str, Any] = {"name": "节点", "proc": proc, "config": config, "triggers": ["x"]}
    names = PregelExecutableTask.__dataclass_fields__
    return PregelExecutableTask(**{name: fields.get(name) for name in names})


def traced(given: Any) -> Any:
    """The task after LangGraph has handed it over to be run."""
    trace_task(TRACER, (given,), {})
    return given


def test_a_frozen_task_is_given_its_traced_proc_and_stays_the_same_task() -> None:
    proc = Proc()
    given = task(proc)
    trace_task(TRACER, (), {"task": given})  # by its name, as well
    assert isinstance(given.proc, TracedProc)
    assert given.proc._proc is proc


def test_a_task_that_runs_once_more_is_not_traced_twice() -> None:
    proc = Proc()
    given = task(proc)
    first = traced(given).proc
    second = traced(given).proc
    assert second is not first
    assert second._proc is proc


def test_a_hidden_task_is_left_as_it_is() -> None:
    given = task(Proc(), tags=["langsmith:hidden"])
    assert type(traced(given).proc) is Proc


def test_a_task_that_cannot_be_changed_runs_untraced_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a LangGraph to come, whose tasks might be tuples."""

    class TupleTask(NamedTuple):
        name: str
        proc: Any
        config: dict[str, Any]
        triggers: list[str]

    monkeypatch.setattr(context, "_warned", set())
    for _ in range(2):
        given = TupleTask("节点", Proc(), {}, [])
        assert type(traced(given).proc) is Proc
    assert [record.getMessage() for record in caplog.records] == [
        "LangGraph's tasks have a shape unknown to Spanloom; spans will be missing"
    ]
