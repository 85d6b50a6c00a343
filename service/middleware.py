"""Pure ASGI middleware, outermost first: identity, metrics, (CORS), errors, body limit.

All of it runs inside the contrib instrumentation's SERVER span, which is the current span here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from opentelemetry import context, propagate, trace
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.failures import Failure, describe, log_failure, mark_span
from spanloom.telemetry import current_trace_id, is_trusted
from spanloom.telemetry.metrics import active_requests, record_request

TRACE_ID_HEADER: Final = "X-Trace-Id"
LATENCY_HEADER: Final = "X-Request-Latency"
EXPOSED_HEADERS: Final = (TRACE_ID_HEADER, LATENCY_HEADER)

MEASURED_PATHS: Final = frozenset({"/chat", "/chat/stream"})
OUTCOME_STATUS: Final = "outcome_status"
"""Key of `scope["state"]`: how a request ended whose headers had already said 200."""

_ids: Final = RandomIdGenerator()


class IdentityMiddleware:
    """Every answer says which trace it belongs to and how long it took to begin."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request under a valid span context and add its headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_with_identity(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[TRACE_ID_HEADER] = f"{span.trace_id:032x}"
                headers[LATENCY_HEADER] = f"{(time.perf_counter() - started) * 1000:.0f}ms"
                if is_trusted(scope):
                    headers.append("Server-Timing", f"trace;desc={_traceparent(span)}")
            await send(message)

        with _span_context(scope) as span:
            await self.app(scope, receive, send_with_identity)


@contextmanager
def _span_context(scope: Scope) -> Iterator[SpanContext]:
    """The request's span context; for requests that are not traced, one that is never recorded.

    /health, /ready and /metrics are polled every few seconds and would drown the traces, and
    with the SDK switched off nothing is traced. Their answers and log lines still carry an id:
    the caller's, or a new one. Its sampled flag is 0, so that the calls a readiness check makes
    leave no spans either.
    """
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        yield current
        return
    # Headers of callers that are not trusted were stripped before they got here.
    caller = propagate.extract(dict(scope), getter=asgi_getter)
    remote = trace.get_current_span(caller).get_span_context()
    # Whether a trace id is random is said by who made it, and passed on.
    random = remote.trace_flags if remote.is_valid else TraceFlags.RANDOM_TRACE_ID
    unrecorded = SpanContext(
        trace_id=remote.trace_id if remote.is_valid else _ids.generate_trace_id(),
        span_id=_ids.generate_span_id(),
        is_remote=False,
        trace_flags=TraceFlags(random & TraceFlags.RANDOM_TRACE_ID),
        trace_state=remote.trace_state,
    )
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(unrecorded)))
    try:
        yield unrecorded
    finally:
        context.detach(token)


def _traceparent(span: SpanContext) -> str:
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


class MetricsMiddleware:
    """Counts and times the chat endpoints, whatever way they end; streams to their last byte."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request."""
        if scope["type"] != "http" or scope["path"] not in MEASURED_PATHS:
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        status: int | None = None

        async def observe_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with active_requests():
            try:
                await self.app(scope, receive, observe_status)
            finally:
                ended = state.get(OUTCOME_STATUS, status or Failure.CLIENT_GONE)
                record_request(scope["path"], str(ended), time.perf_counter() - started)


class ErrorMiddleware:
    """Turns every exception into its JSON answer; what is not expected tells nothing inner."""

    def __init__(self, app: ASGIApp, *, retry_after_s: int) -> None:
        self.app = app
        self.retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and answer for what it raises."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response_started = False

        async def observe_start(message: Message) -> None:
            nonlocal response_started
            response_started |= message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, observe_start)
        except Exception as exc:
            failure = describe(exc, retry_after_s=self.retry_after_s)
            log_failure(exc, failure, endpoint=scope["path"])
            mark_span(exc)
            if response_started:
                raise  # the server must cut the connection: half an answer looks like a whole one
            await JSONResponse(
                {"detail": failure.detail, "trace_id": current_trace_id()},
                status_code=failure.status,
                headers=failure.headers,
            )(scope, receive, send)


class BodyLimitMiddleware:
    """Refuses bodies over the limit: at once by Content-Length, else while they arrive."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on a body that cannot grow past the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_body_bytes:
            await JSONResponse(
                {"detail": self._detail, "trace_id": current_trace_id()},
                status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )(scope, receive, send)
            return
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_body_bytes:
                    # FastAPI lets an HTTPException out of the body's parsing, and answers it.
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._detail)
            return message

        await self.app(scope, receive_bounded, send)

    @property
    def _detail(self) -> str:
        return f"The request body is larger than {self.max_body_bytes} bytes"
