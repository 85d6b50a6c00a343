"""The life of a span around a body: started, current only while the body runs, ended truly.

Everything is attached and reset around the code it belongs to, in one and the same execution
context. A body that is a stream is attached anew for each step:

    caller   next()────┐                   next()────┐
    stream             └─[attach]─body─[reset]─item   └─[attach]─body─[reset]─…

so that nothing stays attached while the caller holds an item, whoever asks for the next one.
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from contextvars import Token
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY as _SUPPRESSED
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from spanloom.telemetry import endings
from spanloom.telemetry.usage import SCOPE_KEY, UsageScope

T = TypeVar("T")

(_SPAN_KEY,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""Where the API keeps the current span. Two keys set at once are one copy of the context and not
four, which is a tenth of what a span by hand costs."""
_SUPPRESSED_FORMERLY: Final = "suppress_instrumentation"
"""The key before it had a constant; `suppress_instrumentation()` still sets both."""

_logger: Final = logging.getLogger("spanloom.telemetry.langgraph")
_warned: set[str] = set()


def warn_once(what: str, *, exc_info: bool = False) -> None:
    """Say once in the life of the process that spans will be missing, and why."""
    if what not in _warned:
        _warned.add(what)
        _logger.warning("%s; spans will be missing", what, exc_info=exc_info)


