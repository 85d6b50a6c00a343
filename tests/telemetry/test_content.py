"""What content may become: redacted, capped, in the shape of the conventions, and never a fault."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from pydantic import BaseModel, SecretStr

from spanloom import semconv
from spanloom.otlp.decode import decode_traces
from spanloom.server.jaeger_json import span_json
from spanloom.telemetry import TelemetrySettings, content, llm_call, retrieval, tool
from spanloom.telemetry.content import ContentRules
from spanloom.telemetry.inflight import _attributes
from spanloom.telemetry.reference import attributes_of
from spanloom.telemetry.streamed import StreamedAnswer
from spanloom.telemetry.testing import capture_spans
from tests.telemetry.live import Receiver, Script

SECRETS = (
    "sk-abcdef1234567890",
    "Bearer abcdef123456",
    "postgres://me:hunter22@db/x",
    "password=hunter22",
)


@pytest.fixture
def use() -> Iterator[Callable[[ContentRules | None], None]]:
    undo: list[Callable[[], None]] = []
    yield lambda rules: undo.append(content.use(rules))
    for one in reversed(undo):
        one()


def of(captured: Any, name: str, attribute: str) -> Any:
    return json.loads(captured.attributes(name)[attribute])


def say_everything() -> None:
    with llm_call("m", provider="p") as call:
        call.input(
            [SystemMessage("机密 instructions"), HumanMessage("机密 question")],
            tools=[{"type": "function", "function": {"name": "机密"}}],
        )
        call.output(AIMessage("机密 answer"))
    with tool("t") as run:
        run.arguments({"word": "机密"})
        run.result("机密 result")
    with retrieval("i") as search:
        search.query("机密 query")
        search.documents([("机密", 0.5)])


def test_off_records_nothing(use: Any) -> None:
    """Not a word of what hand-written spans are told is on them; an iterator is left unread."""
    use(None)
    unread = iter([("id", 1.0)])
    with capture_spans() as captured:
        say_everything()
        with retrieval("unread") as search:
            search.documents(unread)

    assert len(captured.spans) == 4
    for span in captured.spans:
        assert not semconv.CONTENT_ATTRIBUTES & set(span.attributes or {})
    assert "机密".encode() not in encode_spans(captured.spans).SerializeToString()
    assert next(unread) == ("id", 1.0)


def test_hand_written_spans_say_it_in_the_shape_of_the_conventions(use: Any) -> None:
    """On, each has its content attributes, all that the page lists and no other."""
    use(ContentRules())
    with capture_spans() as captured:
        say_everything()

    assert of(captured, "chat m", "gen_ai.system_instructions") == [
        {"type": "text", "content": "机密 instructions"}
    ]
    assert of(captured, "chat m", "gen_ai.input.messages") == [
        {"role": "user", "parts": [{"type": "text", "content": "机密 question"}]}
    ]
    assert of(captured, "chat m", "gen_ai.output.messages") == [
        {"role": "assistant", "parts": [{"type": "text", "content": "机密 answer"}]}
    ]
    assert of(captured, "chat m", "gen_ai.tool.definitions") == [
        {"type": "function", "name": "机密"}
    ]
    assert of(captured, "execute_tool t", "gen_ai.tool.call.arguments") == {"word": "机密"}
    assert of(captured, "execute_tool t", "gen_ai.tool.call.result") == "机密 result"
    assert captured.attributes("retrieval i")["gen_ai.retrieval.query.text"] == "机密 query"
    assert of(captured, "retrieval i", "gen_ai.retrieval.documents") == [
        {"id": "机密", "score": 0.5}
    ]
    for span in captured.spans:
        carried = dict(span.attributes or {})
        operation = str(carried["gen_ai.operation.name"])
        always, possible = attributes_of(operation, content=True)
        assert always <= set(carried) <= possible
        without = attributes_of(operation)[1]
        assert set(carried) - without == semconv.CONTENT_ATTRIBUTES & set(carried)


def test_it_arrives_as_it_was_written(use: Any) -> None:
    """Over OTLP into the model and Jaeger's JSON the attribute is the same readable text."""
    use(ContentRules())
    with capture_spans() as captured:
        say_everything()
    sent = captured.one("chat m")

    wire = encode_spans([sent]).SerializeToString()
    (received,) = decode_traces(wire, "application/x-protobuf").items
    (tag,) = [
        tag for tag in span_json(received, "p1")["tags"] if tag["key"] == "gen_ai.input.messages"
    ]

    assert received.attributes["gen_ai.input.messages"] == tag["value"]
    assert tag["value"] == '[{"role":"user","parts":[{"type":"text","content":"机密 question"}]}]'
    assert tag["type"] == "string"


