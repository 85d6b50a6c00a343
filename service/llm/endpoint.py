"""The offline model over HTTP, as an OpenAI-compatible endpoint (`/v1/chat/completions`).

A process of its own, so that a model call is a real request on the wire. Any API key is
accepted; it listens on loopback unless told otherwise.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service import VERSION
from service.listening import KEEP_ALIVE_S, listen
from service.llm.generation import HTTP_NOT_FOUND, Completion, complete
from service.llm.offline_model import MODELS
from service.llm.streaming import (
    FINISH_REASON,
    ClientGoneError,
    CompletionStream,
    Pace,
    frame,
    generation_step,
    log_completion,
    unless_gone,
)
from service.llm.tokenizer import load_tokenizer
from service.llm.wire import ApiError, message_body, read_request
from service.settings import Settings
from spanloom.telemetry import Telemetry, current_trace_id, get_logger, setup

SERVICE_NAME: Final = "offline-llm"
# The largest context window is about 600 kB of text; JSON escapes can double Chinese.
MAX_BODY_BYTES: Final = 2 * 1024 * 1024
HTTP_CLIENT_CLOSED_REQUEST: Final = 499
_MODELS_CREATED: Final = 1_767_225_600  # 2026-01-01, a fixed date: the models never change

_log = get_logger(__name__)


def create_app(settings: Settings, *, telemetry: Telemetry | None = None) -> FastAPI:
    """The endpoint's application.

    Without `telemetry` it sets telemetry up and shuts it down with itself; a caller that hands
    one over keeps it.
    """
    own = setup(SERVICE_NAME, service_version=VERSION) if telemetry is None else None

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        if own is not None:
            # Here and not after the server: uvicorn raises SIGTERM again when it has stopped.
            await asyncio.to_thread(own.shutdown)

    app = FastAPI(
        title="Offline LLM",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # The contrib instrumentation traces requests; FastAPI's own would do it twice.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    endpoint = _Endpoint(settings)
    app.add_api_route("/health", endpoint.health, methods=["GET"])
    app.add_api_route("/v1/models", endpoint.models, methods=["GET"])
    app.add_api_route("/v1/models/{model}", endpoint.model, methods=["GET"])
    app.add_api_route(
        "/v1/chat/completions", endpoint.chat_completions, methods=["POST"], response_model=None
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    handle = telemetry or own
    assert handle is not None
    handle.instrument_fastapi(app)
    return app


class _Endpoint:
    """The routes, and what they share."""

    def __init__(self, settings: Settings) -> None:
        self._tokenizer = load_tokenizer(settings.data_dir / "tiktoken")
        self._tokens_per_s = settings.offline_llm_tokens_per_s
        self._started = time.monotonic()

    async def health(self) -> dict[str, Any]:
        """Alive, and since when."""
        return {
            "status": "ok",
            "version": VERSION,
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "models": list(MODELS),
        }

    async def models(self) -> dict[str, Any]:
        """The sizes on offer."""
        return {"object": "list", "data": [_model_body(name) for name in MODELS]}

    async def model(self, model: str) -> dict[str, Any]:
        """One size."""
        if model not in MODELS:
            raise ApiError(
                f"The model '{model}' does not exist",
                status=HTTP_NOT_FOUND,
                param="model",
                code="model_not_found",
            )
        return _model_body(model)

    async def chat_completions(self, request: Request) -> Response:
        """A reply to a conversation, whole or streamed."""
        started = time.perf_counter()
        chat = read_request(_decoded(await _body(request)))

        async def generate() -> Completion:
            # Tokens are counted by native code and sentences ranked by Python: neither may hold
            # up the other requests of the event loop.
            return await asyncio.to_thread(complete, chat, self._tokenizer)

        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        identity = {"id": completion_id, "created": int(time.time())}
        headers = {"x-request-id": current_trace_id() or completion_id}
        if chat.stream:
            return CompletionStream(
                generate,
                identity,
                model=chat.model,
                headers=headers,
                include_usage=chat.wants_usage_chunk,
                tokens_per_s=self._tokens_per_s,
                started=started,
            )
        try:
            with generation_step(chat.model, stream=False) as span:
                completion = await generate()
                span.set_attribute(FINISH_REASON, completion.finish_reason)
                await self._take_time(completion, request)
        except ClientGoneError:
            _log.info("generation_cancelled", model=chat.model)
            return Response(status_code=HTTP_CLIENT_CLOSED_REQUEST)
        log_completion(completion, stream=False, started=started)
        return _json(_completion_body(completion, identity), headers=headers)

    async def _take_time(self, completion: Completion, request: Request) -> None:
        if self._tokens_per_s:
            pace = Pace(self._tokens_per_s)
            await unless_gone(pace.after(completion.usage.completion_tokens), request.receive)


def serve(settings: Settings, host: str, port: int) -> None:
    """Run the endpoint until a signal stops it; port 0 takes a free one and logs which.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    listening = listen(host, port, variable="AGENT_OFFLINE_LLM_PORT")
    with listening:
        address = listening.getsockname()
        app = create_app(settings)
        _log.info("offline_llm_ready", host=address[0], port=address[1], models=list(MODELS))
        # Logging is set up already: uvicorn's own configuration would undo it. Its access log
        # repeats the request's span and log line.
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


async def _body(request: Request) -> bytes:
    """The request's body, chunked or not, refused as soon as it is too large."""
    too_large = ApiError(
        f"The request body is larger than {MAX_BODY_BYTES} bytes.",
        status=413,
        code="request_too_large",
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    return bytes(body)


def _decoded(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}.") from error


def _completion_body(completion: Completion, identity: dict[str, Any]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": message_body(completion.text, completion.calls),
        "logprobs": None,
        "finish_reason": completion.finish_reason,
    }
    return {
        **frame(completion.model, identity, "chat.completion"),
        "choices": [choice],
        "usage": completion.usage.body,
    }


def _model_body(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _MODELS_CREATED, "owned_by": "spanloom"}


def _json(body: dict[str, Any], *, status: int = 200, headers: Any = None) -> Response:
    return Response(
        orjson.dumps(body), status_code=status, media_type="application/json", headers=headers
    )


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    _log.info("completion_refused", status=error.status, code=error.code, param=error.param)
    return _json(error.body, status=error.status, headers=_error_headers())


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    told = ApiError(
        f"Invalid URL ({request.method} {request.url.path}): {error.detail}",
        status=error.status_code,
        code="unknown_url" if error.status_code == HTTP_NOT_FOUND else None,
    )
    return _json(told.body, status=told.status, headers={**(error.headers or {})})


async def _unexpected_error(_request: Request, _error: Exception) -> Response:
    """A defect of ours; Starlette raises it again after this answer and uvicorn logs it."""
    told = ApiError(
        "The server had an error while processing your request.", status=500, kind="server_error"
    )
    return _json(told.body, status=told.status, headers=_error_headers())


def _error_headers() -> dict[str, str]:
    return {"x-request-id": trace_id} if (trace_id := current_trace_id()) else {}
