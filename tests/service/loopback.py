"""Small real HTTP servers on loopback that stand in for other processes, faults included."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.listening import KEEP_ALIVE_S

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the test runner's signal handlers alone."""
        yield


Serve = Callable[[Any], Awaitable[str]]


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Serve]:
    """Serves ASGI applications on free ports of this machine, each until the block ends."""
    servers: list[tuple[_Server, asyncio.Task[None]]] = []

    async def serve(app: Any) -> str:
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_config=None,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve())
        servers.append((server, task))
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.005)  # uvicorn offers nothing to wait for
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    try:
        yield serve
    finally:
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*(task for _, task in servers))


class Fault:
    """What a server does instead of answering: an HTTP status, or nothing until cut off.

    `times` limits how often; after that it answers again.
    """

    def __init__(self, status: int | None = None, *, times: int | None = None) -> None:
        self.status = status
        self.left = times
        self.reached = asyncio.Event()
        self.dropped = asyncio.Event()

    async def happen(self, request: Request) -> Response | None:
        if self.left is not None:
            if self.left == 0:
                return None
            self.left -= 1
        self.reached.set()
        if self.status is not None:
            return JSONResponse({"error": {"message": "scripted fault"}}, self.status)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.dropped.set()
        return Response()


class FakeLLM:
    """An OpenAI-compatible endpoint whose answers the test scripts.

    A request's kind is seen from its shape: `route` and `reflect` by their schema, `tools` by
    its tools, `generate` by its stream.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.route: Any = {"difficulty": "simple", "sub_queries": ["first aspect", "second"]}
        self.reflect: list[Any] = []
        self.tool_calls: list[list[tuple[str, dict[str, Any]]]] = []
        self.pieces = ["The cache ", "keeps keys ", "and values [1]."]
        self.pause = asyncio.Event()
        self.pause.set()
        self.paused = asyncio.Event()
        self.dropped = asyncio.Event()
        self.faults: dict[str, Fault] = {}
        self.wordy: set[str] = set()
        """Kinds of requests whose answers reach the token limit."""
        self.cuts = 0
        self._arrived = asyncio.Condition()
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.requests]

    async def seen(self, kind: str, count: int) -> None:
        """Wait until `count` requests of a kind have arrived."""
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(lambda: self.kinds().count(kind) >= count)

    def prompt(self, kind: str, turn: int = -1) -> str:
        bodies = [body for found, body in self.requests if found == kind]
        return json.dumps(bodies[turn]["messages"], ensure_ascii=False)

    async def _models(self, request: Request) -> Response:
        models = JSONResponse({"object": "list", "data": []})
        return await self._fault("models", request) or models

    async def _fault(self, kind: str, request: Request) -> Response | None:
        fault = self.faults.get(kind)
        return None if fault is None else await fault.happen(request)

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        kind = _kind(body)
        self.requests.append((kind, body))
        async with self._arrived:
            self._arrived.notify_all()
        if (failed := await self._fault(kind, request)) is not None:
            return failed
        if kind == "generate":
            return StreamingResponse(
                self._stream(request, body["model"]), media_type="text/event-stream"
            )
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if kind == "route":
            message["content"] = _text(self.route)
        elif kind == "reflect":
            verdict = {"grounded": True, "complete": True, "missing": ""}
            message["content"] = _text(self.reflect.pop(0) if self.reflect else verdict)
        elif self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(arguments)},
                }
                for number, (name, arguments) in enumerate(self.tool_calls.pop(0))
            ]
        else:
            message["content"] = "done"
        completion = _completion(body["model"], message)
        if kind in self.wordy:
            completion["choices"][0]["finish_reason"] = "length"
        return JSONResponse(completion)

    async def _stream(self, request: Request, model: str) -> AsyncIterator[bytes]:
        try:
            for number, piece in enumerate(self.pieces):
                if number == 1:
                    self.paused.set()
                    await self.pause.wait()
                    if self.cuts:
                        self.cuts -= 1
                        raise ConnectionResetError("cut by the test")
                yield _chunk(model, {"role": "assistant", "content": piece})
            yield _chunk(model, {}, finish="stop")
            yield _event({**_envelope(model, chunk=True), "choices": [], "usage": USAGE})
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.dropped.set()
            raise


class FakeRetrieval:
    """The retrieval process with three documents."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.hits = [_hit("kv-cache", 0.9), _hit("batching", 0.6), _hit("paging", 0.3)]
        self.faults: dict[str, Fault] = {}
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/search", self._search, methods=["POST"]),
                Route("/rerank", self._rerank, methods=["POST"]),
                Route("/documents/{document_id}", self._document),
            ]
        )

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    async def _health(self, request: Request) -> Response:
        return await self._fault(request) or JSONResponse({"status": "ok"})

    async def _search(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(("/search", body))
        hits = self.hits[: body["top_k"]]
        return await self._fault(request) or JSONResponse({"index": "docs", "hits": hits})

    async def _rerank(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(("/rerank", body))
        ranked = [
            {"passage_id": passage["passage_id"], "score": 1.0 - 0.1 * position}
            for position, passage in enumerate(body["passages"][: body["top_k"]])
        ]
        return await self._fault(request) or JSONResponse({"passages": ranked})

    async def _document(self, request: Request) -> Response:
        document_id = request.path_params["document_id"]
        self.requests.append((f"/documents/{document_id}", None))
        if (answer := await self._fault(request)) is not None:
            return answer
        if document_id not in {hit["document_id"] for hit in self.hits}:
            return JSONResponse({"detail": "no such document"}, 404)
        return JSONResponse(
            {
                "document_id": document_id,
                "title": document_id.title(),
                "language": "en",
                "text": f"All about {document_id}.",
                "references": ["paging"],
            }
        )

    async def _fault(self, request: Request) -> Response | None:
        fault = self.faults.get(request.url.path)
        return None if fault is None else await fault.happen(request)


def _kind(body: dict[str, Any]) -> str:
    if (wanted := body.get("response_format")) is not None:
        return str(wanted["json_schema"]["name"])
    if body.get("tools"):
        return "tools"
    return "generate"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hit(document_id: str, score: float) -> dict[str, Any]:
    return {
        "passage_id": f"{document_id}#0",
        "document_id": document_id,
        "title": document_id.title(),
        "text": f"Text of {document_id}.",
        "language": "en",
        "score": score,
    }


def _envelope(model: str, *, chunk: bool) -> dict[str, Any]:
    kind = "chat.completion.chunk" if chunk else "chat.completion"
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model}


def _completion(model: str, message: dict[str, Any]) -> dict[str, Any]:
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        **_envelope(model, chunk=False),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": USAGE,
    }


def _chunk(model: str, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({**_envelope(model, chunk=True), "choices": [choice]})


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