def test_it_is_not_announced(use: Any) -> None:
    """What is said of a span while it is open goes into the logs, without content."""
    use(ContentRules())
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input("机密")
        (span,) = captured.open_spans
        assert "gen_ai.input.messages" in (span.attributes or {})
        assert not semconv.CONTENT_ATTRIBUTES & _attributes(span).keys()


CALL = {"name": "look", "args": {"word": "树"}, "id": "1", "type": "tool_call"}
CALL_PART = {"type": "tool_call", "id": "1", "name": "look", "arguments": {"word": "树"}}
TEXT_PART = {"type": "text", "content": "好"}
PNG = "iVBORw0KGgo" * 40


@pytest.mark.parametrize(
    ("message", "role", "parts"),
    [
        ("好", "user", [TEXT_PART]),
        (("human", "好"), "user", [TEXT_PART]),
        (("ai", "好"), "assistant", [TEXT_PART]),
        (HumanMessage("好"), "user", [TEXT_PART]),
        (AIMessage("", tool_calls=[CALL]), "assistant", [CALL_PART]),
        (AIMessageChunk("好"), "assistant", [TEXT_PART]),
        (
            ToolMessage("好", tool_call_id="1"),
            "tool",
            [{"type": "tool_call_response", "id": "1", "response": "好"}],
        ),
        (
            AIMessage("好", additional_kwargs={"reasoning_content": "想"}),
            "assistant",
            [{"type": "reasoning", "content": "想"}, TEXT_PART],
        ),
        (  # Anthropic repeats the call among the blocks
            AIMessage(
                [
                    {"type": "thinking", "thinking": "想", "signature": "x"},
                    {"type": "text", "text": "好"},
                    {"type": "tool_use", "id": "1", "name": "look", "input": {"word": "树"}},
                ],
                tool_calls=[CALL],
            ),
            "assistant",
            [{"type": "reasoning", "content": "想"}, TEXT_PART, CALL_PART],
        ),
        (  # OpenAI's own dictionaries
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"word": "树"}'},
                    }
                ],
            },
            "assistant",
            [CALL_PART],
        ),
        (
            {"role": "tool", "tool_call_id": "1", "content": "好"},
            "tool",
            [{"type": "tool_call_response", "id": "1", "response": "好"}],
        ),
        (  # Anthropic's own
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "好"}],
            },
            "user",
            [{"type": "tool_call_response", "id": "1", "response": "好"}],
        ),
        ({"role": "user", "parts": [TEXT_PART, CALL_PART]}, "user", [TEXT_PART, CALL_PART]),
        (  # images, however they are sent
            HumanMessage(
                [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    {"type": "image", "base64": PNG, "mime_type": "image/png"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                    },
                    {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "file", "file_id": "f-1"},
                ]
            ),
            "user",
            [
                *[{"type": "blob", "modality": "image", "mime_type": "image/png", "size": 330}] * 3,
                {"type": "uri", "modality": "image", "uri": "https://a.test/x.png"},
                {"type": "blob", "modality": "audio", "mime_type": "wav", "size": 3},
                {"type": "file", "modality": "document", "file_id": "f-1"},
            ],
        ),
        (HumanMessage([{"type": "custom", "x": 1}]), "user", [{"type": "custom", "x": 1}]),
        (object(), "user", [{"type": "text", "content": "<object>"}]),
    ],
)
def test_messages_of_every_maker(use: Any, message: Any, role: str, parts: Any) -> None:
    """LangChain's, OpenAI's, Anthropic's, the conventions' own, and what is no message."""
    use(ContentRules())
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input([message])

    assert of(captured, "chat m", "gen_ai.input.messages") == [{"role": role, "parts": parts}]