class Guard:
    """`with` block in which a fault of ours costs a span and never reaches the application.

    Where every span passes, a plain `try` stands instead: it costs nothing.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Nothing to set up: one guard serves every thread at once."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(exc, Exception):
            warn_once(self._what, exc_info=True)
            return True
        return False


class Frame(UsageScope):
    """What the spans below a workflow, agent, node or tool span need to know of it."""

    __slots__ = (
        "agent_name",
        "conversation_id",
        "cut_by",
        "interrupted",
        "run_span",
        "to_be_read",
    )

    def __init__(
        self,
        parent: UsageScope | None,
        conversation_id: str | None,
        agent_name: str | None,
        node: str | None = None,
        tool: str | None = None,
    ) -> None:
        """`parent` is the scope in force around, which may be that of a hand-written span."""
        super().__init__(parent, node, tool)
        self.conversation_id = conversation_id
        self.agent_name = agent_name
        self.run_span: Span | None = None
        """The span, where it is that of a whole graph run and not of a node or tool in it."""
        self.to_be_read: Any = None
        """The graph, while its run was invoked and has not yet asked for the stream it reads."""
        self.interrupted = False
        self.cut_by: BaseException | None = None
        """Why LangGraph cut this body off: its node timeout, seen by the body as cancelled."""


def frame_of(scope: UsageScope | None) -> Frame | None:
    """Return the innermost frame from a scope on; hand-written spans between are passed over."""
    while scope is not None and not isinstance(scope, Frame):
        scope = scope.parent
    return scope


def reset(token: Token[Context]) -> None:
    """Undo an attach.

    A coroutine or generator that the garbage collector closes is finished in another execution
    context than it ran in. Nothing of ours is attached there, so there is nothing to undo.
    """
    try:
        token.var.reset(token)
    except ValueError:
        _logger.debug("closed in another context than opened in")


class Unit:
    """One traced execution: its span, and the context in which its body runs."""

    __slots__ = ("_driver", "_ended", "_started", "context", "frame", "outer", "span")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        attributes: dict[str, AttributeValue],
        *,
        context: Context,
        frame: Frame | None,
        outer: Frame | None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        """Start the span as a child of `context`.

        `frame` is what the unit opens for the spans below it, `outer` the one it stands in.
        """
        self._started = time.perf_counter()
        self.span: Span = tracer.start_span(name, context=context, kind=kind, attributes=attributes)
        self.frame = frame
        self.outer = outer
        self.context: Context = (
            Context({**context, _SPAN_KEY: self.span})
            if frame is None
            else Context({**context, _SPAN_KEY: self.span, SCOPE_KEY: frame})
        )
        self._ended = False
        self._driver: weakref.ref[asyncio.Task[Any]] | None = None

    @property
    def seconds(self) -> float:
        """How long the unit has been running."""
        return time.perf_counter() - self._started

    def finish(self, result: Any) -> None:
        """End well; `result` is what the body returned (None for a stream). Never raises."""
        ending: endings.Ending | None = None
        try:
            ending = self._read(result)
        except Exception:  # noqa: BLE001 - telemetry never breaks the application
            warn_once("a result cannot be read", exc_info=True)
        self.end(None, ending)

    def item(self, item: Any) -> None:
        """See one item of a stream before the caller does. Never raises."""

    def _read(self, result: Any) -> endings.Ending | None:
        """Take what the span needs from a result; an ending other than ok is returned."""
        del result
        return None

    def end(self, exc: BaseException | None, ending: endings.Ending | None = None) -> None:
        """End the span by the rules of `endings`; a second call does nothing. Never raises.

        Called while the unit's span is current, so that metrics can point to it.
        """
        if self._ended:
            return
        self._ended = True
        attributes: dict[str, AttributeValue] = {}
        try:
            if exc is not None:
                exc = self._cause(exc)
            if ending is None:
                ending = endings.classify(exc)
            self._describe(ending, attributes)
        except Exception:  # noqa: BLE001 - telemetry never breaks the application
            warn_once("the end of a span cannot be described", exc_info=True)
        endings.end_span(self.span, exc, ending=ending, attributes=attributes)

    def _cause(self, exc: BaseException) -> BaseException:
        """Name a node timeout where the body only saw that it was cancelled."""
        if isinstance(exc, endings.CANCELLATIONS):
            scope: UsageScope | None = self.frame or self.outer
            while scope is not None:
                if isinstance(scope, Frame) and scope.cut_by is not None:
                    return scope.cut_by
                scope = scope.parent
        return exc

    def _describe(self, ending: endings.Ending, attributes: dict[str, AttributeValue]) -> None:
        """Add the last attributes and record metrics, the span being current."""
        del ending
        frame = self.frame
        if frame is not None and frame.calls:
            frame.add_sums(attributes)

    def remember_driver(self) -> None:
        """Note which task reads the stream, to tell a cancelled reader from one that left."""
        task = asyncio.current_task()
        self._driver = None if task is None else weakref.ref(task)

    def left(self) -> BaseException:
        """Say how the reader of a stream went: it stopped reading, or it was cancelled."""
        task = None if self._driver is None else self._driver()
        if task is not None and (task.cancelled() or task.cancelling()):
            return asyncio.CancelledError()
        return GeneratorExit()


def begin(start: Callable[[Context], Unit | None], context: Context | None = None) -> Unit | None:
    """Start a unit, unless instrumentation is suppressed here.

    A fault of ours costs the span, never the body.
    """
    try:
        if context is None:
            context = get_current()
        if not (context.get(_SUPPRESSED) or context.get(_SUPPRESSED_FORMERLY)):
            return start(context)
    except Exception:  # noqa: BLE001 - telemetry never breaks the application
        warn_once("a span cannot be started", exc_info=True)
    return None


def run(
    start: Callable[[Context], Unit | None],
    body: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> T:
    """Call `body` with the span of a new unit current."""
    unit = begin(start)
    if unit is None:
        return body(*args, **kwargs)
    token = attach(unit.context)
    try:
        result = body(*args, **kwargs)
        unit.finish(result)
    except BaseException as exc:
        unit.end(exc)
        raise
    else:
        return result
    finally:
        reset(token)


async def arun(
    start: Callable[[Context], Unit | None],
    body: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> T:
    """Call and await `body` with the span of a new unit current."""
    unit = begin(start)
    if unit is None:
        return await body(*args, **kwargs)
    token = attach(unit.context)
    try:
        result = await body(*args, **kwargs)
        unit.finish(result)
    except GeneratorExit:  # the task was thrown away with the event loop
        unit.end(asyncio.CancelledError())
        raise
    except BaseException as exc:
        unit.end(exc)
        raise
    else:
        return result
    finally:
        reset(token)


def iterate(
    start: Callable[[Context], Unit | None], body: Callable[[], Iterator[T]], caller: Context
) -> Generator[T, Any, None]:
    """Read the stream `body()` with the unit's span current during each step.

    The span begins with the first step, so a stream that is never read leaves none.
    """
    unit = begin(start, _first_step_context(caller))
    if unit is None:
        yield from body()
        return
    inner: Any = None
    step: Callable[..., T] | None = None
    sent: tuple[Any, ...] = ()
    while True:
        token = attach(unit.context)
        try:
            if step is None:
                inner = iter(body())
                step = inner.__next__
            item = step(*sent)
            unit.item(item)
        except StopIteration:
            unit.finish(None)
            return
        except BaseException as exc:
            unit.end(exc)
            raise
        finally:
            reset(token)
        try:
            yield item
        except GeneratorExit:
            run_left(unit, inner)
            raise
        except BaseException as exc:  # noqa: BLE001 - thrown in by the caller, meant for the body
            step, sent = getattr(inner, "throw", None) or _raise, (exc,)
        else:
            step, sent = inner.__next__, ()


def run_left(unit: Unit, inner: Any) -> None:
    """Close a stream whose reader went away, then end its unit."""
    token = attach(unit.context)
    try:
        if (close := getattr(inner, "close", None)) is not None:
            close()
    except BaseException as exc:
        unit.end(exc)
        raise
    else:
        unit.end(unit.left())
    finally:
        reset(token)


async def aiterate(
    start: Callable[[Context], Unit | None], body: Callable[[], AsyncIterator[T]], caller: Context
) -> AsyncGenerator[T, Any]:
    """Read the asynchronous stream `body()` the same way as `iterate`."""
    unit = begin(start, _first_step_context(caller))
    if unit is None:
        async with contextlib.aclosing(cast("AsyncGenerator[T, Any]", body())) as untraced:
            async for item in untraced:
                yield item
        return
    inner: Any = None
    step: Callable[..., Coroutine[Any, Any, T]] | None = None
    sent: tuple[Any, ...] = ()
    while True:
        unit.remember_driver()
        token = attach(unit.context)
        try:
            if step is None:
                inner = aiter(body())
                step = inner.__anext__
            item = await step(*sent)
            unit.item(item)
        except StopAsyncIteration:
            unit.finish(None)
            return
        except BaseException as exc:
            unit.end(exc)
            raise
        finally:
            reset(token)
        try:
            yield item
        except GeneratorExit:
            await arun_left(unit, inner)
            raise
        except BaseException as exc:  # noqa: BLE001 - thrown in by the caller, meant for the body
            step, sent = getattr(inner, "athrow", None) or _araise, (exc,)
        else:
            step, sent = inner.__anext__, ()


async def arun_left(unit: Unit, inner: Any) -> None:
    """Close an asynchronous stream whose reader went away, then end its unit."""
    token = attach(unit.context)
    try:
        if (aclose := getattr(inner, "aclose", None)) is not None:
            await aclose()
    except BaseException as exc:
        unit.end(exc)
        raise
    else:
        unit.end(unit.left())
    finally:
        reset(token)


def _first_step_context(caller: Context) -> Context:
    """The span of whoever reads first is the parent; without one, that of whoever asked."""
    current = get_current()
    if trace.get_current_span(current).get_span_context().is_valid:
        return current
    return caller


def _raise(exc: BaseException) -> Any:
    raise exc


async def _araise(exc: BaseException) -> Any:
    raise exc
