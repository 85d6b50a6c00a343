"""How a span ends, decided in one place for hand-written and for LangGraph spans.

Classification order (`classify`):

1. no exception                                   → ok
2. LangGraph's control flow: ParentCommand        → handoff
   any other GraphBubbleUp (GraphInterrupt …)     → interrupted
3. GeneratorExit: the reader of a stream left     → abandoned_stream
4. cancelled, and a `deadline()` in force is over → timeout
5. cancelled otherwise (the client went away)     → cancelled
6. an exception that means "took too long"        → timeout
7. everything else                                → error

ok, handoff, interrupted and abandoned_stream leave the status UNSET; the others set ERROR and
`error.type`. An exception is written as an event once per trace, on the innermost span that saw
it; the spans around it get the status only.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import traceback
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry.redaction import MESSAGE_LIMIT, STACK_LIMIT, redact

_logger: Final = logging.getLogger(__name__)

CANCELLATIONS: Final = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    KeyboardInterrupt,
    SystemExit,
)
_TIMEOUT_NAMES: Final = frozenset(
    # httpx and httpx2; the OpenAI and Anthropic SDKs; LangGraph; requests. By name, so that none
    # of them has to be imported.
    {"TimeoutException", "APITimeoutError", "NodeTimeoutError", "Timeout"}
)
_TOO_MANY_REQUESTS: Final = 429
_RATE_LIMIT_NAMES: Final = frozenset(
    # OpenAI, Anthropic, Cohere, Mistral and others; google.api_core; botocore
    {"RateLimitError", "TooManyRequests", "TooManyRequestsError", "ResourceExhausted"}
    | {"ThrottlingException"}
)
_RAISED_IN: Final = "__spanloom_raised_in__"
"""Key in an exception's `__dict__`: trace id, span id and flags of the innermost span that saw it,
as plain numbers because exceptions are pickled."""
_MAX_FRAMES: Final = 64


@dataclass(frozen=True, slots=True)
class Ending:
    """How something ended: `outcome` is a `semconv.OUTCOME_*`; `error_type` only for errors."""

    outcome: str
    error_type: str | None = None
    is_rate_limit: bool = False
    """Whether the error is a provider's "too many requests"."""

    @property
    def status(self) -> str:
        """The outcome as metrics of model calls name it, rate limits told apart."""
        return semconv.STATUS_RATE_LIMIT if self.is_rate_limit else self.outcome


OK: Final = Ending(semconv.OUTCOME_OK)
_HANDOFF: Final = Ending(semconv.OUTCOME_HANDOFF)
INTERRUPTED: Final = Ending(semconv.OUTCOME_INTERRUPTED)
_ABANDONED: Final = Ending(semconv.OUTCOME_ABANDONED_STREAM)
_TIMEOUT: Final = Ending(semconv.OUTCOME_TIMEOUT, semconv.OUTCOME_TIMEOUT)
CANCELLED: Final = Ending(semconv.OUTCOME_CANCELLED, semconv.OUTCOME_CANCELLED)

_deadline: Final[ContextVar["deadline | None"]] = ContextVar("spanloom_deadline", default=None)