def test_only_system_messages_in_front_are_instructions(use: Any) -> None:
    """One that comes later is part of the conversation."""
    use(ContentRules())
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input([("system", "a"), ("developer", "b"), ("user", "c"), ("system", "d")])

    assert of(captured, "chat m", "gen_ai.system_instructions") == [
        {"type": "text", "content": "a"},
        {"type": "text", "content": "b"},
    ]
    roles = [message["role"] for message in of(captured, "chat m", "gen_ai.input.messages")]
    assert roles == ["user", "system"]


def test_secrets_are_gone_everywhere(use: Any) -> None:
    """From texts, arguments, results, queries and definitions; by form and by name of the field."""
    use(ContentRules())
    with capture_spans() as captured:
        for secret in SECRETS:
            with llm_call("m", provider="p") as call:
                call.input(
                    [("system", secret), ("user", f"它是 {secret} 吗")], tools=[{"x": secret}]
                )
                call.output(AIMessage(secret, tool_calls=[{**CALL, "args": {"word": secret}}]))
            with tool("t") as run:
                run.arguments({"nested": [{"word": secret}], "api_key": "opensesame"})
                run.result(secret)
            with tool("t") as run:
                run.arguments('{"db_password": "opensesame"}')
            with retrieval("i") as search:
                search.query(secret)

    everything = json.dumps([dict(span.attributes or {}) for span in captured.spans])
    for hidden in ("abcdef", "hunter22", "opensesame"):
        assert hidden not in everything
    assert everything.count("[REDACTED]") > len(SECRETS) * 6


def test_a_schema_keeps_a_property_named_password(use: Any) -> None:
    """Its description is no secret."""
    use(ContentRules())
    parameters = {"type": "object", "properties": {"password": {"type": "string"}}}
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input("x", tools=[{"name": "log_in", "input_schema": parameters}])

    assert of(captured, "chat m", "gen_ai.tool.definitions") == [
        {"type": "function", "name": "log_in", "parameters": parameters}
    ]


def test_the_users_own_redaction(use: Any) -> None:
    """Every text goes through it, whole; if it fails, the text is not written."""

    def hide(text: str) -> str:
        if "boom" in text:
            raise ValueError(text)
        return text.replace("李雷", "某人")

    use(ContentRules(limit=64, redact=hide))
    with capture_spans() as captured, tool("t") as run:
        run.arguments({"李雷": ["x" * 100 + "李雷", "boom"]})
        run.result("李雷")
    shown = of(captured, "execute_tool t", "gen_ai.tool.call.arguments")

    assert list(shown) == ["某人"]
    assert shown["某人"][0].endswith("某人")
    assert shown["某人"][1] == "[REDACTED]"
    assert of(captured, "execute_tool t", "gen_ai.tool.call.result") == "某人"


def test_texts_and_attributes_are_capped(use: Any) -> None:
    """A text keeps its ends; of a long conversation whole messages are left out after the first."""
    rules = ContentRules(limit=100)
    use(rules)
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input([("user", f"{number}：" + "长" * 500) for number in range(1000)])
    text = captured.attributes("chat m")["gen_ai.input.messages"]
    messages = json.loads(text)

    assert len(text) <= rules.total + 100
    first, marker, *rest = messages
    assert first["parts"][0]["content"].startswith("0：")
    assert marker == {
        "role": "omitted",
        "parts": [{"type": "omitted", "content": f"{999 - len(rest)} messages left out"}],
    }
    assert rest[-1]["parts"][0]["content"].startswith("999：")
    assert len(rest) > 5
    for message in (first, *rest):
        (part,) = message["parts"]
        assert len(part["content"]) == 100
        assert "characters left out" in part["content"]


