"""How a failed request is answered, logged and written on its span: decided once, here."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar, Final

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    Dependency,
    DependencyUnavailableError,
    ServiceError,
)
from spanloom.telemetry import get_logger
from spanloom.telemetry.endings import apply_ending, classify

_NAMES: Final[dict[Dependency, str]] = {
    "llm": "The language model",
    "retrieval": "The search service",
    "sessions": "The session memory",
}

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """What the caller is told."""

    CLIENT_GONE: ClassVar[int] = 499
    """Not an HTTP status, but the one that proxies log for a caller who hung up."""

    status: int
    detail: str
    retry_after_s: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def describe(exc: BaseException, *, retry_after_s: int) -> Failure:
    """What to answer for `exc`; anything not listed is our fault and none of their business."""
    match exc:
        case DependencyUnavailableError(dependency=dependency):
            return Failure(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{_NAMES[dependency]} is unavailable, try again later",
                retry_after_s,
            )
        case DeadlineExceededError():
            return Failure(HTTPStatus.GATEWAY_TIMEOUT, str(exc))
        case ClientGoneError():
            return Failure(Failure.CLIENT_GONE, str(exc))
        case _:
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error")


def log_failure(exc: BaseException, failure: Failure, *, endpoint: str) -> None:
    """One line for a failed request; with the stack trace if nobody expected it."""
    event = "chat_error" if endpoint.startswith("/chat") else "request_error"
    fields = {"endpoint": endpoint, "status": int(failure.status)}
    if failure.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error(event, **fields, error_type=type(exc).__name__, exc_info=exc)
    else:
        _log.warning(event, **fields, error_type=type(exc).__name__, reason=str(exc))


def mark_span(exc: BaseException) -> None:
    """Write the failure on the current span: outcome, error type, and what was unexpected."""
    span = trace.get_current_span()
    if not isinstance(exc, ServiceError):
        apply_ending(span, classify(exc), exc)
        return
    # The step inside that failed has the exception already; here a sentence is enough.
    told = asyncio.CancelledError() if isinstance(exc, ClientGoneError) else exc
    apply_ending(span, classify(told), None)
    span.set_status(Status(StatusCode.ERROR, str(exc)))
