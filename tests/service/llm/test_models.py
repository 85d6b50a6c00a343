"""LangChain chat models over the real endpoint, and over a loopback stand-in for Anthropic."""

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel, Field

from service.llm.models import (
    DEFAULT_MODELS,
    ChatModels,
    ModelSettingsError,
    build_chat_models,
)
from service.llm.tokenizer import Tokenizer
from service.settings import Settings
from tests.service.llm.running import ROOT
from tests.service.loopback import FakeLLM, serving

CONTEXT = "<passages>\n[1] (vorn) Vorns\nA vorn weighs 42 stone.\n</passages>"
QUESTION = f"{CONTEXT}<question>How much does a vorn weigh?</question>"


@pytest.fixture
async def models(settings: Settings) -> AsyncIterator[ChatModels]:
    built = build_chat_models(settings)
    yield built
    await built.close()


def test_the_default_is_offline(models: ChatModels) -> None:
    """Without a key the offline models are used, a large and a small one."""
    assert models.provider == "offline"
    assert (models.large_name, models.small_name) == ("offline-large", "offline-small")


async def test_invoke_and_stream_report_the_same_usage(
    models: ChatModels, tokenizer: Tokenizer
) -> None:
    """An answer, whole or streamed, has the same text and the tokens that were really counted."""
    whole = await models.large.ainvoke(QUESTION)
    joined: AIMessageChunk | None = None
    async for chunk in models.large.astream(QUESTION):
        assert isinstance(chunk, AIMessageChunk)
        joined = chunk if joined is None else joined + chunk

    assert joined is not None
    assert "42 stone" in str(whole.text)
    assert joined.text == whole.text
    assert joined.usage_metadata == whole.usage_metadata
    assert joined.usage_metadata is not None
    assert joined.usage_metadata["output_tokens"] == tokenizer.count(str(whole.text))
    assert models.large.invoke(QUESTION).text == whole.text


async def test_tools_are_called_and_their_results_used(models: ChatModels) -> None:
    """Bound tools come back as LangChain tool calls, whole and streamed, until answered."""

    @tool
    def reckon(formula: str) -> str:
        """Work out an arithmetic expression."""
        return formula

    bound = models.small.bind_tools([reckon])
    question = HumanMessage("What is 17 * 23?")
    reply = await bound.ainvoke([question])
    streamed: AIMessageChunk | None = None
    async for chunk in bound.astream([question]):
        assert isinstance(chunk, AIMessageChunk)
        streamed = chunk if streamed is None else streamed + chunk

    assert [(call["name"], call["args"]) for call in reply.tool_calls] == [
        ("reckon", {"formula": "17 * 23"})
    ]
    assert streamed is not None
    assert [call["args"] for call in streamed.tool_calls] == [{"formula": "17 * 23"}]
    assert streamed.response_metadata["finish_reason"] == "tool_calls"
    answered = ToolMessage("391", tool_call_id=reply.tool_calls[0]["id"])
    final = await bound.ainvoke([question, reply, answered])
    assert final.tool_calls == []
    assert "391" in str(final.text)


class Verdict(BaseModel):
    """A judgement."""

    grounded: bool
    missing: str
    topics: list[str] = Field(description="keywords of the question")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output_parses(models: ChatModels, method: Any) -> None:
    """with_structured_output works by response_format and by a forced tool call."""
    asked = models.small.with_structured_output(Verdict, method=method)
    true = await asked.ainvoke(f"{QUESTION}<answer>A vorn weighs 42 stone.</answer>")
    false = await asked.ainvoke(f"{QUESTION}<answer>It was painted by monks in Riga.</answer>")

    assert isinstance(true, Verdict)
    assert isinstance(false, Verdict)
    assert (true.grounded, false.grounded) == (True, False)
    assert true.missing == ""
    assert "vorn" in false.missing
    assert "weigh" in true.topics


async def test_a_compatible_address_is_used_as_given(settings: Settings) -> None:
    """Any OpenAI-compatible address works, with the model the settings name for both roles."""
    compatible = settings.model_copy(
        update={"llm_base_url": settings.offline_llm_base_url, "llm_model": "offline-medium"}
    )
    models = build_chat_models(compatible)
    reply = await models.large.ainvoke(QUESTION)
    chunks = [chunk async for chunk in models.small.astream(QUESTION)]
    await models.close()

    assert models.provider == "openai_compatible"
    assert models.small_name == "offline-medium"
    assert "42 stone" in str(reply.text)
    assert any(getattr(chunk, "usage_metadata", None) for chunk in chunks)


async def test_output_is_limited_by_the_setting(settings: Settings) -> None:
    """No answer is longer than llm_max_output_tokens, whichever class sends the limit."""
    for update in (
        {"llm_max_output_tokens": 3},
        {
            "llm_max_output_tokens": 3,
            "llm_base_url": settings.offline_llm_base_url,
            "llm_model": "offline-large",
        },
    ):
        models = build_chat_models(settings.model_copy(update=update))
        reply = await models.large.ainvoke(QUESTION)
        await models.close()

        assert reply.usage_metadata is not None
        assert reply.usage_metadata["output_tokens"] == 3
        assert reply.response_metadata["finish_reason"] == "length"


