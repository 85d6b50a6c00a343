"""POST /chat/stream as a page wants it: pieces, then one answer or one failure."""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

import httpx2

from spanloom.telemetry import current_trace_id

_TRACE_ID_HEADER: Final = "X-Trace-Id"
_CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Begun:
    """The service has taken the question; its trace can be looked at from now on."""

    trace_id: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The next words of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Redraft:
    """The pieces so far are void: the answer is written anew."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The whole answer and what it took. Comes last."""

    text: str
    sources: tuple[str, ...]
    latency_ms: int
    input_tokens: int
    output_tokens: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no answer, in a sentence. Comes last."""

    reason: str
    trace_id: str
    """Empty where nothing was traced."""


Event = Begun | Piece | Redraft | Answered | Failed


@dataclass(frozen=True, slots=True)
class ChatClient:
    """Asks one API.

    `timeout_s` is for the whole answer, and longer than the service's own deadline, so that the
    service is the one to say that it was late.
    """

    base_url: str
    timeout_s: float

    def ask(self, query: str, *, session_id: str) -> Generator[Event]:
        """Yield what comes as it comes, at the end an Answered or a Failed; raises nothing.

        Closing it hangs up, upon which the service cancels the run.
        """
        trace_id = current_trace_id()
        # An event loop of its own: only there can a wait for bytes have an end that the
        # keep-alive comments of the stream do not put off.
        with asyncio.Runner() as runner:
            end = runner.get_loop().time() + self.timeout_s
            events = self._events({"query": query, "session_id": session_id})

            async def next_event() -> Event | None:
                async with asyncio.timeout_at(end):
                    return await anext(events, None)

            try:
                while (event := runner.run(next_event())) is not None:
                    yield event
                    match event:
                        case Begun(trace_id):
                            pass
                        case Answered() | Failed():
                            return
                yield Failed("The connection ended before the answer did.", trace_id)
            except TimeoutError:
                yield Failed(f"There was no answer within {self.timeout_s:g} s.", trace_id)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                yield Failed(
                    f"The service does not answer at {self.base_url}. Is it running (make run), and"
                    " is AGENT_CHAT_API_URL right?",
                    trace_id,
                )
            except httpx2.TransportError as error:
                yield Failed(
                    f"The connection broke before the answer was there ({type(error).__name__}).",
                    trace_id,
                )
            except (ValueError, LookupError, TypeError):
                yield Failed(f"What answers at {self.base_url} is not this service.", trace_id)
            finally:
                runner.run(events.aclose())

    async def _events(self, body: dict[str, str]) -> AsyncGenerator[Event]:
        async with (
            httpx2.AsyncClient(
                base_url=self.base_url,
                timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                trust_env=False,  # our own service is not asked through a proxy
            ) as http,
            http.stream("POST", "/chat/stream", json=body) as response,
        ):
            trace_id = response.headers.get(_TRACE_ID_HEADER, "")
            yield Begun(trace_id)
            if response.status_code != HTTPStatus.OK:
                await response.aread()
                yield Failed(_refusal(response), trace_id)
                return
            stream = cast(
                "AsyncGenerator[httpx2.ServerSentEvent]", aiter(httpx2.EventSource(response))
            )
            async with aclosing(stream):
                async for event in stream:
                    if (known := _known(event.event, json.loads(event.data))) is not None:
                        yield known


def _known(name: str, data: dict[str, Any]) -> Event | None:
    """The event in our terms; None for one that a newer service may have added."""
    match name:
        case "token":
            return Piece(data["text"])
        case "redraft":
            return Redraft()
        case "final":
            return Answered(
                text=data["answer"],
                sources=tuple(data["sources"]),
                latency_ms=data["latency_ms"],
                input_tokens=data["usage"]["input"],
                output_tokens=data["usage"]["output"],
                trace_id=data["trace_id"],
            )
        case "error":
            return Failed(f"{data['detail']}.", data["trace_id"])
        case _:
            return None


def _refusal(response: httpx2.Response) -> str:
    """What the service says about a request it did not take up."""
    detail = response.json()["detail"]
    if isinstance(detail, list):  # which fields are wrong, and how
        detail = "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in detail)
    return f"{detail} (HTTP {response.status_code})."
