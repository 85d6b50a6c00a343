"""The protocol, seen by the real OpenAI SDK and by raw HTTP."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from service.llm.endpoint import MAX_BODY_BYTES
from service.llm.tokenizer import Tokenizer
from tests.service.llm.running import ROOT, Collector, Endpoint, start_endpoint

pytestmark = pytest.mark.xdist_group("endpoint")

# Nothing outside this file knows these creatures, so no answer can be prepared for them.
PASSAGES = """<passages>
[1] (zorblax-care) Keeping zorblaxes
A zorblax is a glass-winged pump that lives in cooling towers. It drinks 14 litres of brine a day.
Zorblaxes sing at dusk. Their song warns of falling pressure.

[2] (quindle-notes) Quindles
Quindles sort copper leaves by weight. A quindle never leaves its drawer.

[3] (zorblax-zh) 泽布拉克斯的习性
泽布拉克斯生活在冷却塔里，用玻璃翅膀抽水。它每天喝十四升卤水。黄昏时它会唱歌，提醒人们压力正在下降。
</passages>
"""
EMOJI = "🧑‍🚀🪐"


def ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{PASSAGES}<question>{question}</question>"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "offline-large", "messages": ask("What is a zorblax?"), **fields}


def test_health_names_version_uptime_and_models(endpoint: Endpoint) -> None:
    """GET /health says that it is well, since when, and with which models."""
    health = httpx2.get(f"http://127.0.0.1:{endpoint.port}/health", trust_env=False).json()

    assert health["status"] == "ok"
    assert health["version"]
    assert health["uptime_seconds"] >= 0
    assert health["models"] == ["offline-small", "offline-medium", "offline-large"]


def test_models_are_listed(client: openai.OpenAI) -> None:
    """GET /v1/models lists the sizes, and each can be had by its name."""
    assert [each.id for each in client.models.list()] == [
        "offline-small",
        "offline-medium",
        "offline-large",
    ]
    assert client.models.retrieve("offline-small").owned_by == "spanloom"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("question", "said", "cited"),
    [
        ("How many litres of brine does a zorblax drink?", "14 litres of brine", "[1]"),
        ("What do quindles sort?", "copper leaves by weight", "[2]"),
        ("泽布拉克斯每天喝多少卤水？", "每天喝十四升卤水", "[3]"),
    ],
)
def test_answers_are_quoted_and_cited(
    client: openai.OpenAI, question: str, said: str, cited: str
) -> None:
    """An answer quotes a document never seen before, cites it and says what kind of model it is."""
    for model in ("offline-small", "offline-medium", "offline-large"):
        reply = client.chat.completions.create(model=model, messages=ask(question))
        text = reply.choices[0].message.content

        assert text is not None
        assert said in text
        assert cited in text
        assert "offline extractive model" in text.lower() or "离线抽取式模型" in text
        assert reply.choices[0].finish_reason == "stop"
        assert reply.model == model


def test_nothing_is_invented(client: openai.OpenAI) -> None:
    """A question the passages do not answer gets no quotation and no citation."""
    reply = client.chat.completions.create(
        model="offline-large", messages=ask("Who won the football championship in Bolivia?")
    )
    text = str(reply.choices[0].message.content)

    assert "found nothing" in text
    assert "zorblax" not in text.lower()
    assert "[" not in text


def test_usage_is_counted_with_the_real_tokenizer(
    client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    """Prompt and completion tokens are tiktoken's, with OpenAI's framing of messages."""
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        *ask(f"quindles {EMOJI} 铜叶?"),
    ]
    reply = client.chat.completions.create(model="offline-small", messages=messages)

    framed = sum(
        3 + tokenizer.count(each["role"]) + tokenizer.count(each["content"]) for each in messages
    )
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == framed + 3
    assert reply.usage.completion_tokens == tokenizer.count(str(reply.choices[0].message.content))
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 0
    assert reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize(
    "question",
    [
        "What is a zorblax and what do quindles sort?",
        "泽布拉克斯黄昏时做什么？",
        "🪐 泽布拉克斯 🧑‍🚀?",
    ],
)
def test_a_stream_adds_up_to_the_whole_reply(client: openai.OpenAI, question: str) -> None:
    """Deltas joined are the same text; role first, finish reason last, then usage alone."""
    whole = client.chat.completions.create(model="offline-large", messages=ask(question))
    chunks = list(
        client.chat.completions.create(
            model="offline-large",
            messages=ask(question),
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    deltas = [each.choices[0].delta for each in chunks if each.choices]
    assert deltas[0].role == "assistant"
    assert "".join(each.content or "" for each in deltas) == whole.choices[0].message.content
    assert not any("\ufffd" in (each.content or "") for each in deltas)
    assert len(deltas) > 3
    assert [each.choices[0].finish_reason for each in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(each.usage is None for each in chunks[:-1])
    assert len({each.id for each in chunks}) == 1


def test_a_stream_is_framed_as_openai_frames_it(http: httpx2.Client) -> None:
    """Events are `data:` lines of JSON, the last one [DONE]; without the option no usage."""
    reply = http.post("/chat/completions", json=body(stream=True))

    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    parsed = [json.loads(each.removeprefix("data: ")) for each in events[:-2]]
    assert {each["object"] for each in parsed} == {"chat.completion.chunk"}
    assert not any("usage" in each for each in parsed)


def test_length_is_limited_in_tokens(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """Both limits cut at exactly that many tokens, and never inside a character."""
    question = "泽布拉克斯黄昏时做什么？"
    full = client.chat.completions.create(model="offline-large", messages=ask(question))
    text = str(full.choices[0].message.content)
    for limit in range(1, 30):
        names = ("max_tokens", "max_completion_tokens")
        cut = client.chat.completions.create(
            model="offline-large", messages=ask(question), **{names[limit % 2]: limit}
        )

        assert cut.choices[0].finish_reason == "length"
        assert cut.usage is not None
        assert cut.usage.completion_tokens == limit
        assert text.startswith(str(cut.choices[0].message.content))
        assert cut.choices[0].message.content == tokenizer.decode(tokenizer.encode(text)[:limit])


def test_stop_sequences_end_the_reply(client: openai.OpenAI) -> None:
    """The reply ends before the first stop sequence it would contain."""
    reply = client.chat.completions.create(
        model="offline-large", messages=ask("What do quindles sort?"), stop=["never", " by weight"]
    )

    assert reply.choices[0].message.content == "Quindles sort copper leaves"
    assert reply.choices[0].finish_reason == "stop"


def test_sampling_parameters_change_nothing(client: openai.OpenAI) -> None:
    """The model does not sample: temperature and seed are taken and have no effect."""
    replies = [
        client.chat.completions.create(
            model="offline-large", messages=ask("What is a zorblax?"), temperature=heat, seed=7
        )
        for heat in (0, 2)
    ]

    assert replies[0].choices[0].message.content == replies[1].choices[0].message.content


@pytest.mark.parametrize(
    ("payload", "status", "code", "param"),
    [
        (b"{not json", 400, None, None),
        (b"", 400, None, None),
        (b"\xff\xfe", 400, None, None),
        (
            b'{"model":"offline-small","messages":[{"role":"user","content":"\\ud800"}]}',
            400,
            None,
            None,
        ),
        (b"[1]", 400, None, None),
        (b"[" * 100_000, 400, None, None),
        ({"model": "offline-small"}, 400, "missing_required_parameter", "messages"),
        (body(model="gpt-5"), 404, "model_not_found", "model"),
        (body(colour="red"), 400, "unknown_parameter", "colour"),
        (body(n=2), 400, "unsupported_value", "n"),
        (body(messages=[]), 400, "invalid_value", "messages"),
        (
            body(messages=[{"role": "wizard", "content": "x"}]),
            400,
            "invalid_value",
            "messages[0].role",
        ),
        (body(messages=[{"role": "user", "content": None}]), 400, None, "messages[0].content"),
        (
            body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            400,
            "invalid_value",
            "messages[0].content",
        ),
        (
            body(messages=[{"role": "tool", "tool_call_id": "a", "content": "x"}]),
            400,
            None,
            "messages[0].role",
        ),
        (body(max_tokens=0), 400, "invalid_value", "max_tokens"),
        (body(temperature=9), 400, "invalid_value", "temperature"),
        (body(stream_options={"include_usage": True}), 400, None, "stream_options"),
        (body(tool_choice="required"), 400, None, "tool_choice"),
        (body(logprobs=True), 400, "invalid_value", "logprobs"),
        (body(response_format={"type": "json_schema"}), 400, None, "response_format"),
        (
            body(
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^a$"}},
                }
            ),
            400,
            "invalid_json_schema",
            "response_format",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict | bytes) else None,
)
def test_errors_have_openais_shape(
    http: httpx2.Client, payload: Any, status: int, code: str | None, param: str | None
) -> None:
    """Whatever is wrong with a request, the answer names it in OpenAI's error object."""
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    reply = http.post("/chat/completions", content=content)

    assert reply.status_code == status
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    if param is not None:
        assert str(error["param"]).startswith(param)


