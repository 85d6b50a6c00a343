"""The routes: chat, chat as a stream, health, readiness, metrics."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException

from service import VERSION
from service.agent.graph import Answer
from service.agent.nodes import Redraft, Token
from service.chat import ChatService, Question
from service.errors import ClientGoneError
from service.failures import Failure, describe, log_failure, mark_span
from service.middleware import OUTCOME_STATUS
from service.readiness import Readiness
from service.sessions import ANONYMOUS, DEFAULT_SESSION
from service.settings import Settings
from spanloom.telemetry import current_trace_id
from spanloom.telemetry.metrics import render

_T = TypeVar("_T")

router: Final = APIRouter()

Identifier = Annotated[str, Field(pattern=r"^[a-zA-Z0-9-]+$", max_length=64)]


class ChatRequest(BaseModel):
    """A question. Space around the query does not count."""

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
    session_id: Identifier = DEFAULT_SESSION
    user_id: Identifier = ANONYMOUS

    def question(self) -> Question:
        """The request in the service's own terms."""
        return Question(self.query, self.session_id, self.user_id)


class ChatResponse(BaseModel):
    """An answer and what it stands on."""

    answer: str
    sources: list[str]
    latency_ms: int
    trace_id: str
    tokens_used: int


class Usage(BaseModel):
    """Tokens of all model calls, as the models reported them."""

    input: int
    output: int


class FinalEvent(ChatResponse):
    """The last event of a stream that succeeded."""

    usage: Usage


class ErrorEvent(BaseModel):
    """The last event of a stream that failed; `status` is what /chat would have answered."""

    detail: str
    status: int
    trace_id: str


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    version: str
    revision: str | None
    uptime_seconds: float


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    model_config = ConfigDict(extra="allow")

    detail: Any
    trace_id: str


_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is over the limit."),
        (HTTPStatus.INTERNAL_SERVER_ERROR, "Our fault; the logs know more."),
        (
            HTTPStatus.SERVICE_UNAVAILABLE,
            "A dependency is down, see Retry-After.",
        ),
        (HTTPStatus.GATEWAY_TIMEOUT, "The run was cancelled at its deadline."),
    )
}


