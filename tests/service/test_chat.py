import asyncio
import dataclasses
import re

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spanloom.telemetry import Telemetry
from tests.service.conftest import Api, Start
from tests.service.loopback import USAGE, FakeLLM, FakeRetrieval, Fault

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


async def test_an_answer_has_its_sources_its_trace_and_its_real_tokens(
    api: Api, llm: FakeLLM
) -> None:
    """The answer is what the model streamed; tokens are the sum of every call's usage."""
    response = await api.ask()

    assert response.status_code == 200, response.text
    body = response.json()
    assert body["answer"] == "The cache keeps keys and values [1]."
    assert body["sources"] == ["kv-cache"]
    assert re.fullmatch(r"[0-9a-f]{32}", body["trace_id"])
    assert llm.kinds() == ["route", "tools", "generate", "reflect"]
    assert body["tokens_used"] == 4 * USAGE["total_tokens"]
    assert isinstance(body["latency_ms"], int)


async def test_a_callers_trace_is_continued(api: Api) -> None:
    """The trace id in the answer is the one in the caller's traceparent."""
    response = await api.client.post(
        "/chat", json={"query": "What is the KV cache?"}, headers={"traceparent": CALLER}
    )

    assert response.json()["trace_id"] == TRACE_ID
    assert response.headers["x-trace-id"] == TRACE_ID


async def test_the_server_span_names_session_and_user_without_the_users_id(
    api: Api, spans: InMemorySpanExporter
) -> None:
    """A trace is found by session; the user's id itself never leaves the process."""
    await api.ask(session_id="holiday", user_id="alice")

    server = next(span for span in spans.get_finished_spans() if span.name == "POST /chat")
    assert server.attributes is not None
    assert server.attributes["session.id"] == "holiday"
    assert re.fullmatch(r"[0-9a-f]{16}", str(server.attributes["user.id"]))
    assert "alice" not in str([dict(span.attributes or {}) for span in spans.get_finished_spans()])