class deadline:  # noqa: N801 - reads like asyncio.timeout, which it extends
    """`asyncio.timeout` that spans know about.

    `async with deadline(30):` cancels the body after 30 seconds and raises TimeoutError. The span
    current at entry carries `spanloom.deadline_ms`; spans that the cancellation cuts, also in
    tasks started inside, end with outcome `timeout` instead of `cancelled`. Below `asyncio.timeout`
    and `asyncio.wait_for` they end as cancelled: nobody tells them of a clock outside.
    """

    __slots__ = ("_timeout", "_token", "parent", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.parent: deadline | None = None
        self._timeout = asyncio.timeout(seconds)
        self._token: Token[deadline | None] | None = None

    @property
    def milliseconds(self) -> int:
        """The whole time allowed, as written on spans."""
        return round(self.seconds * 1000)

    @property
    def expired(self) -> bool:
        """Whether the time is over; stays true."""
        return self._timeout.expired()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self.parent = _deadline.get()
        self._token = _deadline.set(self)
        trace.get_current_span().set_attribute(semconv.SPANLOOM_DEADLINE_MS, self.milliseconds)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._token is not None:
            try:
                _deadline.reset(self._token)
            except ValueError:  # left in another context: an async generator closed late
                if _deadline.get() is self:
                    _deadline.set(self.parent)
        await self._timeout.__aexit__(exc_type, exc, tb)


def leave_deadlines() -> None:
    """Forget the deadlines of whatever ran before in this context: a new request begins."""
    _deadline.set(None)


def _deadline_in_force(*, expired: bool) -> deadline | None:
    current = _deadline.get()
    while expired and current is not None and not current.expired:
        current = current.parent
    return current


def error_type_of(exc: BaseException) -> str:
    """The value of `error.type`: the fully qualified class name, builtins without module."""
    cls = type(exc)
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def classify(exc: BaseException | None) -> Ending:
    """Say how something that raised `exc` (or nothing) ended; see the module for the order."""
    if exc is None:
        return OK
    control_flow = _langgraph_control_flow(exc)
    if control_flow is not None:
        return control_flow
    if isinstance(exc, GeneratorExit):
        return _ABANDONED
    if isinstance(exc, CANCELLATIONS):
        return CANCELLED if _deadline_in_force(expired=True) is None else _TIMEOUT
    if isinstance(exc, TimeoutError) or any(
        base.__name__ in _TIMEOUT_NAMES for base in type(exc).__mro__
    ):
        return _TIMEOUT
    return Ending(semconv.OUTCOME_ERROR, error_type_of(exc), is_rate_limit(exc))


def is_rate_limit(exc: BaseException) -> bool:
    """Whether a provider says "too many requests", by HTTP status 429 or the exception's name."""
    with contextlib.suppress(Exception):  # whatever an attribute of somebody else's does
        response = getattr(exc, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", None)
        if _TOO_MANY_REQUESTS in (status, getattr(exc, "status_code", None)):
            return True
    return any(base.__name__ in _RATE_LIMIT_NAMES for base in type(exc).__mro__)


def _langgraph_control_flow(exc: BaseException) -> Ending | None:
    """GraphBubbleUp and its children are how LangGraph pauses and hands over, not failures."""
    found: Ending | None = None
    for base in type(exc).__mro__:
        if base.__module__ == "langgraph.errors":
            if base.__name__ == "ParentCommand":
                return _HANDOFF
            if base.__name__ == "GraphBubbleUp":
                found = INTERRUPTED
    return found


def end_span(
    span: Span,
    exc: BaseException | None = None,
    *,
    outcome: str | None = None,
    ending: Ending | None = None,
    end_time: int | None = None,
    attributes: dict[str, AttributeValue] | None = None,
) -> Ending:
    """Set status, outcome and exception event by the rules above, then end the span.

    `outcome` overrides the classification with one of the endings that are no error (a stream
    whose reader left without GeneratorExit, an interrupt that LangGraph reports in its result);
    `ending` overrides it whole, for a failure that is reported in a result and never raised.
    `end_time` is in nanoseconds since the epoch; `attributes` are written with the outcome.
    Never raises.
    """
    if ending is None:
        ending = classify(exc) if outcome is None else Ending(outcome)
    recording = False
    try:
        recording = span.is_recording()
        if recording:
            apply_ending(span, ending, exc, attributes)
    except Exception:  # telemetry never breaks the application
        _logger.debug("could not describe the end of a span", exc_info=True)
    try:
        span.end(end_time)
        if recording and _on_step is not None:
            _on_step(span, ending)
    except Exception:
        _logger.debug("could not end a span", exc_info=True)
    return ending


def apply_ending(
    span: Span,
    ending: Ending,
    exc: BaseException | None,
    attributes: dict[str, AttributeValue] | None = None,
) -> None:
    """Write an ending to a recording span without ending it, and `attributes` with it."""
    if ending.error_type is None and not attributes:
        span.set_attribute(semconv.SPANLOOM_OUTCOME, ending.outcome)  # half of what a dict costs
        return
    written = {} if attributes is None else attributes
    written[semconv.SPANLOOM_OUTCOME] = ending.outcome
    if ending.error_type is None:
        span.set_attributes(written)
        return
    written[semconv.ERROR_TYPE] = ending.error_type
    if ending is _TIMEOUT or ending is CANCELLED:
        cut_by = _deadline_in_force(expired=ending is _TIMEOUT)
        if cut_by is not None:
            written[semconv.SPANLOOM_DEADLINE_MS] = cut_by.milliseconds
    span.set_attributes(written)
    description: str | None = None
    if exc is not None and not isinstance(exc, CANCELLATIONS):
        description = record_exception_once(span, exc)
    span.set_status(Status(StatusCode.ERROR, description or ending.outcome))


def record_exception_once(span: Span, exc: BaseException) -> str:
    """Add the exception event unless an inner span of the trace has it; return the message."""
    message = message_of(exc)
    context = span.get_span_context()
    known = exc.__dict__.get(_RAISED_IN)
    if known is not None and known[0] == context.trace_id:
        return message
    mark_raised_in(exc, context)
    if not _raised_through_instrumented_client(exc):
        span.add_event(
            semconv.EXCEPTION_EVENT,
            {
                semconv.EXCEPTION_TYPE: error_type_of(exc),
                semconv.EXCEPTION_MESSAGE: message,
                semconv.EXCEPTION_STACKTRACE: format_stack(exc),
            },
        )
    return message


def mark_raised_in(exc: BaseException, context: SpanContext) -> None:
    """Note the span an exception was raised in, unless an inner one is noted already."""
    known = exc.__dict__.get(_RAISED_IN)
    if known is None or known[0] != context.trace_id:
        exc.__dict__[_RAISED_IN] = (context.trace_id, context.span_id, int(context.trace_flags))


def raised_in(exc: BaseException) -> SpanContext | None:
    """Return the innermost span that saw the exception, for a log line outside of any span."""
    known = exc.__dict__.get(_RAISED_IN)
    if known is None:
        return None
    trace_id, span_id, flags = known
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags))


def message_of(exc: BaseException) -> str:
    """Return the exception's text, redacted and capped."""
    try:
        return redact(str(exc), MESSAGE_LIMIT)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide how the span ended
        return type(exc).__qualname__


def _raised_through_instrumented_client(exc: BaseException) -> bool:
    """Whether the contrib httpx instrumentation has already written the event on its own span."""
    frame = exc.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_globals.get("__name__")
        if name == "opentelemetry.instrumentation.httpx":
            return True
        frame = frame.tb_next
    return False


def format_stack(exc: BaseException) -> str:
    """The stack trace as Python prints it, redacted and capped."""
    lines = traceback.TracebackException.from_exception(exc, limit=_MAX_FRAMES).format()
    return redact("".join(lines), STACK_LIMIT)


# Called with every span ended here, so that logs can carry one line per step. Set by `setup`
# only: an instrumentor that is used alone writes no logs.
_on_step: Callable[[Any, Ending], None] | None = None


def set_step_listener(listener: Callable[[Any, Ending], None] | None) -> None:
    """Install what is called with each recording span and its ending, after its end."""
    global _on_step  # noqa: PLW0603 - one process, one listener
    _on_step = listener
