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

from spanloom.telemetry import endings
from spanloom.telemetry.langgraph.chat import ChatCall, EventCall
from spanloom.telemetry.langgraph.context import Guard, aiterate, arun, iterate, run, warn_once

_YIELDING: Final = Guard("the Anthropic SDK's own span cannot be told apart")
_CHOOSING: Final = Guard("LangChain's choice between streaming and not is unknown")


class GenerateCall(ChatCall):
    """A request inside `generate`, which may stream: its chunks pass a run manager, nothing else.

    A run manager belongs to one request, so the instance is tapped and not its class, for as long
    as the request runs.
    """

    __slots__ = ("_manager",)

    def __init__(
        self, tracer: Tracer, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], c: Context
    ) -> None:
        manager = kwargs.get("run_manager")
        self._manager: Any = None
        super().__init__(
            tracer,
            model,
            _call(kwargs),
            getattr(manager, "metadata", None),
            c,
            messages=_messages(args, kwargs),
        )
        if manager is not None:
            try:
                self._tap(manager)
            except Exception:  # noqa: BLE001 - telemetry never breaks the application
                warn_once("the chunks of a model cannot be counted", exc_info=True)

    def _tap(self, manager: Any) -> None:
        """See each chunk and event first; what is called returns what it did (a coroutine, too)."""
        own = manager.__dict__
        on_token = manager.on_llm_new_token

        def on_llm_new_token(*args: Any, **kwargs: Any) -> Any:
            message = getattr(kwargs.get("chunk"), "message", None)
            if message is not None:
                self.chunk(message)
            return on_token(*args, **kwargs)

        own["on_llm_new_token"] = on_llm_new_token
        self._manager = manager
        on_event = getattr(manager, "on_stream_event", None)
        if on_event is not None:

            def on_stream_event(event: Any, *args: Any, **kwargs: Any) -> Any:
                self.event(event)
                return on_event(event, *args, **kwargs)

            own["on_stream_event"] = on_stream_event

    def end(self, exc: BaseException | None, ending: endings.Ending | None = None) -> None:
        """Leave the run manager as it was, and end."""
        if self._manager is not None:
            own = self._manager.__dict__
            self._manager = None
            own.pop("on_llm_new_token", None)
            own.pop("on_stream_event", None)
        super().end(exc, ending)


def _is_tapped(manager: Any) -> bool:
    """Whether a request is inside `generate`, which has its span already."""
    return "on_llm_new_token" in getattr(manager, "__dict__", ())


def _call(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in kwargs if name not in ("config", "run_manager")}


def _stream_starter(
    tracer: Tracer, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Context], ChatCall]:
    return functools.partial(
        ChatCall,
        tracer,
        model,
        _call(kwargs),
        getattr(kwargs.get("run_manager"), "metadata", None),
        messages=_messages(args, kwargs),
        stream=True,
    )


def _messages(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model is sent: the first argument of every way to it."""
    return args[0] if args else kwargs.get("messages", kwargs.get("input"))


def trace_generate(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BaseChatModel._generate_with_cache`."""

    @functools.wraps(original)
    def _generate_with_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = functools.partial(GenerateCall, tracer, self, args, kwargs)
        return run(start, original, (self, *args), kwargs)

    return _generate_with_cache


def trace_agenerate(
    tracer: Tracer, original: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap `BaseChatModel._agenerate_with_cache`."""

    @functools.wraps(original)
    def _agenerate_with_cache(self: Any, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        start = functools.partial(GenerateCall, tracer, self, args, kwargs)
        return arun(start, original, (self, *args), kwargs)

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
        return iterate(_stream_starter(tracer, self, args, kwargs), body, get_current())

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
        return aiterate(_stream_starter(tracer, self, args, kwargs), body, get_current())

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
