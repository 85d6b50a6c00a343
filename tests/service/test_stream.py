import asyncio
import json
from typing import Any

import httpx2

from tests.service.conftest import Api, Start
from tests.service.loopback import USAGE, FakeLLM, FakeRetrieval, Fault


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def stream(api: Api, **more: str) -> tuple[httpx2.Response, list[tuple[str, Any]]]:
    response = await api.client.post("/chat/stream", json={"query": "What is it?", **more})
    return response, events(response.text)


async def test_a_stream_is_its_tokens_and_then_one_final_event(api: Api) -> None:
    """The tokens joined are the answer, and the final event has what /chat would have said."""
    response, seen = await stream(api)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-latency"].endswith("ms")
    assert [name for name, _ in seen] == ["token", "token", "token", "final"]
    final = seen[-1][1]
    assert "".join(data["text"] for name, data in seen if name == "token") == final["answer"]
    assert final["sources"] == ["kv-cache"]
    assert final["trace_id"] == response.headers["x-trace-id"]
    assert final["usage"] == {
        "input": 4 * USAGE["prompt_tokens"],
        "output": 4 * USAGE["completion_tokens"],
    }
    assert final["tokens_used"] == 4 * USAGE["total_tokens"]
    assert final["latency_ms"] >= 0


async def test_tokens_arrive_while_the_model_is_still_writing(api: Api, llm: FakeLLM) -> None:
    """The first piece is with the caller before the second one exists."""
    llm.pause.clear()
    async with api.client.stream("POST", "/chat/stream", json={"query": "What is it?"}) as response:
        lines = response.aiter_lines()
        async for line in lines:
            if line.startswith("data:"):
                break
        assert json.loads(line.removeprefix("data: ")) == {"text": "The cache "}
        assert not llm.pause.is_set()
        llm.pause.set()
        rest = [line async for line in lines]

    assert "event: final" in rest


async def test_a_second_draft_voids_the_first_one(api: Api, llm: FakeLLM) -> None:
    """When the answer is sent back, the caller is told to start over."""
    llm.reflect = [{"grounded": False, "complete": True, "missing": "a source"}]

    _, seen = await stream(api)

    names = [name for name, _ in seen]
    assert names == [*["token"] * 3, "redraft", *["token"] * 3, "final"]


async def test_a_cut_model_stream_is_tried_again_from_the_start(api: Api, llm: FakeLLM) -> None:
    """The caller is told to start over, and the tokens after that are the whole answer."""
    llm.cuts = 1

    _, seen = await stream(api)

    assert [name for name, _ in seen] == ["token", "redraft", *["token"] * 3, "final"]
    assert "".join(data["text"] for _, data in seen[2:5]) == seen[-1][1]["answer"]


async def test_a_stream_that_fails_ends_with_what_chat_would_have_answered(
    api: Api, retrieval: FakeRetrieval, llm: FakeLLM
) -> None:
    """An outage before or during the answer is one final error event."""
    retrieval.faults["/search"] = Fault(500)
    response, seen = await stream(api)

    assert response.status_code == 200
    (name, data), *more = seen
    assert (name, data["status"], more) == ("error", 503, [])
    assert data["trace_id"] == response.headers["x-trace-id"]

    retrieval.faults.clear()
    llm.cuts = 2
    _, seen = await stream(api)

    assert [name for name, _ in seen] == ["token", "redraft", "token", "error"]
    assert seen[-1][1]["status"] == 503


async def test_an_unexpected_error_in_a_stream_tells_nothing_inner(
    api: Api, retrieval: FakeRetrieval
) -> None:
    """A bug is "Internal error" here too."""
    retrieval.hits = [{"secret": "inner detail"}]

    _, seen = await stream(api)

    ((name, data),) = seen
    assert (name, data["status"], data["detail"]) == ("error", 500, "Internal error")
    assert "secret" not in json.dumps(data)


async def test_the_deadline_ends_a_stream_with_an_error_event(start: Start, llm: FakeLLM) -> None:
    """What was written so far stays; the model's connection is cut."""
    api = await start(deadline_s=8)
    llm.pause.clear()

    _, seen = await stream(api)

    assert [name for name, _ in seen] == ["token", "error"]
    assert seen[-1][1]["status"] == 504
    await asyncio.wait_for(llm.dropped.wait(), 20)


async def test_a_client_that_hangs_up_cancels_the_run(api: Api, llm: FakeLLM) -> None:
    """The model stops writing for nobody: its connection is cut when the caller's is."""
    llm.pause.clear()
    async with api.client.stream("POST", "/chat/stream", json={"query": "What is it?"}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                break

    await asyncio.wait_for(llm.dropped.wait(), 20)
    assert "reflect" not in llm.kinds()


async def test_bad_input_is_refused_before_the_stream_begins(api: Api) -> None:
    """Validation is an ordinary 422, not an event."""
    response = await api.client.post("/chat/stream", json={"query": ""})

    assert response.status_code == 422