class Supervisor:
    """Owns the tasks of one request: none of them outlives it."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Start work that is cancelled when the request is over."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def stop(self) -> bool:
        """Cancel what still runs and wait until it has ended; True if anything did run."""
        running = [task for task in self._tasks if not task.done()]
        for task in running:
            task.cancel()
        # all of them: the error of a run whose caller has left is looked at by nobody else
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return bool(running)


async def _supervisor(request: Request) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    try:
        yield supervisor
    finally:
        # Only a caller who left leaves the stream's run unfinished.
        if await supervisor.stop():
            gone = ClientGoneError("The client closed the stream")
            _note(request, gone)


def _chat(request: Request) -> ChatService:
    service = request.app.state.chat
    assert isinstance(service, ChatService)
    return service


Chat = Annotated[ChatService, Depends(_chat)]


@router.post("/chat", responses=_ERRORS)
async def chat(body: ChatRequest, request: Request, service: Chat) -> ChatResponse:
    """Answer a question."""
    started = time.perf_counter()
    supervisor = Supervisor()
    try:
        run = supervisor.start(
            service.answer(body.question(), endpoint="/chat", emit=lambda _: None)
        )
        gone = supervisor.start(_disconnected(request))
        await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            raise ClientGoneError("The client closed the connection")
        return _response(run.result(), started)
    finally:
        await supervisor.stop()


@router.post("/chat/stream", response_class=EventSourceResponse, responses=_ERRORS)
async def chat_stream(
    body: ChatRequest,
    request: Request,
    service: Chat,
    supervisor: Annotated[Supervisor, Depends(_supervisor)],
) -> AsyncIterable[ServerSentEvent]:
    """Answer a question as server-sent events.

    `token` {text} for every piece; `redraft` {round} when the pieces so far are void because
    the answer was sent back or its model call failed and is tried again; at the end `final`, or
    `error` {detail, status, trace_id}.
    """
    started = time.perf_counter()
    events: asyncio.Queue[Token | Redraft | None] = asyncio.Queue()
    # The run is a task of its own: FastAPI may abandon this generator between two events, when
    # no cancellation could reach a run inside it.
    run = supervisor.start(
        service.answer(body.question(), endpoint="/chat/stream", emit=events.put_nowait)
    )
    run.add_done_callback(lambda _: events.put_nowait(None))
    while (event := await events.get()) is not None:
        match event:
            case Token(text):
                yield ServerSentEvent(event="token", data={"text": text})
            case Redraft(number):
                yield ServerSentEvent(event="redraft", data={"round": number})
    try:
        answer = run.result()
    except Exception as exc:  # noqa: BLE001 - the headers are sent: every error is an event now
        failure = _note(request, exc)
        error = ErrorEvent(
            detail=failure.detail, status=failure.status, trace_id=current_trace_id()
        )
        yield ServerSentEvent(event="error", data=error)
        return
    final = FinalEvent(
        **_response(answer, started).model_dump(),
        usage=Usage(input=answer.usage.input_tokens, output=answer.usage.output_tokens),
    )
    yield ServerSentEvent(event="final", data=final)


@router.get("/health")
async def health(request: Request) -> Health:
    """Tell that the process is alive; asks nobody else."""
    settings = request.app.state.settings
    assert isinstance(settings, Settings)
    uptime = time.monotonic() - request.app.state.started
    return Health(version=VERSION, revision=settings.revision, uptime_seconds=round(uptime, 3))


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Tell whether every dependency answers; 503 names the one that does not."""
    readiness = request.app.state.readiness
    assert isinstance(readiness, Readiness)
    dependencies = await readiness.check()
    down = [name for name, state in dependencies.items() if not state["ok"]]
    body: dict[str, Any] = {"status": "ready", "dependencies": dependencies}
    if not down:
        return JSONResponse(body)
    body |= {
        "status": "not ready",
        "detail": f"Not available: {', '.join(down)}",
        "trace_id": current_trace_id(),
    }
    settings = request.app.state.settings
    assert isinstance(settings, Settings)
    return JSONResponse(
        body,
        status_code=HTTPStatus.SERVICE_UNAVAILABLE,
        headers={"Retry-After": str(settings.retry_after_s)},
    )


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Prometheus text; OpenMetrics with exemplars when asked for."""
    body, content_type = render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


def add_exception_handlers(app: FastAPI) -> None:
    """Answers of the framework's own errors, with the trace id and without the caller's input."""

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, exc: HTTPException) -> JSONResponse:
        # FastAPI says 400 to a body that is no UTF-8 or nested too deep (nothing else here does),
        # and 422 to every other body that is no JSON.
        undecodable = exc.status_code == HTTPStatus.BAD_REQUEST
        return JSONResponse(
            {"detail": exc.detail, "trace_id": current_trace_id()},
            status_code=HTTPStatus.UNPROCESSABLE_ENTITY if undecodable else exc.status_code,
            headers=exc.headers,
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, exc: RequestValidationError) -> JSONResponse:
        # Echoing the input would put the query into proxies' logs, and half a surrogate pair
        # in it could not even be encoded.
        errors = [
            {"type": error["type"], "loc": list(error["loc"]), "msg": error["msg"]}
            for error in exc.errors()
        ]
        return JSONResponse(
            {"detail": errors, "trace_id": current_trace_id()},
            status_code=HTTPStatus.UNPROCESSABLE_ENTITY,
        )


async def _disconnected(request: Request) -> None:
    """Return when the client has hung up; the body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(answer: Answer, started: float) -> ChatResponse:
    return ChatResponse(
        answer=answer.text,
        sources=list(answer.sources),
        latency_ms=round((time.perf_counter() - started) * 1000),
        trace_id=current_trace_id(),
        tokens_used=answer.usage.total_tokens,
    )


def _note(request: Request, exc: Exception) -> Failure:
    """Record the failure of a stream: its status line said 200 before it happened."""
    settings = request.app.state.settings
    assert isinstance(settings, Settings)
    failure = describe(exc, retry_after_s=settings.retry_after_s)
    log_failure(exc, failure, endpoint=request.url.path)
    mark_span(exc)
    request.scope.setdefault("state", {})[OUTCOME_STATUS] = int(failure.status)
    return failure
