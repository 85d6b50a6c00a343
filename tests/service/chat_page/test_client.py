"""The page's client against a running API, and against servers that misbehave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.chat_page.client import Answered, Begun, ChatClient, Event, Failed, Piece, Redraft
from spanloom.telemetry import step
from tests.free_ports import free_port
from tests.service.conftest import Start
from tests.service.loopback import USAGE, FakeLLM, Fault

WAIT_S = 60


async def ask(url: str, query: str = "什么是 KV 缓存？", **more: str) -> list[Event]:
    """Everything that comes, asked from a thread: the servers run in this loop."""
    timeout_s = float(more.pop("timeout_s", WAIT_S))
    session_id = more.pop("session_id", "s")
    client = ChatClient(url, timeout_s)
    return await asyncio.to_thread(lambda: list(client.ask(query, session_id=session_id)))


async def test_an_answer_comes_in_pieces_and_with_what_it_took(start: Start, llm: FakeLLM) -> None:
    """First the trace, then the pieces, then the whole with sources, time and tokens."""
    llm.pieces = ["缓存", "保存 ", "键和值 [1]。"]
    api = await start()

    begun, *pieces, last = await ask(str(api.client.base_url))

    assert pieces == [Piece("缓存"), Piece("保存 "), Piece("键和值 [1]。")]
    assert isinstance(last, Answered)
    assert last.text == "缓存保存 键和值 [1]。"
    assert last.sources
    assert last.latency_ms > 0
    assert last.input_tokens == 4 * USAGE["prompt_tokens"]
    assert last.output_tokens == 4 * USAGE["completion_tokens"]
    assert begun == Begun(last.trace_id)


async def test_a_draft_that_was_sent_back_is_void(start: Start, llm: FakeLLM) -> None:
    """The pieces before a redraft are no part of the answer."""
    llm.reflect = [{"grounded": False, "complete": True, "missing": "proof"}]
    api = await start()

    events = await ask(str(api.client.base_url))

    assert Redraft() in events
    assert isinstance(events[-1], Answered)


async def test_the_deadline_of_the_service_is_told_with_the_trace(
    start: Start, llm: FakeLLM
) -> None:
    """As the service says it; what had come before is kept."""
    llm.pause.clear()
    api = await start(deadline_s=8)

    begun, *pieces, last = await ask(str(api.client.base_url))

    assert pieces == [Piece("The cache ")]
    assert isinstance(last, Failed)
    assert "8 s" in last.reason
    assert begun == Begun(last.trace_id)


async def test_patience_ends_though_the_stream_is_alive_and_the_run_is_cancelled(
    start: Start, llm: FakeLLM
) -> None:
    """The client's own limit is for the whole answer; hanging up cancels what nobody awaits."""
    llm.pause.clear()
    api = await start()

    events = await ask(str(api.client.base_url), timeout_s="8")

    assert isinstance(events[-1], Failed)
    assert "within 8 s" in events[-1].reason
    assert events[0] == Begun(events[-1].trace_id)
    await asyncio.wait_for(llm.dropped.wait(), WAIT_S)


async def test_closing_hangs_up(start: Start, llm: FakeLLM) -> None:
    """A visitor who leaves or presses stop costs nothing more."""
    llm.pause.clear()
    api = await start()
    events = ChatClient(str(api.client.base_url), WAIT_S).ask("Q", session_id="s")

    def leave_after_the_first_piece() -> None:
        assert isinstance(next(events), Begun)
        assert next(events) == Piece("The cache ")
        events.close()

    await asyncio.to_thread(leave_after_the_first_piece)

    await asyncio.wait_for(llm.dropped.wait(), WAIT_S)


async def test_a_refused_question_says_which_field_and_why(start: Start, llm: FakeLLM) -> None:
    """422 names the field; no run was begun."""
    api = await start()

    events = await ask(str(api.client.base_url), session_id="not an id!")

    assert isinstance(events[-1], Failed)
    assert events[-1].reason.startswith("session_id: ")
    assert "HTTP 422" in events[-1].reason
    assert events[-1].trace_id
    assert llm.requests == []


async def test_a_dependency_that_is_down_is_told_as_the_service_tells_it(
    start: Start, llm: FakeLLM
) -> None:
    """The sentence of the 503, with the trace to look at."""
    llm.faults["route"] = llm.faults["generate"] = Fault(503)
    api = await start()

    events = await ask(str(api.client.base_url))

    assert isinstance(events[-1], Failed)
    assert events[-1].reason == "The language model is unavailable, try again later."
    assert events[-1].trace_id


async def test_a_service_that_is_down_is_said_with_what_to_do(telemetry: object) -> None:
    """Nothing listens: the address, the command that starts it, the setting; no trace."""
    port = free_port()

    events = await ask(f"http://127.0.0.1:{port}")

    assert len(events) == 1
    assert isinstance(events[0], Failed)
    assert f"127.0.0.1:{port}" in events[0].reason
    assert "make run" in events[0].reason
    assert "AGENT_CHAT_API_URL" in events[0].reason
    assert events[0].trace_id == ""


async def test_the_trace_begins_with_the_caller_where_it_has_one(
    start: Start, spans: InMemorySpanExporter
) -> None:
    """The service's spans stand below the page's, so one trace holds the whole wait."""
    api = await start()

    def asked() -> list[Event]:
        with step("ask"):
            return list(ChatClient(str(api.client.base_url), WAIT_S).ask("Q", session_id="s"))

    events = await asyncio.to_thread(asked)

    (page,) = (span for span in spans.get_finished_spans() if span.name == "ask")
    assert isinstance(events[-1], Answered)
    assert f"{page.context.trace_id:032x}" == events[-1].trace_id


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[str]:
    """Says the same bytes to everybody and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Trace-Id: "
    + b"a" * 32
    + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}".encode() + b"\r\n" + data + b"\r\n"


TOKEN = chunk(b'event: token\ndata: {"text": "half"}\n\n')


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(STREAM + TOKEN, "connection broke", id="cut in the middle"),
        pytest.param(STREAM + TOKEN + b"0\r\n\r\n", "ended before", id="no last event"),
        pytest.param(
            STREAM + chunk(b"event: final\ndata: {}\n\n") + b"0\r\n\r\n", "not this", id="no fields"
        ),
        pytest.param(
            STREAM + chunk(b"event: token\ndata: {\n\n") + b"0\r\n\r\n", "not this", id="no JSON"
        ),
        pytest.param(
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "not this", id="a proxy"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "connection broke", id="no stream"
        ),
        pytest.param(b"", "connection broke", id="hangs up"),
        pytest.param(b"\x00\x01 what\r\n\r\n", "connection broke", id="no HTTP"),
    ],
)
async def test_whatever_goes_wrong_on_the_way_is_one_failure(answer: bytes, reason: str) -> None:
    """Nothing is raised, and the last event says what happened."""
    async with raw_server(answer) as url:
        events = await ask(url)

    assert isinstance(events[-1], Failed)
    assert reason in events[-1].reason
    assert not any(isinstance(event, Answered | Failed) for event in events[:-1])
    if answer.startswith(STREAM):
        assert events[-1].trace_id == "a" * 32
