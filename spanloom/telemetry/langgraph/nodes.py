"""Node spans: one around each attempt LangGraph makes to run a task.

LangGraph runs every task, a node or a functional `@task`, through `run_with_retry(task, …)`,
which calls `task.proc.invoke`, `ainvoke` or `astream` once per attempt. The task is handed on
with its `proc` wrapped, so the wrapper sees exactly the attempts.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Tracer
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import endings
from spanloom.telemetry.langgraph import classify
from spanloom.telemetry.langgraph.context import (
    Frame,
    Guard,
    Unit,
    aiterate,
    arun,
    frame_of,
    run,
    warn_once,
)
from spanloom.telemetry.usage import current_scope

_NOTING: Final = Guard("a node timeout cannot be described")


class TracedProc:
    """Stands in for a task's `proc` and makes each call of it a span."""

    __slots__ = ("_attempt", "_metadata", "_name", "_proc", "_tracer", "_triggers", "unit")

    def __init__(self, tracer: Tracer, task: Any, proc: Any) -> None:
        """Hold what the task is and not the task, which holds this: no cycle keeps spans alive."""
        self._tracer = tracer
        self._name = task.name
        self._metadata = task.config.get("metadata")
        self._triggers = task.triggers
        self._proc = proc
        self._attempt = 0
        self.unit: Unit | None = None
        """The attempt that is running, or ran last."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proc, name)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Run one attempt in this thread."""
        return run(self._start, self._proc.invoke, args, kwargs)

    def ainvoke(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Run one attempt in this task."""
        return arun(self._start, self._proc.ainvoke, args, kwargs)

    def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Run one attempt as a stream, which is how LangGraph runs nodes for astream_events."""
        body = functools.partial(self._proc.astream, *args, **kwargs)
        return aiterate(self._start, body, get_current())

    def _start(self, context: Context) -> Unit:
        self._attempt += 1
        name = self._name
        metadata = self._metadata or {}
        scope = current_scope(context)
        outer = frame_of(scope)
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_INVOKE_NODE,
            semconv.GEN_AI_NODE_NAME: name,
            semconv.LANGGRAPH_ATTEMPT: self._attempt,
        }
        if (step := metadata.get("langgraph_step")) is not None:
            attributes[semconv.LANGGRAPH_STEP] = step
        if triggers := self._triggers:
            attributes[semconv.LANGGRAPH_TRIGGERS] = triggers
        if namespace := metadata.get("langgraph_checkpoint_ns"):
            attributes[semconv.LANGGRAPH_CHECKPOINT_NS] = namespace
        conversation_id = agent_name = None
        if outer is not None:
            conversation_id, agent_name = outer.conversation_id, outer.agent_name
        if conversation_id is not None:
            attributes[semconv.GEN_AI_CONVERSATION_ID] = conversation_id
        self.unit = Unit(
            self._tracer,
            f"{semconv.OP_INVOKE_NODE} {name}",
            attributes,
            context=context,
            frame=Frame(scope, conversation_id, agent_name, node=name),
            outer=outer,
        )
        return self.unit

    def timed_out(self, exc: BaseException) -> None:
        """Note that LangGraph has given this attempt up.

        The body is cancelled and only ends later; its spans end then, as cut by this timeout.
        """
        unit = self.unit
        if unit is None or unit.frame is None:
            return
        unit.frame.cut_by = exc
        if unit.span.is_recording():
            if isinstance(seconds := getattr(exc, "timeout", None), int | float):
                unit.span.set_attribute(semconv.SPANLOOM_DEADLINE_MS, round(seconds * 1000))
            endings.record_exception_once(unit.span, exc)


def trace_task(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give the task that is about to run a traced `proc`, where a span is due. Never raises.

    Tasks are frozen, but each is made for one execution and nothing else reads its `proc`; a copy
    of one costs as much as the end of a span.
    """
    try:
        task = args[0] if args else kwargs["task"]
        if classify.is_visible_node(task.config.get("tags")):
            proc = task.proc
            if proc.__class__ is TracedProc:  # run once more
                proc = proc._proc  # noqa: SLF001 - our own
            object.__setattr__(task, "proc", TracedProc(tracer, task, proc))
    except Exception:  # noqa: BLE001 - telemetry never breaks the application
        warn_once("LangGraph's tasks have a shape unknown to Spanloom", exc_info=True)


def trace_run_with_retry(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `langgraph.pregel._runner.run_with_retry`."""

    @functools.wraps(original)
    def run_with_retry(*args: Any, **kwargs: Any) -> Any:
        trace_task(tracer, args, kwargs)
        return original(*args, **kwargs)

    return run_with_retry


def trace_arun_with_retry(
    tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `langgraph.pregel._runner.arun_with_retry`."""

    @functools.wraps(original)
    def arun_with_retry(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        trace_task(tracer, args, kwargs)
        return original(*args, **kwargs)

    return arun_with_retry


def trace_run_with_timeout(
    _tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `langgraph.pregel._retry._arun_with_timeout`, which gives an attempt up."""

    @functools.wraps(original)
    async def arun_with_timeout(*args: Any, **kwargs: Any) -> Any:
        try:
            return await original(*args, **kwargs)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            if type(exc).__name__ == "NodeTimeoutError":
                with _NOTING:
                    proc = (args[0] if args else kwargs["task"]).proc
                    if isinstance(proc, TracedProc):
                        proc.timed_out(exc)
            raise

    return arun_with_timeout
