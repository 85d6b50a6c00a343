import asyncio
import json
import logging

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.free_ports import free_port
from tests.service.conftest import Api, Start
from tests.service.loopback import FakeLLM, FakeRetrieval, Fault


def unused_address() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def cut_at(fault: Fault, api: Api, **more: str) -> httpx2.Response:
    """Ask until a run that got as far as `fault` was cut there; a busy machine may need a few."""
    for _ in range(10):
        response = await api.ask(**more)
        assert response.status_code == 504
        if fault.reached.is_set():
            await asyncio.wait_for(fault.dropped.wait(), 20)
            return response
    raise AssertionError("no run got as far as the fault within its deadline")


def assert_unavailable(response: httpx2.Response, name: str) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) > 0
    body = response.json()
    assert name in body["detail"]
    assert body["trace_id"] == response.headers["x-trace-id"]


async def test_a_retrieval_that_fails_is_503(api: Api, retrieval: FakeRetrieval) -> None:
    """Overload and server errors of retrieval are an outage, and the caller may retry."""
    for path in ("/search", "/rerank"):
        for status in (429, 500, 502, 503):
            retrieval.faults = {path: Fault(status)}

            assert_unavailable(await api.ask(), "search service")


async def test_a_retrieval_that_is_not_there_is_503(start: Start) -> None:
    """Connection refused is an outage."""
    api = await start(retrieval_url=unused_address())

    assert_unavailable(await api.ask(), "search service")


async def test_a_retrieval_that_hangs_is_503_and_is_let_go(
    start: Start, retrieval: FakeRetrieval
) -> None:
    """Its own timeout is an outage, not the caller's deadline."""
    api = await start(retrieval_timeout_s=3)
    fault = retrieval.faults["/search"] = Fault()

    assert_unavailable(await api.ask(), "search service")
    await asyncio.wait_for(fault.dropped.wait(), 20)


async def test_an_llm_that_fails_is_503_wherever_it_happens(api: Api, llm: FakeLLM) -> None:
    """Any of the four calls may meet the outage."""
    for kind in ("route", "tools", "generate", "reflect"):
        llm.faults = {kind: Fault(500)}

        assert_unavailable(await api.ask(), "language model")


async def test_an_llm_that_limits_our_rate_is_503(api: Api, llm: FakeLLM) -> None:
    """429 from the provider is "try later" for our caller as well."""
    llm.faults["generate"] = Fault(429)

    assert_unavailable(await api.ask(), "language model")


async def test_an_llm_that_is_not_there_is_503(start: Start) -> None:
    """Connection refused is an outage."""
    api = await start(llm_base_url=f"{unused_address()}/v1")

    assert_unavailable(await api.ask(), "language model")


async def test_an_llm_that_hangs_is_503(start: Start, llm: FakeLLM) -> None:
    """The provider's timeout is an outage, not the caller's deadline."""
    api = await start(llm_timeout_s=0.3)
    llm.faults["route"] = Fault()

    assert_unavailable(await api.ask(), "language model")


async def test_an_llm_stream_cut_in_the_middle_is_503(api: Api, llm: FakeLLM) -> None:
    """Half an answer is not an answer."""
    llm.cuts = 2

    assert_unavailable(await api.ask(), "language model")


async def test_a_wrong_key_is_our_fault_and_not_an_outage(api: Api, llm: FakeLLM) -> None:
    """Retrying would not help, so nobody is told to."""
    llm.faults["route"] = Fault(401)

    response = await api.ask()

    assert response.status_code == 500
    assert "retry-after" not in response.headers


async def test_the_deadline_cancels_a_model_call_for_real(start: Start, llm: FakeLLM) -> None:
    """504 with the trace id, and the model's connection is gone, whichever call it was."""
    api = await start(deadline_s=1.0)
    faults = {kind: Fault() for kind in ("route", "tools", "generate", "reflect")}
    for kind, fault in faults.items():
        llm.faults = {kind: fault}

        response = await cut_at(fault, api, session_id="s")

        assert "1 s" in response.json()["detail"]
        assert response.json()["trace_id"] == response.headers["x-trace-id"]


