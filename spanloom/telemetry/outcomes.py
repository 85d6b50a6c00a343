"""`spanloom.outcome` on the HTTP spans that contrib's instrumentations make.

They describe answers and exceptions, and nothing of how a request ended otherwise: a SERVER span
whose client went away, and a CLIENT span cut by a cancellation, both look like a success. Each is
watched from inside, while its span is current and not yet ended.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import wrapt
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from spanloom import semconv
from spanloom.telemetry import endings

_logger: Final = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_CONTRIB: Final = "opentelemetry.instrumentation."
_FIRST_CLIENT_ERROR: Final = 400
"""Status from which on a CLIENT span is an error (a SERVER span: 500)."""
_LAST_MESSAGES: Final = frozenset({"http.response.body", "http.response.pathsend"})
"""Pathsend hands a file over to servers that can send it themselves."""
_UNANSWERED: Final = endings.Ending(semconv.OUTCOME_ERROR, "incomplete_response")


def _contrib_span(kind: SpanKind) -> Any | None:
    """The current span, where it is a recording one of contrib's of this kind."""
    span: Any = trace.get_current_span()
    if not span.is_recording() or getattr(span, "kind", None) is not kind:
        return None
    scope = getattr(span, "instrumentation_scope", None)
    return span if scope is not None and scope.name.startswith(_CONTRIB) else None


def _has_outcome(span: Any) -> bool:
    return semconv.SPANLOOM_OUTCOME in (span.attributes or {})


class OutcomeMiddleware:
    """Around all middleware of the application: says on the SERVER span how the request ended.

    An application that knows better says so first, by `spanloom.outcome` and `error.type` on the
    current span; both are kept. A status of 500 and above is an error, as for the span's status.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        span = _contrib_span(SpanKind.SERVER) if scope["type"] in {"http", "websocket"} else None
        if span is None:
            await self.app(scope, receive, send)
            return
        request = _Request(span, receive, send, is_http=scope["type"] == "http")
        try:
            await self.app(scope, request.receive, request.send)
        except BaseException as exc:
            request.end(endings.classify(exc), exc)
            raise
        request.returned()


class _Request:
    """What passes between server and application during one request."""

    __slots__ = ("_client_left", "_is_answered", "_is_http", "_receive", "_send", "_span")

    def __init__(self, span: Any, receive: Receive, send: Send, *, is_http: bool) -> None:
        self._span = span
        self._receive = receive
        self._send = send
        self._is_http = is_http
        self._is_answered = False
        self._client_left = False

    async def receive(self) -> Message:
        """Hand on a message of the server."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        """Hand on a message of the application."""
        if message["type"] in _LAST_MESSAGES and not message.get("more_body", False):
            self._is_answered = True
            self.end(None, None)  # before contrib, which ends its span with this message
        error_type = (self._span.attributes or {}).get(semconv.ERROR_TYPE)
        await self._send(message)
        if message["type"] == "http.response.start" and error_type is not None:
            # Contrib has put the status in its place, "504" where "timeout" was said.
            self._span.set_attribute(semconv.ERROR_TYPE, error_type)

    def returned(self) -> None:
        """End a request whose application has returned, whether it answered or not."""
        if self._is_http and not self._is_answered:
            self.end(endings.CANCELLED if self._client_left else _UNANSWERED, None)
        else:
            self.end(None, None)

    def end(self, ending: endings.Ending | None, exc: BaseException | None) -> None:
        """Write the outcome unless it stands there; `ending` None: what the status says."""
        try:
            span = self._span
            if not span.is_recording() or _has_outcome(span):
                return
            if ending is None:
                failed = span.status.status_code is StatusCode.ERROR
                outcome = semconv.OUTCOME_ERROR if failed else semconv.OUTCOME_OK
                span.set_attribute(semconv.SPANLOOM_OUTCOME, outcome)
            elif isinstance(exc, Exception):  # contrib writes the event, once, and the status
                span.set_attribute(semconv.SPANLOOM_OUTCOME, ending.outcome)
                if ending.error_type is not None:
                    span.set_attribute(semconv.ERROR_TYPE, ending.error_type)
            else:
                endings.apply_ending(span, ending, exc)
        except Exception:  # telemetry never breaks the application
            _logger.debug("could not describe the end of a request", exc_info=True)


_watched: Final[set[str]] = set()


def watch_transports(module: str) -> None:
    """Wrap the transports of httpx or httpx2, before contrib does: its span is then around us.

    Once: contrib's wrapper comes off when it is uninstrumented, ours stays below it.
    """
    if module in _watched:
        return
    _watched.add(module)
    wrapt.wrap_function_wrapper(module, "HTTPTransport.handle_request", _watch)
    wrapt.wrap_function_wrapper(module, "AsyncHTTPTransport.handle_async_request", _watch_async)


def _watch(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG001 - wrapt's
    span = _contrib_span(SpanKind.CLIENT)
    try:
        response = wrapped(*args, **kwargs)
    except BaseException as exc:
        _end_call(span, None, exc)
        raise
    _end_call(span, response, None)
    return response


async def _watch_async(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
    span = _contrib_span(SpanKind.CLIENT)
    try:
        response = await wrapped(*args, **kwargs)
    except BaseException as exc:
        _end_call(span, None, exc)
        raise
    _end_call(span, response, None)
    return response


def _end_call(span: Any | None, response: Any, exc: BaseException | None) -> None:
    if span is None:
        return
    try:
        ending = endings.classify(exc)
        if isinstance(exc, endings.CANCELLATIONS):  # of which contrib takes no notice
            endings.apply_ending(span, ending, exc)
            return
        failed = exc is None and response.status_code >= _FIRST_CLIENT_ERROR
        span.set_attribute(
            semconv.SPANLOOM_OUTCOME, semconv.OUTCOME_ERROR if failed else ending.outcome
        )
    except Exception:  # telemetry never breaks the application
        _logger.debug("could not describe the end of an HTTP call", exc_info=True)