async def test_closing_one_set_leaves_another_working(settings: Settings) -> None:
    """Closed models refuse work, may be closed twice, and take no other models along."""
    first, second = build_chat_models(settings), build_chat_models(settings)
    await first.large.ainvoke(QUESTION)
    await first.close()
    await first.close()

    assert "42 stone" in str((await second.large.ainvoke(QUESTION)).text)
    with pytest.raises(Exception, match=r"(?i)closed|connection"):
        await first.large.ainvoke(QUESTION)
    await second.close()


async def test_a_failure_is_not_retried_by_the_sdk(settings: Settings) -> None:
    """One failing request is one request on the wire: retries are the graph's."""
    requests: list[str] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readline()).decode())
        writer.write(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        models = build_chat_models(settings.model_copy(update={"offline_llm_port": port}))
        with pytest.raises(Exception, match="503"):
            await models.large.ainvoke("hello")
        await models.close()

    assert len(requests) == 1


@pytest.mark.parametrize(
    ("update", "named"),
    [
        ({"llm_provider": "openai"}, "OPENAI_API_KEY"),
        ({"llm_provider": "anthropic"}, "ANTHROPIC_API_KEY"),
        ({"llm_provider": "openai_compatible", "llm_model": "m"}, "OPENAI_BASE_URL"),
        ({"llm_base_url": "http://127.0.0.1:9/v1"}, "AGENT_LLM_MODEL"),
    ],
)
def test_a_missing_setting_is_named(update: dict[str, Any], named: str) -> None:
    """What a provider needs and does not have is named in the error."""
    empty: dict[str, Any] = {"openai_api_key": None, "anthropic_api_key": None}
    with pytest.raises(ModelSettingsError, match=named):
        build_chat_models(Settings(_env_file=None).model_copy(update={**empty, **update}))


def test_default_models_exist_and_need_no_thinking() -> None:
    """Default names are in the profiles the packages ship, and take tools and schemas."""
    for provider in ("openai", "anthropic"):
        profiles = import_module(f"langchain_{provider}.data._profiles")._PROFILES
        for name in DEFAULT_MODELS[provider]:
            assert profiles[name]["tool_calling"]
            assert profiles[name]["structured_output"]
            assert "none" in profiles[name].get("reasoning_effort_levels", ["none"]) or (
                provider == "anthropic"
            )


async def test_a_deadline_is_not_lost_between_two_pieces(settings: Settings, llm: FakeLLM) -> None:
    """Python 3.11's `wait_for` forgets a cancellation that comes together with a result."""
    llm.pieces = ["a "] * 10_000

    async def is_cut() -> bool:
        try:
            async with asyncio.timeout(0.5 + random.random() / 2):
                async for _ in models.large.astream("Q"):
                    pass
        except TimeoutError:
            return True
        return False

    async with serving() as serve:
        port = int((await serve(llm.app)).rpartition(":")[2])
        models = build_chat_models(settings.model_copy(update={"offline_llm_port": port}))
        cut = [await asyncio.gather(*(is_cut() for _ in range(8))) for _ in range(8)]
        await models.close()

    assert all(map(all, cut)), cut


def test_models_are_imported_late() -> None:
    """Importing the module loads no provider's SDK."""
    script = (
        "import sys, service.llm.models; "
        "print([m for m in ('openai', 'anthropic', 'langchain_openai') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


@pytest.fixture
def anthropic_url() -> Iterator[str]:
    """A loopback server that answers Anthropic's messages API once for each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            message = {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-haiku-4-5",
                "content": [{"type": "text", "text": "你好"}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 5, "output_tokens": 2},
            }
            content = json.dumps(message).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def test_anthropic_does_not_trace_itself(
    anthropic_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Anthropic SDK's own span, which would count every token twice, is off."""
    anthropic = import_module("anthropic")  # takes seconds, so not for every run of the others
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The SDK takes the global provider; to see that it would trace, hand it ours.
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", anthropic_url)
    monkeypatch.delenv("ANTHROPIC_OPEN_TELEMETRY", raising=False)
    plain = anthropic.AsyncAnthropic(api_key="k", base_url=anthropic_url)
    await plain.messages.create(
        model="claude-haiku-4-5", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
    )
    await plain.close()
    assert len(exporter.get_finished_spans()) == 1
    exporter.clear()

    settings = Settings(_env_file=None, llm_provider="anthropic", anthropic_api_key="k")
    models = build_chat_models(settings)
    reply = await models.small.ainvoke("hi")
    assert reply.text == "你好"
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["input_tokens"] == 5
    assert exporter.get_finished_spans() == ()

    await models.close()
    with pytest.raises(Exception, match=r"(?i)closed|connection"):
        await models.small.ainvoke("hi")
