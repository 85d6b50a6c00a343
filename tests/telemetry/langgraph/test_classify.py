"""The pure decisions."""

from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage

from spanloom.telemetry.langgraph import classify
from spanloom.telemetry.langgraph.messages import Answer


@pytest.mark.parametrize(
    ("ls_provider", "says_itself", "module", "expected"),
    [
        ("openai", True, "langchain_openai.chat_models.base", "openai"),
        ("azure", True, "langchain_openai.chat_models.azure", "azure.ai.openai"),
        ("google_genai", True, "langchain_google_genai", "gcp.gemini"),
        ("amazon_bedrock", True, "langchain_aws", "aws.bedrock"),
        ("xai", True, "langchain_xai", "x_ai"),
        ("mistral", True, "langchain_mistralai", "mistral_ai"),
        ("my-gateway", True, "app.models", "my-gateway"),
        ("fakelistchatmodel", False, "app.models", None),
        ("googlegenerativeai", False, "langchain_google_genai.chat_models", "gcp.gemini"),
        (None, True, "app.models", None),
        ("", True, "app.models", None),
    ],
)
def test_a_provider_is_true_or_absent(
    ls_provider: Any, says_itself: bool, module: str, expected: str | None
) -> None:
    """Never `langchain`, never a guess from a class name."""
    found = classify.provider_name(ls_provider, says_itself=says_itself, module=module)
    assert found == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.openai.com/v1/", ("api.openai.com", 443)),
        ("http://127.0.0.1:8002/v1", ("127.0.0.1", 8002)),
        ("http://[::1]:8002", ("::1", 8002)),
        ("https://user:secret@host/", ("host", 443)),
        ("not a url", (None, None)),
        ("http://host:nan/", (None, None)),
        ("", (None, None)),
        ("<openai.OpenAI object at 0x7f>", (None, None)),
    ],
)
def test_a_server_is_known_or_absent(url: Any, expected: Any) -> None:
    """Host and port come from a real URL, and never carry a password."""
    assert classify.server_of(url) == expected


def test_an_agent_is_known_by_its_own_metadata() -> None:
    """create_agent marks its graph; a mark in the caller's metadata says nothing."""
    own = {"ls_integration": "langchain_create_agent", "lc_agent_name": "research"}
    assert classify.graph_kind(own, {}, "x") == "invoke_agent"
    assert classify.graph_name(own, {}, "LangGraph") == "research"
    assert classify.graph_kind(None, {}, "x") == "invoke_workflow"
    assert classify.graph_kind({"ls_integration": "langgraph"}, {}, "x") == "invoke_workflow"
    node = SimpleNamespace(bound=SimpleNamespace(func=test_an_agent_is_known_by_its_own_metadata))
    assert classify.graph_kind(None, {"agent": node}, "x") == "invoke_workflow"


def test_an_unnamed_graph() -> None:
    """An entrypoint is named by its function, another graph as LangGraph names it."""
    assert classify.graph_name(None, {"flow": 1}, "LangGraph") == "flow"
    assert classify.graph_name(None, {"__start__": 1, "a": 2}, "LangGraph") == "LangGraph"
    assert classify.graph_name(None, {"flow": 1}, "named") == "named"


def test_a_conversation_is_real_or_absent() -> None:
    """The caller's thread first, then the graph's; ids of other types as text."""
    assert classify.conversation_id({"thread_id": "a"}, {"thread_id": "b"}) == "a"
    assert classify.conversation_id(None, {"thread_id": 7}) == "7"
    assert classify.conversation_id({}, {"thread_id": ""}) is None


def test_a_tool_error_is_a_tool_message_with_that_status() -> None:
    """A result that happens to have a status is no tool error."""
    assert classify.is_tool_error(ToolMessage("x", tool_call_id="1", status="error"))
    assert not classify.is_tool_error(ToolMessage("x", tool_call_id="1"))
    assert not classify.is_tool_error(SimpleNamespace(status="error"))
    assert not classify.is_tool_error("error")


def answer(message: AIMessage, llm_output: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is read from one whole message."""
    read = Answer()
    read.take_result([message], llm_output)
    return {name: value for name in Answer.__slots__ if (value := getattr(read, name))}


def test_tokens_of_each_kind() -> None:
    """Anthropic splits cache writes by lifetime; OpenAI's tiers prefix their details."""
    usage: Any = {
        "input_tokens": 100,
        "output_tokens": 20,
        "total_tokens": 120,
        "input_token_details": {
            "cache_read": 10,
            "cache_creation": 0,
            "ephemeral_5m_input_tokens": 30,
            "ephemeral_1h_input_tokens": 5,
        },
        "output_token_details": {"priority_reasoning": 7},
    }
    assert answer(AIMessage("x", usage_metadata=usage)) == {
        "input_tokens": 100,
        "output_tokens": 20,
        "cache_read": 10,
        "cache_write": 35,
        "cache_write_1h": 5,
        "reasoning": 7,
    }


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {"finish_reason": "stop", "model_name": "gpt", "id": "chatcmpl-1"},
            {"finish_reasons": ["stop"], "model": "gpt", "id": "chatcmpl-1"},
        ),
        (
            {"stop_reason": "end_turn", "model": "claude", "id": "msg_1"},
            {"finish_reasons": ["end_turn"], "model": "claude", "id": "msg_1"},
        ),
        ({"done_reason": "stop", "model": "llama"}, {"finish_reasons": ["stop"], "model": "llama"}),
        ({"finish_reason": None, "model": ""}, {}),
        ({}, {}),
    ],
)
def test_what_providers_call_it(metadata: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same facts under several names; LangChain's own ids are no response ids."""
    assert answer(AIMessage("x", id="lc_run--1", response_metadata=metadata)) == expected


def test_token_usage_in_the_summary_only() -> None:
    """Older integrations report usage beside the messages."""
    summary = {"token_usage": {"prompt_tokens": 3, "completion_tokens": 4}, "model_name": "m"}
    assert answer(AIMessage("x"), summary) == {"input_tokens": 3, "output_tokens": 4, "model": "m"}


def test_each_choice_has_its_finish_reason_and_usage_counts_once() -> None:
    """Two choices of one request repeat its usage."""
    usage: Any = {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14}
    choices = [
        AIMessage("a", usage_metadata=usage, response_metadata={"finish_reason": "stop"}),
        AIMessage("b", usage_metadata=usage, response_metadata={"finish_reason": "length"}),
    ]
    read = Answer()
    read.take_result(choices, None)
    assert (read.input_tokens, read.output_tokens) == (5, 9)
    assert read.finish_reasons == ["stop", "length"]


def test_usage_spread_over_chunks_adds_up() -> None:
    """Anthropic sends input tokens first and output tokens last."""
    read = Answer()
    first: Any = {"input_tokens": 12, "output_tokens": 0, "total_tokens": 12}
    last: Any = {"input_tokens": 0, "output_tokens": 8, "total_tokens": 8}
    assert not read.add_chunk(AIMessageChunk("", usage_metadata=first))
    assert read.add_chunk(AIMessageChunk("你"))
    assert read.add_chunk(AIMessageChunk("", tool_call_chunks=[{"name": "t", "index": 0}]))  # type: ignore[typeddict-item]
    assert not read.add_chunk(AIMessageChunk("", usage_metadata=last))
    assert (read.input_tokens, read.output_tokens) == (12, 8)
