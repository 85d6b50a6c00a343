"""How answers leave the server: JSON bytes, and which error becomes which status."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from spanloom import errors

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# The first row that fits counts, so that special cases stand above their bases.
_STATUSES: Final = (
    ((errors.QueryError, errors.MalformedPayloadError, errors.StoreRejectedError), 400),
    (errors.PayloadTooLargeError, 413),
    (errors.UnsupportedEncodingError, 415),
    (errors.StoreFullError, 429),
    (errors.StoreError, 503),
    (errors.SourceError, 502),
)

JSON_TYPE: Final = "application/json"


def dumps(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # orjson refuses what OTLP allows and Python holds: integers past 64 bits, lone
        # surrogates. The standard library writes both, as digits and as \uXXXX escapes.
        return json.dumps(value, separators=(",", ":"), default=str).encode("ascii")


def json_response(
    value: object, status_code: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer that no cache keeps: the next call may see more spans."""
    return Response(
        dumps(value),
        status_code,
        {"Cache-Control": "no-store", **(headers or {})},
        media_type=JSON_TYPE,
    )


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking Reader call without holding up the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)


def http_status(error: Exception) -> int:
    """The status of an answer that tells of `error`.

    1. What the client asked is wrong: 400, 413, 415.
    2. Full, for now: 429 (queue) — the caller should come again.
    3. The store is closed, or otherwise unable: 503.
    4. A remote backend does not answer: 502.
    5. Everything else is our fault: 500.
    """
    for kinds, status in _STATUSES:
        if isinstance(error, kinds):
            return status
    return 500


def message_of(error: Exception) -> str:
    """What the caller may read: our own sentences, but no inner detail of a surprise."""
    if isinstance(error, errors.SpanloomError):
        return str(error)
    _log.error("unexpected error while answering a request", exc_info=error)
    return "Internal error; the server's log has the details."


Endpoint = Callable[[Request], Awaitable[Response]]


def guarded(endpoint: Endpoint, answer_error: Callable[[int, str], Response]) -> Endpoint:
    """The endpoint, with every error that leaves it told by `answer_error(status, message)`."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:  # noqa: BLE001  # the edge: every error has its answer
            return answer_error(http_status(error), message_of(error))

    return answer


def jaeger_envelope(
    data: Any, *, total: int = 0, problems: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The object around every answer of Jaeger's legacy API."""
    return {"data": data, "total": total, "limit": 0, "offset": 0, "errors": problems}


def jaeger_error(code: int, message: str) -> Response:
    """An error as the Jaeger UI and Grafana read it."""
    return json_response(jaeger_envelope(None, problems=[{"code": code, "msg": message}]), code)


def native_error(code: int, message: str) -> Response:
    """An error of our own API: `{"error": sentence}`."""
    return json_response({"error": message}, code)