def test_unknown_paths_and_methods_have_openais_shape(http: httpx2.Client) -> None:
    """A wrong URL or method is refused in the same error object."""
    assert http.get("/embeddings").json()["error"]["code"] == "unknown_url"
    assert http.get("/chat/completions").status_code == 405
    assert http.get("/chat/completions").json()["error"]["type"] == "invalid_request_error"


def test_tool_calls_must_be_answered(http: httpx2.Client) -> None:
    """An assistant's tool call without its tool message is refused."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [*ask("x"), {"role": "assistant", "tool_calls": [call]}]
    reply = http.post("/chat/completions", json=body(messages=messages))

    assert reply.status_code == 400
    assert "c1" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("model", "window"), [("offline-small", 8192), ("offline-medium", 32768)])
def test_a_prompt_beyond_the_context_window_is_refused(
    client: openai.OpenAI, model: str, window: int
) -> None:
    """Each size has its window; beyond it the error is OpenAI's context_length_exceeded."""
    words = "copper leaf " * (window // 2)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}])

    assert refused.value.code == "context_length_exceeded"
    assert str(window) in refused.value.message
    larger = client.chat.completions.create(
        model="offline-large", messages=[{"role": "user", "content": words}]
    )
    assert larger.usage is not None
    assert larger.usage.prompt_tokens > window


def test_bodies_are_limited(endpoint: Endpoint, http: httpx2.Client) -> None:
    """A body over the limit gets 413, declared or chunked, and the endpoint lives on."""
    huge = b" " * (MAX_BODY_BYTES + 1)
    for content in (huge, (huge[:65536] for _ in range(64))):
        try:
            reply = http.post("/chat/completions", content=content)
        except httpx2.TransportError:
            continue  # the server closed the connection while we were still sending
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "request_too_large"
    assert http.get(f"http://127.0.0.1:{endpoint.port}/health").status_code == 200


def test_a_callers_trace_is_continued(http: httpx2.Client, collector: Collector) -> None:
    """The server span hangs under the caller's span, the generation under it, without usage."""
    for stream, trace_id in ((False, "4bf92f3577b34da6a3ce929d0e0e4736"), (True, "a" * 31 + "1")):
        header = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        reply = http.post("/chat/completions", json=body(stream=stream), headers=header)

        assert reply.headers["x-request-id"] == trace_id
        server = collector.wait_for("POST /v1/chat/completions", trace_id)
        generation = collector.wait_for("generate_tokens", trace_id)
        assert server.parent_span_id.hex() == "00f067aa0ba902b7"
        assert server.kind == server.SPAN_KIND_SERVER
        assert generation.parent_span_id == server.span_id
        assert not [
            each.key
            for span in (server, generation)
            for each in span.attributes
            if each.key.startswith("gen_ai.")
        ]
        assert len([each for each in collector.spans if each.trace_id.hex() == trace_id]) == 2


def test_the_generation_step_covers_the_work(http: httpx2.Client, collector: Collector) -> None:
    """Not the sending alone: a generation that fails fails inside its step, streamed or whole."""
    for stream, trace_id in ((False, "b" * 31 + "1"), (True, "b" * 31 + "2")):
        header = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        reply = http.post(
            "/chat/completions", json={**body(stream=stream), "model": "unknown"}, headers=header
        )

        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"
        generation = collector.wait_for("generate_tokens", trace_id)
        assert generation.status.code == generation.status.STATUS_CODE_ERROR


def test_log_lines_carry_the_callers_trace(http: httpx2.Client, endpoint: Endpoint) -> None:
    """The line of a completion has the caller's trace id and the tokens, never the text."""
    trace_id = "5cf92f3577b34da6a3ce929d0e0e4736"
    header = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    http.post("/chat/completions", json=body(), headers=header)

    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [
            each
            for each in list(endpoint.lines)
            if each["event"] == "completion" and each.get("trace_id") == trace_id
        ]
        if found:
            break
        time.sleep(0.05)
    assert len(found) == 1
    assert found[0]["completion_tokens"] > 0
    assert "zorblax" not in json.dumps(endpoint.lines).lower()


def test_a_slow_model_stops_when_the_caller_leaves(data_dir: Path, collector: Collector) -> None:
    """With a speed set, tokens trickle; a caller that hangs up cancels the generation."""
    slow = start_endpoint(
        data_dir,
        AGENT_OFFLINE_LLM_TOKENS_PER_S="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    url = f"{slow.base_url}/chat/completions"
    streamed, whole = "c" * 31 + "1", "c" * 31 + "2"
    try:
        with httpx2.Client(trust_env=False, timeout=60) as raw:
            header = {"traceparent": f"00-{streamed}-00f067aa0ba902b7-01"}
            with raw.stream("POST", url, json=body(stream=True), headers=header) as reply:
                assert next(reply.iter_lines()).startswith("data: ")
            header = {"traceparent": f"00-{whole}-00f067aa0ba902b7-01"}
            impatient = httpx2.Timeout(60, read=4)
            with pytest.raises(httpx2.ReadTimeout):
                raw.post(url, json=body(), headers=header, timeout=impatient)
        for trace_id in (streamed, whole):
            span = collector.wait_for("generate_tokens", trace_id)
            outcome = {each.key: each.value.string_value for each in span.attributes}
            assert span.status.code == span.status.STATUS_CODE_ERROR
            assert outcome["spanloom.outcome"] == "cancelled"
            assert outcome["error.type"] == "cancelled"
    finally:
        slow.stop()


def test_it_answers_while_the_telemetry_backend_is_down(data_dir: Path) -> None:
    """A dead collector costs no answer, and the endpoint still stops when told."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        lonely = start_endpoint(data_dir, OTEL_EXPORTER_OTLP_ENDPOINT=dead)
        try:
            for _ in range(3):
                url = f"{lonely.base_url}/chat/completions"
                reply = httpx2.post(url, json=body(), trust_env=False, timeout=30)
                assert reply.status_code == 200
        finally:
            lonely.stop()
    assert lonely.process.returncode is not None


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """So does a data folder that is a file."""
    (tmp_path / "file").touch()
    environment = {name: value for name, value in os.environ.items() if "TIKTOKEN" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "service.llm", "serve", "--port", "0"],
        cwd=ROOT,
        env={**environment, "AGENT_DATA_DIR": str(tmp_path / "file"), "OTEL_SDK_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "AGENT_DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(data_dir: Path) -> None:
    """Starting on a port in use says which and what to do, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "service.llm", "serve", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "AGENT_DATA_DIR": str(data_dir)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