@pytest.mark.parametrize(
    "value",
    [
        ["长" * 90] * 100_000,
        {str(number): "x" * 90 for number in range(100_000)},
        [[[["x" * 80] * 50] * 50] * 50] * 50,
        ["\0" * 90] * 10_000,
        "x y" * 1_000_000,
        "A" * 1_000_000,
        b"x" * 1_000_000,
    ],
    ids=["list", "mapping", "nested", "escapes", "text", "encoded", "bytes"],
)
def test_one_huge_value_is_capped(use: Any, value: Any) -> None:
    """Whatever its form, and it is still JSON."""
    rules = ContentRules(limit=100)
    use(rules)
    with capture_spans() as captured, tool("t") as run:
        run.result(value)
    text = captured.attributes("execute_tool t")["gen_ai.tool.call.result"]

    assert len(text) <= rules.total * 4  # NUL takes six characters to write
    json.loads(text)
    assert "left out" in text or "1000000" in text


def test_a_message_of_many_parts_is_capped(use: Any) -> None:
    """Parts are left out of the middle as messages are."""
    rules = ContentRules(limit=100)
    use(rules)
    blocks: list[Any] = [
        {"type": "text", "text": f"{number} " + "x y" * 20} for number in range(99)
    ]
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input([HumanMessage(blocks)])
    text = captured.attributes("chat m")["gen_ai.input.messages"]

    assert len(text) <= rules.total
    ((message),) = json.loads(text)
    assert message["parts"][1]["type"] == "omitted"
    assert message["parts"][-1]["content"].startswith("98 ")


class Odd(BaseModel):
    name: str
    key: SecretStr
    when: datetime


@dataclasses.dataclass
class Plain:
    word: str
    token: str = dataclasses.field(repr=False)


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_what_json_cannot_say_is_the_name_of_its_type(use: Any) -> None:
    """Objects, half characters, endless numbers, cycles: nothing raises, all else stays."""
    use(ContentRules())
    cycle: list[Any] = []
    cycle.append(cycle)
    with capture_spans() as captured, tool("t") as run:
        run.arguments(
            {
                "odd": Odd(
                    name="n", key=SecretStr("s3cr3t"), when=datetime(2026, 1, 1, tzinfo=UTC)
                ),
                "plain": Plain("w", "s3cr3t"),
                "hostile": Hostile(),
                "half": "\ud83d",
                "nan": float("nan"),
                "big": 10**5000,
                1: {2},
                "cycle": cycle,
                "good": True,
            }
        )
        run.result(Hostile())
    shown = of(captured, "execute_tool t", "gen_ai.tool.call.arguments")

    assert shown["odd"]["name"] == "n"
    assert shown["plain"] == {"word": "w"}
    assert "s3cr3t" not in str(shown)
    assert shown["hostile"].endswith("Hostile>")
    assert (shown["half"], shown["nan"], shown["big"]) == ("?", "nan", "<int>")
    assert (shown["1"], shown["good"]) == ([2], True)
    assert of(captured, "execute_tool t", "gen_ai.tool.call.result").endswith("Hostile>")
    assert len(encode_spans(captured.spans).SerializeToString()) > 100


def test_hostile_messages_hide_no_others(use: Any) -> None:
    """Each stands for itself; the body never notices."""
    use(ContentRules())
    with capture_spans() as captured, llm_call("m", provider="p") as call:
        call.input([Hostile(), HumanMessage("好")], tools=[Hostile()])
        call.output(Hostile())
    names = [m["parts"][0]["content"] for m in of(captured, "chat m", "gen_ai.input.messages")]

    assert names[0].endswith("Hostile>")
    assert names[1] == "好"