async def test_the_deadline_cancels_searches_and_tools_for_real(
    start: Start, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """Retrieval sees its connection drop, whichever step was under way."""
    api = await start(deadline_s=1.0)
    for path in ("/search", "/rerank", "/documents/batching"):
        llm.tool_calls = [[("lookup_document", {"document_id": "batching"})] for _ in range(10)]
        fault = Fault()
        retrieval.faults = {path: fault}

        await cut_at(fault, api)


async def test_a_cut_run_says_so_on_every_span_it_cut(
    start: Start, llm: FakeLLM, spans: InMemorySpanExporter
) -> None:
    """From the server's span down to the model call: timeout, with the deadline that did it."""
    api = await start(deadline_s=1.0)
    fault = llm.faults["generate"] = Fault()

    response = await cut_at(fault, api)

    cut = {
        span.name
        for span in spans.get_finished_spans()
        if f"{span.context.trace_id:032x}" == response.headers["x-trace-id"]
        and (span.attributes or {}).get("spanloom.outcome") == "timeout"
        and span.status.status_code is StatusCode.ERROR
        and (span.attributes or {}).get("spanloom.deadline_ms") == 1000
    }
    assert cut == {
        "POST /chat",
        "invoke_workflow agent",
        "invoke_node generate",
        "chat test-small",
        "POST",
    }


async def test_a_blip_is_not_an_outage(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval, spans: InMemorySpanExporter
) -> None:
    """A step that fails at once is tried once more; every try is a span of its own."""
    llm.faults["route"] = Fault(502, times=1)
    retrieval.faults["/rerank"] = Fault(503, times=1)

    response = await api.ask()

    assert response.status_code == 200
    names = [span.name for span in spans.get_finished_spans()]
    assert names.count("invoke_node route") == names.count("invoke_node rerank") == 2
    assert names.count("invoke_node generate") == 1


async def test_timeouts_and_rate_limits_are_not_tried_again(
    start: Start, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """A second try would come too late, or make it worse."""
    api = await start(retrieval_timeout_s=2, sub_queries=1)
    llm.faults["route"] = Fault(429)
    assert (await api.ask()).status_code == 503
    assert llm.kinds() == ["route"]

    llm.faults.clear()
    retrieval.faults["/search"] = Fault()
    assert (await api.ask()).status_code == 503
    assert retrieval.paths() == ["/search"]


async def test_an_outage_is_one_exception_in_the_trace(
    start: Start, llm: FakeLLM, spans: InMemorySpanExporter
) -> None:
    """The call that failed has it; the spans around it say that they failed, and no more."""
    api = await start(step_attempts=1)
    llm.faults["generate"] = Fault(500)

    await api.ask()

    finished = spans.get_finished_spans()
    having = [span.name for span in finished for event in span.events]
    assert having == ["chat test-small"]
    server = next(span for span in finished if span.name == "POST /chat")
    assert server.status.status_code is StatusCode.ERROR
    assert (server.attributes or {})["spanloom.outcome"] == "error"


async def test_a_client_that_hangs_up_cancels_the_run(api: Api, llm: FakeLLM) -> None:
    """Nobody waits for the answer any more, so nobody writes it."""
    fault = llm.faults["generate"] = Fault()
    asking = asyncio.create_task(api.ask())
    await asyncio.wait_for(fault.reached.wait(), 20)

    asking.cancel()

    await asyncio.wait_for(fault.dropped.wait(), 20)


async def test_a_session_is_usable_after_a_run_was_cut(start: Start, llm: FakeLLM) -> None:
    """A cut run leaves neither a lock nor half a turn behind."""
    api, patient = await start(deadline_s=1.0), await start()
    fault = llm.faults["generate"] = Fault()
    await cut_at(fault, api, query="lost question", session_id="s")
    llm.faults.clear()

    response = await patient.ask("next question", session_id="s")

    assert response.status_code == 200
    assert "lost question" not in llm.prompt("generate")


async def test_an_unexpected_error_is_hidden_logged_and_on_the_span_once(
    api: Api,
    retrieval: FakeRetrieval,
    spans: InMemorySpanExporter,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """500 says nothing inner; the log has the stack, the trace one exception event."""
    caplog.set_level(logging.INFO)
    retrieval.faults["/rerank"] = Fault(418)

    response = await api.ask("my secret question")

    assert response.status_code == 500
    assert response.json() == {
        "detail": "Internal error",
        "trace_id": response.headers["x-trace-id"],
    }
    finished = spans.get_finished_spans()
    server = next(span for span in finished if span.name == "POST /chat")
    assert server.status.status_code is StatusCode.ERROR
    recorded = [event for span in finished for event in span.events if event.name == "exception"]
    assert len(recorded) == 1
    logged = capsys.readouterr().out + caplog.text
    assert "chat_error" in logged
    assert "HTTPStatusError" in logged
    assert "my secret question" not in logged


async def test_logs_tell_the_request_but_never_the_question(
    api: Api, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """chat_request and chat_response carry lengths, counts and ids."""
    caplog.set_level(logging.INFO)

    response = await api.ask("my secret question", user_id="alice")

    logged = capsys.readouterr().out + caplog.text
    assert "chat_request" in logged
    assert "chat_response" in logged
    assert "my secret question" not in logged
    assert "alice" not in logged
    assert json.dumps(response.json()["answer"]) not in logged
