"""Workflow and agent spans: one around each run of a compiled graph, nested runs included.

`invoke` and `ainvoke` read `stream` and `astream`. The span is around the outer one of the two: a
stream is attached and reset for each item, and what is invoked once.
"""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any, Final

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Tracer
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import endings, metrics
from spanloom.telemetry.langgraph import classify
from spanloom.telemetry.langgraph.context import (
    Frame,
    Guard,
    Unit,
    aiterate,
    arun,
    frame_of,
    iterate,
    run,
)
from spanloom.telemetry.langgraph.resume import run_frame
from spanloom.telemetry.usage import current_scope

_NOTING: Final = Guard("an interrupt cannot be noted")


class GraphRun(Unit):
    """One run of a graph."""

    __slots__ = ("_name", "_operation")

    def __init__(
        self, tracer: Tracer, graph: Any, config: Any, context: Context, *, is_invoked: bool = False
    ) -> None:
        scope = current_scope(context)
        outer = frame_of(scope)
        own: Mapping[str, Any] = graph.config or {}
        metadata = own.get("metadata")
        name = classify.graph_name(metadata, graph.nodes, graph.get_name())
        operation = classify.graph_kind(metadata, graph.nodes, name)
        given = config.get("configurable") if config else None
        conversation_id = classify.conversation_id(given, own.get("configurable"))
        if conversation_id is None and outer is not None:
            conversation_id = outer.conversation_id
        is_agent = operation == semconv.OP_INVOKE_AGENT
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: operation,
            semconv.GEN_AI_AGENT_NAME if is_agent else semconv.GEN_AI_WORKFLOW_NAME: name,
        }
        if conversation_id is not None:
            attributes[semconv.GEN_AI_CONVERSATION_ID] = conversation_id
        frame = Frame(scope, conversation_id, name if is_agent else None)
        self._name = name
        self._operation = operation
        super().__init__(
            tracer, f"{operation} {name}", attributes, context=context, frame=frame, outer=outer
        )
        frame.run_span = self.span
        if is_invoked:
            frame.to_be_read = graph

    def _read(self, result: Any) -> endings.Ending | None:
        del result  # LangGraph reports an interrupt to its caller as an ordinary result
        assert self.frame is not None
        return endings.INTERRUPTED if self.frame.interrupted else None

    def _describe(self, ending: endings.Ending, attributes: dict[str, AttributeValue]) -> None:
        super()._describe(ending, attributes)
        record = (
            metrics.record_agent
            if self._operation == semconv.OP_INVOKE_AGENT
            else metrics.record_workflow
        )
        record(name=self._name, seconds=self.seconds, error_type=ending.error_type)


def _starter(
    tracer: Tracer,
    graph: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    is_invoked: bool = False,
) -> Callable[[Context], GraphRun]:
    config = args[1] if len(args) > 1 else kwargs.get("config")
    return functools.partial(GraphRun, tracer, graph, config, is_invoked=is_invoked)


def _is_read_by_its_run(graph: Any, context: Context) -> bool:
    """Whether `invoke` asks for the stream that it reads, inside of its span."""
    scope = current_scope(context)
    if isinstance(scope, Frame) and scope.to_be_read is graph:
        scope.to_be_read = None
        return True
    return False


def trace_invoke(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `Pregel.invoke`."""

    @functools.wraps(original)
    def invoke(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = _starter(tracer, self, args, kwargs, is_invoked=True)
        return run(start, original, (self, *args), kwargs)

    return invoke


def trace_ainvoke(
    tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `Pregel.ainvoke`."""

    @functools.wraps(original)
    async def ainvoke(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = _starter(tracer, self, args, kwargs, is_invoked=True)
        return await arun(start, original, (self, *args), kwargs)

    return ainvoke


def trace_stream(
    tracer: Tracer, original: Callable[..., Iterator[Any]]
) -> Callable[..., Iterator[Any]]:
    """Wrap `Pregel.stream`."""

    @functools.wraps(original)
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        context = get_current()
        if _is_read_by_its_run(self, context):
            return original(self, *args, **kwargs)
        body = functools.partial(original, self, *args, **kwargs)
        return iterate(_starter(tracer, self, args, kwargs), body, context)

    return stream


def trace_astream(
    tracer: Tracer, original: Callable[..., AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    """Wrap `Pregel.astream`."""

    @functools.wraps(original)
    def astream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        context = get_current()
        if _is_read_by_its_run(self, context):
            return original(self, *args, **kwargs)
        body = functools.partial(original, self, *args, **kwargs)
        return aiterate(_starter(tracer, self, args, kwargs), body, context)

    return astream


def trace_suppress_interrupt(_tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `PregelLoop._suppress_interrupt`, where a run learns that it was interrupted.

    It sees `interrupt()` in a node as well as `interrupt_before` and `interrupt_after`, whatever
    the stream mode shows of them.
    """

    @functools.wraps(original)
    def _suppress_interrupt(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _NOTING:
            exc_value = args[1] if len(args) > 1 else kwargs["exc_value"]
            if endings.classify(exc_value) is endings.INTERRUPTED:
                frame = run_frame()
                if frame is not None:
                    frame.interrupted = True
        return original(self, *args, **kwargs)

    return _suppress_interrupt
