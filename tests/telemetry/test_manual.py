import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode

from spanloom import semconv
from spanloom.telemetry import embeddings, llm_call, operation, rerank, retrieval, step, tool
from spanloom.telemetry.testing import Captured, capture_spans


@pytest.fixture
def captured() -> Iterator[Captured]:
    with capture_spans() as captured:
        yield captured


def test_a_model_call_says_what_was_asked_and_answered(captured: Captured) -> None:
    """Request, response, usage and streaming attributes carry their conventional names."""
    with llm_call(
        "gpt-5", provider="openai", max_tokens=64, stream=True, server_address="127.0.0.1"
    ) as call:
        call.chunk()
        call.chunk()
        call.response(model="gpt-5-2026", id="r1", finish_reasons=["stop"])
        call.usage(input_tokens=10, output_tokens=5, cache_read_input_tokens=4)

    span = captured.one("chat gpt-5")
    found = dict(span.attributes or {})
    assert span.kind is SpanKind.CLIENT
    assert found.pop(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK) >= 0  # type: ignore[operator]
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.stream": True,
        "server.address": "127.0.0.1",
        "gen_ai.response.model": "gpt-5-2026",
        "gen_ai.response.id": "r1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "spanloom.stream.chunks": 2,
        "spanloom.outcome": "ok",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_each_operation_has_its_name_and_kind(captured: Captured) -> None:
    """Names and kinds are those of the conventions; in-process work is INTERNAL."""
    with retrieval("articles", top_k=3) as found:
        found.results(3)
    with retrieval("local", in_process=True):
        pass
    with rerank("articles", model="m", top_k=2) as found_again:
        found_again.results(2)
    with embeddings("mini", provider="local", dimensions=384) as vectors:
        vectors.usage(input_tokens=9)
    with tool("文档查询", call_id="c1"):
        pass
    with step("wait for lock", **{"session.id": "s"}) as span:
        span.set_attribute("a", 1)

    kinds = {span.name: span.kind for span in captured.spans}
    assert kinds == {
        "retrieval articles": SpanKind.CLIENT,
        "retrieval local": SpanKind.INTERNAL,
        "rerank articles": SpanKind.INTERNAL,
        "embeddings mini": SpanKind.CLIENT,
        "execute_tool 文档查询": SpanKind.INTERNAL,
        "wait for lock": SpanKind.INTERNAL,
    }
    assert (captured.one("retrieval articles").attributes or {})["spanloom.result.count"] == 3
    assert dict(captured.one("wait for lock").attributes or {}) == {
        "session.id": "s",
        "a": 1,
        "spanloom.outcome": "ok",
    }


def test_samplers_see_the_attributes_that_matter() -> None:
    """Operation, provider, model and tool name are there when the span is created."""
    seen: dict[str, object] = {}

    class Curious(Sampler):
        def should_sample(self, *args: object, **kwargs: object) -> SamplingResult:
            seen.update(kwargs.get("attributes") or args[4] or {})  # type: ignore[call-overload]
            return SamplingResult(Decision.DROP)

        def get_description(self) -> str:
            return "curious"

    with capture_spans(Curious()), tool("calc"), llm_call("m", provider="openai"):
        pass

    assert seen["gen_ai.tool.name"] == "calc"
    assert seen["gen_ai.provider.name"] == "openai"
    assert seen["gen_ai.request.model"] == "m"


def test_the_current_span_is_the_operations(captured: Captured) -> None:
    """Inside the block the OTel current span is the operation's; after it the one before."""
    before = trace.get_current_span()
    with tool("a") as outer:
        assert trace.get_current_span() is outer.span
        with llm_call("m", provider="openai") as inner:
            assert trace.get_current_span() is inner.span
        assert trace.get_current_span() is outer.span

    assert trace.get_current_span() is before
    assert captured.tree() == "execute_tool a\n  chat m"


def test_a_tool_carries_the_tokens_of_its_model_calls(captured: Captured) -> None:
    """Sums stand on the tool under our own name, so that nobody adds them twice."""
    with tool("summarise"):
        for _ in range(2):
            with llm_call("m", provider="openai") as call:
                call.usage(input_tokens=10, output_tokens=1)

    found = captured.one("execute_tool summarise").attributes or {}
    assert found["spanloom.usage.input_tokens"] == 20
    assert found["spanloom.usage.output_tokens"] == 2
    assert "gen_ai.usage.input_tokens" not in found


def test_a_failed_model_call_has_a_finish_reason(captured: Captured) -> None:
    """Where an answer was expected and lost, the finish reason is `error`."""
    with pytest.raises(RuntimeError), llm_call("m", provider="openai"):
        raise RuntimeError("connection lost")

    found = captured.one("chat m").attributes or {}
    assert found["gen_ai.response.finish_reasons"] == ("error",)


async def test_concurrent_operations_do_not_mix(captured: Captured) -> None:
    """Fifty tasks at once: every child hangs below its own parent."""

    async def request(number: int) -> None:
        with step(f"request {number}"):
            await asyncio.sleep(0)
            with tool(f"tool {number}"):
                await asyncio.sleep(0)

    await asyncio.gather(*(request(number) for number in range(50)))

    for number in range(50):
        parent = captured.one(f"request {number}")
        assert [child.name for child in captured.children_of(parent)] == [
            f"execute_tool tool {number}"
        ]


async def test_a_stream_closed_by_another_task_leaves_no_detach_error(
    captured: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    """An async generator may be finished elsewhere: no log line, no foreign current span."""

    async def stream() -> AsyncIterator[int]:
        with llm_call("m", provider="openai"):
            yield 1

    reading = stream()
    await asyncio.create_task(anext(reading))  # type: ignore[arg-type]  # anext gives a coroutine
    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        await asyncio.create_task(reading.aclose())  # type: ignore[attr-defined]

    assert caplog.records == []
    assert not trace.get_current_span().get_span_context().is_valid
    assert (captured.one("chat m").attributes or {})["spanloom.outcome"] == "abandoned_stream"


def test_telemetry_that_fails_does_not_reach_the_caller() -> None:
    """A tracer that raises costs the span and nothing else."""

    class Broken:
        def start_span(self, *_: object, **__: object) -> None:
            raise RuntimeError("no telemetry today")

    before = operation.swap_tracer(Broken())  # type: ignore[arg-type]
    try:
        with tool("calc"), llm_call("m", provider="openai") as call:
            call.usage(input_tokens=1, output_tokens=1)
            answer = 42
    finally:
        operation.swap_tracer(before)

    assert answer == 42


def test_unsampled_operations_still_run() -> None:
    """With sampling off the block runs, the ids are there, and nothing is kept."""
    with capture_spans(ALWAYS_OFF) as captured:
        with tool("calc") as call:
            assert call.span.get_span_context().is_valid
        assert captured.spans == []
