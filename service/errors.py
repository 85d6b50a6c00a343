"""What can go wrong in the service, and the one place where foreign exceptions are named.

* ServiceError
  - ConfigurationError          a setting is missing or wrong; the message names it
  - DependencyUnavailableError  the LLM, retrieval or session memory is down     (HTTP 503)
  - DeadlineExceededError       the run was cancelled at its deadline            (HTTP 504)
  - ClientGoneError             the caller hung up and the run was cancelled     (logged as 499)
  - UnansweredError             the chat page got no answer; its span ends with it
  - ToolError                   a tool cannot do what the model asked; the model is told why
"""

import sys
from typing import Final, Literal

import httpx2

Dependency = Literal["llm", "retrieval", "sessions"]

_SDKS: Final = ("openai", "anthropic")
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500


class ServiceError(Exception):
    """Base of everything the service raises on purpose."""


class ConfigurationError(ServiceError):
    """A setting is missing or wrong."""


class DependencyUnavailableError(ServiceError):
    """A dependency does not answer, not in time, or says it is overloaded.

    `worth_retrying` is False when a second try within the same request would be too late
    (a timeout) or unwelcome (429).
    """

    def __init__(self, dependency: Dependency, reason: str, *, worth_retrying: bool) -> None:
        super().__init__(f"{dependency} is unavailable: {reason}")
        self.dependency = dependency
        self.reason = reason
        self.worth_retrying = worth_retrying

    @classmethod
    def by_status(cls, dependency: Dependency, status: int) -> "DependencyUnavailableError | None":
        """The outage an HTTP status means; None if it means "not like this" instead."""
        if status != _TOO_MANY_REQUESTS and status < _SERVER_ERROR:
            return None
        return cls(
            dependency,
            f"it answered HTTP {status}",
            worth_retrying=status != _TOO_MANY_REQUESTS,
        )

    @classmethod
    def by_transport(
        cls, dependency: Dependency, error: httpx2.TransportError
    ) -> "DependencyUnavailableError":
        """The outage a transport error means."""
        timed_out = isinstance(error, httpx2.TimeoutException)
        return cls(dependency, type(error).__name__, worth_retrying=not timed_out)


class DeadlineExceededError(ServiceError, TimeoutError):
    """The run was cancelled at its deadline; a TimeoutError, so that spans end as one."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request was cancelled at its deadline of {seconds:g} s")
        self.seconds = seconds


class ClientGoneError(ServiceError):
    """The caller hung up before the answer was ready."""


class UnansweredError(ServiceError):
    """The chat page got no answer. Raised for the page's span alone: the visitor is told."""


class ToolError(ServiceError):
    """A tool cannot do what the model asked; the message is written for the model."""


def as_unavailable(exc: BaseException) -> DependencyUnavailableError | None:
    """The dependency that `exc` says is down, or None when `exc` says something else.

    1. Already translated (the retrieval client does so itself): as it is.
    2. A bare transport error of httpx2 comes from an LLM stream cut in the middle, which the
       SDKs do not wrap; retrieval's never arrive here bare.
    3. An OpenAI or Anthropic SDK error: connection, timeout, 429 and 5xx are outages; the
       rest (a wrong key, an unknown model) is our mistake.
    4. psycopg and its pool cannot reach the server, or the server ended the connection; errors
       in a statement are our mistake.
    """
    if isinstance(exc, DependencyUnavailableError):
        return exc
    psycopg = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
        return DependencyUnavailableError("sessions", type(exc).__name__, worth_retrying=False)
    if isinstance(exc, httpx2.TransportError):
        return DependencyUnavailableError.by_transport("llm", exc)
    for name in _SDKS:
        # A module that was never imported cannot have raised; importing it costs seconds.
        sdk = sys.modules.get(name)
        if sdk is None or not isinstance(exc, sdk.APIError):
            continue
        status = getattr(exc, "status_code", None)
        if status is not None:
            return DependencyUnavailableError.by_status("llm", status)
        # no answer, or an error event inside a stream
        timed_out = isinstance(exc, sdk.APITimeoutError)
        return DependencyUnavailableError("llm", type(exc).__name__, worth_retrying=not timed_out)
    return None


def is_worth_retrying(exc: Exception) -> bool:
    """Whether a step that failed with `exc` may well succeed if tried again at once."""
    unavailable = as_unavailable(exc)
    return unavailable is not None and unavailable.worth_retrying
