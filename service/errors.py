"""What can go wrong in the service, and the one place where foreign exceptions are named.

* ServiceError
  - ConfigurationError          a setting is missing or wrong; the message names it
  - DependencyUnavailableError  the LLM or retrieval is down                     (HTTP 503)
  - DeadlineExceededError       the run was cancelled at its deadline            (HTTP 504)
  - ClientGoneError             the caller hung up and the run was cancelled     (logged as 499)
  - ToolError                   a tool cannot do what the model asked; the model is told why
"""

import sys
from typing import Final, Literal

import httpx2

Dependency = Literal["llm", "retrieval"]

_SDKS: Final = ("openai", "anthropic")
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500


class ServiceError(Exception):
    """Base of everything the service raises on purpose."""


class ConfigurationError(ServiceError):
    """A setting is missing or wrong."""


class DependencyUnavailableError(ServiceError):
    """The LLM or retrieval does not answer, not in time, or says it is overloaded."""

    def __init__(self, dependency: Dependency, reason: str) -> None:
        super().__init__(f"{dependency} is unavailable: {reason}")
        self.dependency = dependency
        self.reason = reason


class DeadlineExceededError(ServiceError, TimeoutError):
    """The run was cancelled at its deadline; a TimeoutError, so that spans end as one."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request was cancelled at its deadline of {seconds:g} s")
        self.seconds = seconds


class ClientGoneError(ServiceError):
    """The caller hung up before the answer was ready."""


class ToolError(ServiceError):
    """A tool cannot do what the model asked; the message is written for the model."""


def is_transient_status(status: int) -> bool:
    """Whether an HTTP status means "not now" rather than "not like this"."""
    return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR


def as_unavailable(exc: BaseException) -> DependencyUnavailableError | None:
    """The dependency that `exc` says is down, or None when `exc` says something else.

    1. Already translated (the retrieval client does so itself): as it is.
    2. A bare transport error of httpx2 comes from an LLM stream cut in the middle, which the
       SDKs do not wrap; retrieval's never arrive here bare.
    3. An OpenAI or Anthropic SDK error: connection, timeout, 429 and 5xx are outages; the
       rest (a wrong key, an unknown model) is our mistake.
    """
    if isinstance(exc, DependencyUnavailableError):
        return exc
    if isinstance(exc, httpx2.TransportError):
        return DependencyUnavailableError("llm", type(exc).__name__)
    for name in _SDKS:
        # A module that was never imported cannot have raised; importing it costs seconds.
        sdk = sys.modules.get(name)
        if sdk is not None and isinstance(exc, sdk.APIError):
            reason = _outage(exc)
            return None if reason is None else DependencyUnavailableError("llm", reason)
    return None


def _outage(error: Exception) -> str | None:
    """What an SDK's error says about an outage; the SDKs share their exceptions' shape."""
    status = getattr(error, "status_code", None)
    if status is None:  # no answer, or an error event inside a stream
        return type(error).__name__
    return f"it answered HTTP {status}" if is_transient_status(status) else None
