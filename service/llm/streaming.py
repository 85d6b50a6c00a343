"""A completion as server-sent events, in OpenAI's chunks, at a set speed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import orjson
from opentelemetry.trace import Span
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.llm.generation import Completion
from service.llm.wire import SYSTEM_FINGERPRINT
from spanloom.telemetry import get_logger, step

# At full speed several tokens share a chunk: a chunk costs the reader far more than the writer.
TOKENS_PER_CHUNK: Final = 4
FINISH_REASON: Final = "offline_llm.finish_reason"

_log = get_logger(__name__)


class ClientGoneError(asyncio.CancelledError):
    """The caller hung up before the reply was out; a cancellation, so the span says cancelled."""


def frame(model: str, identity: dict[str, Any], object_name: str) -> dict[str, Any]:
    """The fields every chunk and every whole completion share."""
    return {
        **identity,
        "object": object_name,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }


class Pace:
    """Lets tokens out at `tokens_per_s`; 0 is without limit."""

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s
        self._started = time.monotonic()
        self._tokens = 0

    async def after(self, tokens: int) -> None:
        """Wait until `tokens` more tokens would have been generated."""
        if not self._tokens_per_s:
            return
        self._tokens += tokens
        due = self._started + self._tokens / self._tokens_per_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))


class CompletionStream(Response):
    """Generates a completion and streams it; stops as soon as the client is gone.

    What `generate` raises comes before the headers, so it is answered like any other error.

    A response of its own and not a generator in a StreamingResponse: the span around the
    generation opens and closes in one frame of one task, whatever happens to the connection.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generate: Callable[[], Awaitable[Completion]],
        identity: dict[str, Any],
        *,
        model: str,
        headers: Mapping[str, str],
        include_usage: bool,
        tokens_per_s: float,
        started: float,
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._generate = generate
        self._model = model
        self._frame = frame(model, identity, "chat.completion.chunk")
        self._include_usage = include_usage
        self._tokens_per_s = tokens_per_s
        self._started = started

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream as an ASGI response."""
        try:
            with generation_step(self._model, stream=True) as span:
                completion = await self._generate()
                span.set_attribute(FINISH_REASON, completion.finish_reason)
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                await unless_gone(self._send_all(completion, send), receive)
        except ClientGoneError:
            _log.info("generation_cancelled", model=self._model)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        log_completion(completion, stream=True, started=self._started)

    async def _send_all(self, completion: Completion, send: Send) -> None:
        async for event in self._events(completion):
            body = b"data: " + event + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _events(self, completion: Completion) -> AsyncIterator[bytes]:
        pace = Pace(self._tokens_per_s)
        opening: dict[str, Any] = {"role": "assistant", "content": None if completion.calls else ""}
        yield self._chunk({**opening, "refusal": None})
        for piece in completion.pieces(1 if self._tokens_per_s else TOKENS_PER_CHUNK):
            await pace.after(piece.tokens)
            if piece.call is not None:
                yield self._chunk({"tool_calls": [piece.call]})
            elif piece.text:
                yield self._chunk({"content": piece.text})
        yield self._chunk({}, finish_reason=completion.finish_reason)
        if self._include_usage:
            yield orjson.dumps({**self._frame, "choices": [], "usage": completion.usage.body})
        yield b"[DONE]"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return orjson.dumps({**self._frame, "choices": [choice], **usage})


def generation_step(model: str, *, stream: bool) -> AbstractContextManager[Span]:
    """The span from prompt to last token; it carries no usage, the caller's span does."""
    attributes: dict[str, str | bool] = {
        "offline_llm.model": model,
        "offline_llm.stream": stream,
    }
    return step("generate_tokens", **attributes)


def log_completion(completion: Completion, *, stream: bool, started: float) -> None:
    """One line for a reply that is out; `started` is a reading of `time.perf_counter`."""
    _log.info(
        "completion",
        model=completion.model,
        stream=stream,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
        tool_calls=len(completion.calls),
        duration_ms=round((time.perf_counter() - started) * 1000, 1),
    )


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Await `work`, or cancel it when the client hangs up.

    Raises:
        ClientGoneError: the client hung up first.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        working.result()
    except OSError as error:  # the server's send tells of a broken connection
        raise ClientGoneError from error
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
