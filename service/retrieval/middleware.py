"""What every answer of the retrieval process shares: the trace id, and a bounded body."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spanloom.telemetry import current_trace_id


class TraceIdHeader:
    """Adds `X-Trace-Id` to every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = current_trace_id()

        async def send_with_trace_id(message: Message) -> None:
            if message["type"] == "http.response.start" and trace_id:
                MutableHeaders(scope=message)["X-Trace-Id"] = trace_id
            await send(message)

        await self._app(scope, receive, send_with_trace_id)


class _BodyTooLargeError(Exception):
    """More bytes arrived than the limit."""


class BodyLimit:
    """Answers 413 to a larger body, by its declared length or, when chunked, as it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _BodyTooLargeError
            return message

        try:
            await self._app(scope, receive_bounded, send)
        except _BodyTooLargeError:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse(
            {"detail": f"The body is larger than {self._max_bytes} bytes."}, status_code=413
        )
        await answer(scope, receive, send)