async def test_the_users_id_is_written_as_it_is_where_the_operator_says_so(
    api: Api,
    telemetry: Telemetry,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SPANLOOM_HASH_USER_ID=false holds for this service as for every other."""
    settings = dataclasses.replace(telemetry.settings, hash_user_id=False)
    monkeypatch.setattr(telemetry, "settings", settings)

    await api.ask(user_id="alice")

    server = next(span for span in spans.get_finished_spans() if span.name == "POST /chat")
    assert server.attributes is not None
    assert server.attributes["user.id"] == "alice"


async def test_three_searches_run_and_their_union_is_reranked(
    api: Api, retrieval: FakeRetrieval
) -> None:
    """The fan-out is the question and the router's proposals; a passage found twice counts once."""
    await api.ask("What is the KV cache?")

    searched = {body["query"] for path, body in retrieval.requests if path == "/search"}
    assert searched == {"What is the KV cache?", "first aspect", "second"}
    reranked = [body for path, body in retrieval.requests if path == "/rerank"]
    assert [[p["passage_id"] for p in body["passages"]] for body in reranked] == [
        ["kv-cache#0", "batching#0", "paging#0"]
    ]


async def test_the_difficulty_picks_the_model_that_answers(api: Api, llm: FakeLLM) -> None:
    """A simple question is answered by the small model, another by the large one."""
    await api.ask()
    llm.route = {"difficulty": "hard", "sub_queries": []}
    await api.ask()

    answered_by = [body["model"] for kind, body in llm.requests if kind == "generate"]
    assert answered_by == ["test-small", "test-large"]


async def test_a_follow_up_is_reranked_and_checked_as_a_question_of_its_own(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """What the model made of a follow-up goes where no history goes; a first question stays."""
    llm.route["standalone_question"] = "How large is the KV cache?"
    session = {"session_id": "s-1", "user_id": "ada"}

    await api.ask("What is the KV cache?", **session)
    await api.ask("And how large is it?", **session)

    reranked = [body["query"] for path, body in retrieval.requests if path == "/rerank"]
    assert reranked == ["What is the KV cache?", "How large is the KV cache?"]
    for kind in ("tools", "reflect"):
        assert "How large is the KV cache?" in llm.prompt(kind)
    assert "And how large is it?" in llm.prompt("generate")


async def test_a_router_that_does_not_keep_to_the_schema_costs_nothing(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """Broken structured output falls back: a moderate question with searches of our own."""
    for broken in ("no JSON at all", '{"difficulty":', "[1, 2]", {"difficulty": 7}, "null"):
        llm.route = broken

        response = await api.ask("What is the KV cache?")

        assert response.status_code == 200, (broken, response.text)
    assert retrieval.paths().count("/search") == 3 * 5


async def test_what_reached_the_token_limit_is_counted_and_costs_no_answer(
    api: Api, llm: FakeLLM, spans: InMemorySpanExporter
) -> None:
    """OpenAI's SDK raises for JSON that was cut; answer and spans have its tokens all the same."""
    llm.wordy = {"route"}

    response = await api.ask()

    assert response.status_code == 200
    assert response.json()["tokens_used"] == 4 * USAGE["total_tokens"]
    chats = [span for span in spans.get_finished_spans() if span.name.startswith("chat ")]
    counted = [(span.attributes or {}).get("gen_ai.usage.input_tokens") for span in chats]
    assert counted == [USAGE["prompt_tokens"]] * 4


async def test_an_endpoint_without_schemas_still_answers(api: Api, llm: FakeLLM) -> None:
    """Compatible endpoints that refuse response_format with 400 are usable."""
    llm.faults = {"route": Fault(400), "reflect": Fault(400)}

    response = await api.ask()

    assert response.status_code == 200
    assert response.json()["tokens_used"] == 2 * USAGE["total_tokens"]


async def test_tools_run_and_their_results_reach_the_answer(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """Calls of one turn run together, each gets its result, the generator sees them all."""
    llm.tool_calls = [
        [
            ("calculator", {"expression": "2**10"}),
            ("current_time", {"timezone": "Asia/Shanghai"}),
            ("lookup_document", {"document_id": "batching"}),
        ]
    ]

    response = await api.ask()

    assert response.json()["sources"] == ["kv-cache", "batching"]
    assert "/documents/batching" in retrieval.paths()
    prompt = llm.prompt("generate")
    assert "1024" in prompt
    assert "+08:00" in prompt
    assert "All about batching." in prompt


async def test_a_failed_tool_call_is_told_to_the_model_and_not_to_the_caller(
    api: Api, llm: FakeLLM
) -> None:
    """Bad arguments, unknown tools, missing documents: the model may try again."""
    llm.tool_calls = [
        [
            ("calculator", {"expression": "9**9**9"}),
            ("calculator", {"wrong": 1}),
            ("current_time", {"timezone": "../../etc/passwd"}),
            ("lookup_document", {"document_id": "no/such"}),
            ("rm_rf", {}),
        ]
    ]

    response = await api.ask()

    assert response.status_code == 200, response.text
    prompt = llm.prompt("tools")
    assert prompt.count("error: ") == 5
    assert "larger than" in prompt
    assert "not a time zone" in prompt
    assert "no document" in prompt
    assert "no tool 'rm_rf'" in prompt


async def test_the_tool_loop_is_bounded(start: Start, llm: FakeLLM) -> None:
    """A model that always wants one more call gets an end; so does one that repeats itself."""
    api = await start(max_tool_rounds=3)
    llm.tool_calls = [[("calculator", {"expression": f"{n}+1"})] for n in range(10)]
    await api.ask()

    assert llm.kinds().count("tools") == 3

    llm.requests.clear()
    llm.tool_calls = [[("calculator", {"expression": "1+1"})] for _ in range(10)]
    await api.ask()

    assert llm.kinds().count("tools") == 2


async def test_a_rejected_answer_is_written_again_a_bounded_number_of_times(
    start: Start, llm: FakeLLM
) -> None:
    """The critic's "no" costs one more draft, which knows what was missing; then it is sent."""
    api = await start(max_reflections=2)
    no = {"grounded": True, "complete": False, "missing": "the memory it needs"}
    llm.reflect = [no, no, no, no]

    response = await api.ask()

    assert llm.kinds() == [
        *("route", "tools"),
        *("generate", "reflect", "generate", "reflect", "generate"),
    ]
    assert "the memory it needs" in llm.prompt("generate")
    assert response.json()["tokens_used"] == 7 * USAGE["total_tokens"]


async def test_reflection_can_be_switched_off(start: Start, llm: FakeLLM) -> None:
    """With no rounds allowed the critic is not asked, and the session still remembers."""
    api = await start(max_reflections=0)

    await api.ask("first question", session_id="s")
    await api.ask("second question", session_id="s")

    assert "reflect" not in llm.kinds()
    assert "first question" in llm.prompt("generate")


async def test_no_passages_still_give_an_answer(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """An empty search is an answer without sources, not an error."""
    retrieval.hits = []
    llm.pieces = ["The passages ", "do not say."]

    response = await api.ask()

    assert response.status_code == 200
    assert response.json()["sources"] == []
    assert "/rerank" not in retrieval.paths()


@pytest.mark.parametrize("said", ["The passages do not say.", "That makes 42.", "See [9]."])
async def test_an_answer_that_cites_nothing_names_no_sources(
    api: Api, llm: FakeLLM, said: str
) -> None:
    """Passages that were found but not used are not what the answer stands on."""
    llm.pieces = [said]

    response = await api.ask()

    assert response.json()["sources"] == []


async def test_chinese_passes_through_every_part(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """Question, searches, prompt and answer keep every character."""
    llm.route = {"difficulty": "moderate", "sub_queries": ["键值缓存 显存"]}
    llm.pieces = ["键值缓存", "保存注意力的键和值【1】。"]

    response = await api.ask("什么是 KV 缓存？🙂")

    assert response.json()["answer"] == "键值缓存保存注意力的键和值【1】。"
    assert response.json()["sources"] == ["kv-cache"]
    assert "什么是 KV 缓存？🙂" in llm.prompt("generate")
    searched = {body["query"] for path, body in retrieval.requests if path == "/search"}
    assert {"什么是 KV 缓存？🙂", "键值缓存 显存"} < searched


async def test_twenty_requests_at_once_do_not_mix(api: Api) -> None:
    """Every request gets its own trace id and its own tokens."""
    asked = await asyncio.gather(
        *(api.ask(f"Question {n}", session_id=f"s-{n}") for n in range(20))
    )

    assert len({response.json()["trace_id"] for response in asked}) == 20
    assert {response.json()["tokens_used"] for response in asked} == {4 * USAGE["total_tokens"]}
    for response in asked:
        assert response.json()["trace_id"] == response.headers["x-trace-id"]
