"""Where chat spans begin: the ways LangChain takes to a model.

Each request takes exactly one of them, so each is one span:

1. `_generate_with_cache`, `_agenerate_with_cache`   invoke, batch, generate; it may stream inside
2. `stream`, `astream`                               unless the model cannot stream: then 1
3. `_iter_v2_events`, `_aiter_v2_events`             stream_events(version="v3"); also inside 1
"""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, Tracer

from spanloom.telemetry.langgraph.chat import ChatCall, EventCall
from spanloom.telemetry.langgraph.context import Guard, aiterate, arun, begin, iterate, run

_YIELDING: Final = Guard("the Anthropic SDK's own span cannot be told apart")
_TAPPING: Final = Guard("the chunks of a model cannot be counted")
_CHOOSING: Final = Guard("LangChain's choice between streaming and not is unknown")


class _ChunkTap:
    """Shows the chunks that pass a run manager to a chat span, for as long as a request runs.

    A request that streams inside `generate` shows its chunks nowhere else. A run manager belongs
    to one request, so the instance is tapped and not its class.
    """

    __slots__ = ("_manager",)

    def __init__(self, call: ChatCall, manager: Any) -> None:
        self._manager = manager
        if manager is not None:
            with _TAPPING:
                _tap(manager, "on_llm_new_token", functools.partial(_see_chunk, call))
                _tap(manager, "on_stream_event", functools.partial(_see_event, call))

    def remove(self) -> None:
        """Leave the run manager as it was."""
        own = getattr(self._manager, "__dict__", None)
        if own is not None:
            own.pop("on_llm_new_token", None)
            own.pop("on_stream_event", None)


def _tap(manager: Any, name: str, see: Callable[..., None]) -> None:
    """Let `see` see each call of a method first; it returns what it returned (a coroutine, too)."""
    original = getattr(manager, name, None)
    if original is not None:

        def tapped(*args: Any, **kwargs: Any) -> Any:
            see(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(manager, name, tapped)


def _see_chunk(call: ChatCall, _token: Any, *_args: Any, **kwargs: Any) -> None:
    message = getattr(kwargs.get("chunk"), "message", None)
    if message is not None:
        call.chunk(message)


def _see_event(call: ChatCall, event: Any, *_args: Any, **_kwargs: Any) -> None:
    call.event(event)


def _is_tapped(manager: Any) -> bool:
    """Whether a request is inside `generate`, which has its span already."""
    return "on_llm_new_token" in getattr(manager, "__dict__", ())


def _starter(
    tracer: Tracer, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, stream: bool
) -> Callable[[Context], ChatCall]:
    call = {name: value for name, value in kwargs.items() if name not in ("config", "run_manager")}
    params = getattr(kwargs.get("run_manager"), "metadata", None)
    messages = _messages(args, kwargs)
    return functools.partial(
        ChatCall, tracer, model, call, params, messages=messages, stream=stream
    )


def _messages(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model is sent: the first argument of every way to it."""
    return args[0] if args else kwargs.get("messages", kwargs.get("input"))


def trace_generate(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BaseChatModel._generate_with_cache`."""

    @functools.wraps(original)
    def _generate_with_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        unit = begin(_starter(tracer, self, args, kwargs, stream=False))
        if not isinstance(unit, ChatCall):
            return original(self, *args, **kwargs)
        tap = _ChunkTap(unit, kwargs.get("run_manager"))
        try:
            return run(unit, original, self, *args, **kwargs)
        finally:
            tap.remove()

    return _generate_with_cache


def trace_agenerate(
    tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `BaseChatModel._agenerate_with_cache`."""

    @functools.wraps(original)
    async def _agenerate_with_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        unit = begin(_starter(tracer, self, args, kwargs, stream=False))
        if not isinstance(unit, ChatCall):
            return await original(self, *args, **kwargs)
        tap = _ChunkTap(unit, kwargs.get("run_manager"))
        try:
            return await arun(unit, original, self, *args, **kwargs)
        finally:
            tap.remove()

    return _agenerate_with_cache


def _can_stream(model: Any, kwargs: dict[str, Any], *, async_api: bool) -> bool:
    """Whether LangChain will stream, or take the way of `invoke`, which has its own span."""
    with _CHOOSING:
        return bool(model._should_stream(async_api=async_api, **{**kwargs, "stream": True}))  # noqa: SLF001 - how LangChain decides
    return False


def trace_stream(
    tracer: Tracer, original: Callable[..., Iterator[Any]]
) -> Callable[..., Iterator[Any]]:
    """Wrap `BaseChatModel.stream`."""

    @functools.wraps(original)
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        asked = {name: value for name, value in kwargs.items() if name != "config"}
        if not _can_stream(self, asked, async_api=False):
            return original(self, *args, **kwargs)
        body = functools.partial(original, self, *args, **kwargs)
        return iterate(_starter(tracer, self, args, kwargs, stream=True), body, get_current())

    return stream


def trace_astream(
    tracer: Tracer, original: Callable[..., AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    """Wrap `BaseChatModel.astream`."""

    @functools.wraps(original)
    def astream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        asked = {name: value for name, value in kwargs.items() if name != "config"}
        if not _can_stream(self, asked, async_api=True):
            return original(self, *args, **kwargs)
        body = functools.partial(original, self, *args, **kwargs)
        return aiterate(_starter(tracer, self, args, kwargs, stream=True), body, get_current())

    return astream


def trace_events(
    tracer: Tracer, original: Callable[..., Iterator[Any]]
) -> Callable[..., Iterator[Any]]:
    """Wrap `BaseChatModel._iter_v2_events`."""

    @functools.wraps(original)
    def _iter_v2_events(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if _is_tapped(kwargs.get("run_manager")):
            return original(self, *args, **kwargs)
        body = functools.partial(original, self, *args, **kwargs)
        start = functools.partial(EventCall, tracer, self, kwargs, messages=_messages(args, kwargs))
        return iterate(start, body, get_current())

    return _iter_v2_events


def trace_aevents(
    tracer: Tracer, original: Callable[..., AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    """Wrap `BaseChatModel._aiter_v2_events`."""

    @functools.wraps(original)
    def _aiter_v2_events(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        if _is_tapped(kwargs.get("run_manager")):
            return original(self, *args, **kwargs)
        body = functools.partial(original, self, *args, **kwargs)
        start = functools.partial(EventCall, tracer, self, kwargs, messages=_messages(args, kwargs))
        return aiterate(start, body, get_current())

    return _aiter_v2_events


def yield_to_us(_tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `anthropic._base_client.start_api_call_span`.

    The Anthropic SDK makes a model span by itself. Inside one of ours that would be the same
    request twice, tokens included; the SDK takes None for "no span". Used by itself it keeps its
    own.
    """

    @functools.wraps(original)
    def start_api_call_span(*args: Any, **kwargs: Any) -> Any:
        with _YIELDING:
            span = trace.get_current_span()
            scope = getattr(span, "instrumentation_scope", None)
            if (
                getattr(span, "kind", None) is SpanKind.CLIENT
                and scope is not None
                and scope.name.startswith("spanloom.telemetry")
            ):
                return None
        return original(*args, **kwargs)

    return start_api_call_span
