"""OTLP over HTTP: POST /v1/traces, /v1/logs, /v1/metrics.

Protobuf and JSON, gzip or plain; every answer, errors too, is in the encoding of the request
(opentelemetry-proto, docs/specification.md):

    200  stored; with partial_success where some items were invalid
    400  not OTLP          413  too large          415  unknown Content-Type or -Encoding
    429  queue full        503  disk full, store closed       both with Retry-After
"""

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from spanloom.errors import (
    PayloadTooLargeError,
    StoreFullError,
    UnsupportedEncodingError,
)
from spanloom.otlp import JSON, PROTOBUF
from spanloom.server.monitoring import Monitor
from spanloom.server.responses import http_status, message_of
from spanloom.server.signals import SIGNALS, Intake, QueueFullError, Signal

_RETRY_AFTER_UNKNOWN_S: Final = 5.0
_UNREAD: Final = frozenset({413, 415, 429})
_CLIENT_GONE: Final = 499
_DRAINED: Final = 2
"""A body that is too large is read and dropped up to this many times the limit: a client that
is cut off while it still sends would see a reset connection instead of the answer."""
_RETRYABLE: Final = frozenset({429, 503})

# google.rpc.Code for the HTTP statuses used here
_RPC_CODES: Final = {400: 3, 413: 8, 415: 3, 429: 8, 500: 13, 503: 14}


def application(
    intake: Intake,
    monitor: Monitor,
    max_body_bytes: int,
    signals: Sequence[Signal] = SIGNALS,
) -> Starlette:
    """The ASGI application of the OTLP/HTTP port."""
    receiver = _Receiver(intake, monitor, max_body_bytes)
    return Starlette(
        routes=[
            Route(signal.path, receiver.endpoint(signal), methods=["POST"]) for signal in signals
        ]
    )


class _Receiver:
    def __init__(self, intake: Intake, monitor: Monitor, max_body_bytes: int) -> None:
        self._intake = intake
        self._monitor = monitor
        self._limit = max_body_bytes

    def endpoint(self, signal: Signal) -> Callable[[Request], Awaitable[Response]]:
        async def export(request: Request) -> Response:
            # Errors before the type is known are told in JSON, which people can read.
            content_type = JSON
            try:
                content_type = _content_type(request)
                encoding = request.headers.get("content-encoding", "")
                async with self._body(request) as body:
                    answer = await self._intake.take(signal, body, content_type, encoding)
                return _reply(answer, content_type)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_GONE)  # nobody reads it
            except Exception as error:  # noqa: BLE001  # the edge: every error has its answer
                response = _error(error, content_type)
                self._monitor.refused(signal.name, response.status_code)
                return response

        return export

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body as sent, counted as held until the block ends."""
        received = bytearray()
        try:
            await self._read(request, received)
            yield bytes(received)
        finally:
            self._intake.held.remove(len(received))

    async def _read(self, request: Request, into: bytearray) -> None:
        declared = request.headers.get("content-length", "")
        too_large = declared.isdigit() and int(declared) > self._limit
        seen = 0
        async for chunk in request.stream():
            seen += len(chunk)
            too_large = too_large or seen > self._limit
            if too_large:
                if seen > _DRAINED * self._limit:
                    break
                continue
            self._intake.held.add(len(chunk))
            into += chunk
        if too_large:
            raise PayloadTooLargeError(
                f"The body is over {self._limit} bytes; send smaller batches "
                "(OTEL_BSP_MAX_EXPORT_BATCH_SIZE for spans)."
            )


def _content_type(request: Request) -> str:
    declared = request.headers.get("content-type", "")
    match declared.partition(";")[0].strip().lower():
        case "application/x-protobuf" | "application/protobuf":
            return PROTOBUF
        case "application/json":
            return JSON
    raise UnsupportedEncodingError(
        f"Content-Type {declared[:100]!r} is not OTLP; send {PROTOBUF} or {JSON}."
    )


def _error(error: Exception, content_type: str) -> Response:
    # The writer's own StoreFullError means the disk, which takes longer than a queue.
    disk_full = isinstance(error, StoreFullError) and not isinstance(error, QueueFullError)
    status = 503 if disk_full else http_status(error)
    headers = {}
    if status in _UNREAD:
        headers["Connection"] = "close"  # the rest of the body may still be on its way
    if status in _RETRYABLE:
        wait = getattr(error, "retry_after_s", _RETRY_AFTER_UNKNOWN_S)
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    message = Status(code=_RPC_CODES.get(status, 2), message=message_of(error))
    return _reply(message, content_type, status, headers)


def _reply(
    message: Message, content_type: str, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    if content_type == JSON:
        body = MessageToJson(message, indent=None).encode()
    else:
        body = message.SerializeToString()
    return Response(body, status, headers, media_type=content_type)
