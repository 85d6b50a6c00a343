"""The whole agent against Anthropic's wire format, whose tools, schemas and streams differ."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.service.conftest import Start
from tests.service.loopback import FakeRetrieval, serving


class FakeAnthropic:
    """Anthropic's messages API; every call reports 10 + 2 cached input and 3 output tokens."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.status = 200
        self.calculations = ["6*7"]
        self.app = Starlette(routes=[Route("/v1/messages", self._messages, methods=["POST"])])

    async def _messages(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if self.status != 200:
            error = {"type": "overloaded_error", "message": "Overloaded"}
            return JSONResponse({"type": "error", "error": error}, self.status)
        if body.get("stream"):
            return StreamingResponse(_stream(body["model"]), media_type="text/event-stream")
        return JSONResponse(_message(body["model"], [self._block(body)]))

    def _block(self, body: dict[str, Any]) -> dict[str, Any]:
        forced = body.get("tool_choice", {}).get("name")
        if forced == "route":
            return _tool_use(forced, {"difficulty": "hard", "sub_queries": ["keys and values"]})
        if forced == "reflect":
            return _tool_use(forced, {"grounded": True, "complete": True, "missing": ""})
        if self.calculations:
            return _tool_use("calculator", {"expression": self.calculations.pop()})
        return {"type": "text", "text": "done"}


async def test_anthropic_runs_the_whole_agent(
    start: Start, retrieval: FakeRetrieval, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routing, tools, streaming, reflection, and tokens with the cached ones counted in."""
    fake = FakeAnthropic()
    async with serving() as serve:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", await serve(fake.app))
        api = await start(
            llm_provider="anthropic",
            anthropic_api_key="k",
            llm_model="claude-sonnet-4-6",
            llm_small_model="claude-haiku-4-5",
        )
        await api.ask("What is the KV cache?", session_id="s")
        response = await api.ask("什么是 KV 缓存？", session_id="s")
        fake.status = 529
        overloaded = await api.ask()

    assert response.status_code == 200, response.text
    assert response.json()["answer"] == "键值缓存保存键和值 [1]。"
    assert response.json()["sources"] == ["kv-cache"]
    assert response.json()["tokens_used"] == 4 * (10 + 2 + 3)
    assert "keys and values" in {body["query"] for path, body in retrieval.requests if body}
    first_answer = next(body for body in fake.requests if body.get("stream"))
    assert first_answer["model"] == "claude-sonnet-4-6"
    assert "42" in json.dumps(first_answer["messages"])
    assert overloaded.status_code == 503


def _tool_use(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": arguments}


def _message(model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "output_tokens": 3,
        },
    }


async def _stream(model: str) -> AsyncIterator[bytes]:
    start = _message(model, [])
    usage = start["usage"]
    start["usage"] = {**usage, "output_tokens": 0}
    start["stop_reason"] = None
    yield _event("message_start", message=start)
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for piece in ("键值缓存", "保存键和值 [1]。"):
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield _event("content_block_stop", index=0)
    yield _event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage=usage,
    )
    yield _event("message_stop")


def _event(kind: str, **data: Any) -> bytes:
    body = json.dumps({"type": kind, **data}, ensure_ascii=False)
    return f"event: {kind}\ndata: {body}\n\n".encode()