def test_a_streamed_answer_is_bounded() -> None:
    """However much comes, what is kept of it is not more; a secret on the edge is not shown."""
    rules = ContentRules(limit=100)
    answer = StreamedAnswer(rules)
    answer.chunk(AIMessageChunk("x " * 48))
    for piece in ("key sk-", "abcdef", "1234567890"):
        answer.chunk(AIMessageChunk(piece))
    for _ in range(10_000):
        answer.chunk(AIMessageChunk("长长 "))
    for number in range(10_000):
        answer.chunk(
            AIMessageChunk(
                "",
                tool_call_chunks=[
                    {
                        "name": "n",
                        "args": "{}",
                        "id": str(number),
                        "index": number,
                        "type": "tool_call_chunk",
                    }
                ],
            )
        )
    with capture_spans() as captured:
        restore = content.use(rules)
        with tool("t") as run:
            answer.write(run.span)
        restore()
    text = captured.attributes("execute_tool t")["gen_ai.output.messages"]
    ((message),) = json.loads(text)

    assert len(text) <= rules.total * 2
    assert "characters left out" in message["parts"][0]["content"]
    assert len(message["parts"][0]["content"]) < 150
    assert "abcdef" not in text
    assert message["parts"][1]["type"] == "tool_call"


@pytest.mark.parametrize(
    ("ours", "standard", "captured"),
    [
        ("", "", False),
        ("true", "", True),
        ("", "SPAN_ONLY", True),
        ("", "span_and_event", True),
        ("", "true", True),
        ("", "false", False),
        ("true", "NO_CONTENT", False),
        ("false", "SPAN_ONLY", False),
        ("true", "SPAN_ONLY", True),
    ],
)
def test_the_variables(ours: str, standard: str, captured: bool) -> None:
    """Either says yes, and neither says no."""
    settings = TelemetrySettings.from_env(
        {
            "SPANLOOM_CAPTURE_CONTENT": ours,
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": standard,
            "SPANLOOM_CONTENT_LIMIT": "100",
        }
    )

    assert settings.capture_content is captured
    assert settings.problems == ()
    rules = content.rules_of(settings)
    assert (rules is not None) is captured
    assert rules is None or rules.limit == 100


def test_events_are_said_not_to_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EVENT_ONLY captures nothing; that is said once, also where nobody calls `setup`."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "EVENT_ONLY")
    monkeypatch.setattr(content, "_is_decided", False)
    with capture_spans() as captured:
        say_everything()
        say_everything()

    assert not any(semconv.CONTENT_ATTRIBUTES & set(s.attributes or {}) for s in captured.spans)
    (problem,) = [one.getMessage() for one in caplog.records if "EVENT_ONLY" in one.getMessage()]
    assert "SPAN_ONLY" in problem
    content.use(None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "EVERYTHING"),
        ("SPANLOOM_CONTENT_LIMIT", "3"),
        ("SPANLOOM_CONTENT_LIMIT", "many"),
    ],
)
def test_a_wrong_value_is_reported_and_ignored(variable: str, value: str) -> None:
    """Nothing is captured because of a mistake."""
    settings = TelemetrySettings.from_env({variable: value})

    (problem,) = settings.problems
    assert problem.startswith(f"{variable}={value!r} is ignored: ")
    assert dataclasses.replace(settings, problems=()) == TelemetrySettings()


SCRIPT = """
from spanloom.telemetry import llm_call, setup
setup("s")
with llm_call("m", provider="p") as call:
    call.input("机密 sk-abcdef1234567890")
"""


@pytest.mark.parametrize("mode", ["SPAN_ONLY", "EVENT_ONLY", ""])
def test_set_up_by_the_environment(script: Script, receiver: Receiver, mode: str) -> None:
    """`setup` follows the variables; EVENT_ONLY is answered by one line in the log."""
    done = script.run(
        SCRIPT,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=mode,
    )

    assert done.returncode == 0, done.stderr
    (span,) = receiver.spans
    texts = [one.value.string_value for one in span.attributes if one.key.endswith("messages")]
    expected = '[{"role":"user","parts":[{"type":"text","content":"机密 [REDACTED]"}]}]'
    assert texts == ([expected] if mode == "SPAN_ONLY" else [])
    assert done.stdout.count("EVENT_ONLY captures nothing") == (mode == "EVENT_ONLY")
    assert "机密" not in done.stdout
    assert "机密" not in str(receiver.logs)
