"""One question, three processes, one trace."""

import http.client
import re
import time
from collections.abc import Iterator

import pytest

from spanloom import semconv
from spanloom.model import Span, SpanKind, Trace, TreeNode
from tests.e2e.stack import Stack, traceparent

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]

API, RETRIEVAL, LLM = "agent-api", "retrieval", "offline-llm"

QUESTIONS = [
    pytest.param(
        "At what pressure does the Marrowgate boiler work?",
        ["37 bar"],
        "marrowgate-boiler",
        id="english",
    ),
    pytest.param("青禾望远镜的主镜直径是多少？", ["6.8"], "qinghe-telescope", id="chinese"),
]


def call(path: str, *below: str, service: str) -> list[str]:
    """An HTTP request from the API to another process, as lines of a picture."""
    return [f"POST [{API}]", f"  POST {path} [{service}]", *(f"    {line}" for line in below)]


def chat(model: str) -> list[str]:
    return [
        f"chat {model} [{API}]",
        *(
            f"  {line}"
            for line in call("/v1/chat/completions", f"generate_tokens [{LLM}]", service=LLM)
        ),
    ]


def node(name: str, *below: list[str]) -> list[str]:
    return [f"invoke_node {name} [{API}]", *(f"  {line}" for part in below for line in part)]


def picture(top: TreeNode) -> list[str]:
    """The tree as indented lines."""
    return [f"{'  ' * depth}{it.span.name} [{it.span.service_name}]" for depth, it in top.walk()]


def expected_picture(models: dict[str, str], index: str) -> list[str]:
    search = call("/search", f"retrieval {index} [{RETRIEVAL}]", service=RETRIEVAL)
    rerank = call("/rerank", f"rerank {index} [{RETRIEVAL}]", service=RETRIEVAL)
    steps = [
        node("route", chat(models["route"])),
        node("retrieve", search),
        node("retrieve", search),
        node("retrieve", search),
        node("rerank", rerank),
        node("tools", chat(models["tools"])),
        node("generate", chat(models["generate"])),
        node("reflect", chat(models["reflect"])),
    ]
    return [
        f"POST /chat [{API}]",
        f"  invoke_workflow agent [{API}]",
        *(f"    {line}" for step in steps for line in step),
    ]


def llm_spans(trace: Trace) -> Iterator[Span]:
    for span in trace.spans:
        if span.attributes.get(semconv.GEN_AI_OPERATION_NAME) == semconv.OP_CHAT:
            yield span


def ancestors(trace: Trace, span: Span) -> Iterator[Span]:
    by_id = {span.span_id: span for span in trace.spans}
    while (parent := by_id.get(span.parent_span_id)) is not None:
        yield parent
        span = parent


def node_of(trace: Trace, span: Span) -> str:
    """The graph node a span ran in."""
    return next(
        str(above.attributes[semconv.GEN_AI_NODE_NAME])
        for above in ancestors(trace, span)
        if semconv.GEN_AI_NODE_NAME in above.attributes
    )


@pytest.mark.parametrize(("question", "facts", "document"), QUESTIONS)
def test_a_question_is_one_exact_tree_across_three_processes(
    stack: Stack, question: str, facts: list[str], document: str
) -> None:
    """The caller's trace goes on through API, retrieval and LLM, every parent right.

    The answer comes from an article that only this test has indexed.
    """
    header, trace_id, caller = traceparent()

    answer = stack.ask(question, header)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert all(fact in body["answer"] for fact in facts), body["answer"]
    assert document in body["sources"]
    assert trace_id == body["trace_id"] == answer.headers["x-trace-id"]
    assert re.fullmatch(r"\d+ms", answer.headers["x-request-latency"])

    trace = stack.trace(trace_id)
    (root,) = trace.roots()
    models = {node_of(trace, span): span.name.removeprefix("chat ") for span in llm_spans(trace)}
    (index,) = {
        str(span.attributes[semconv.GEN_AI_DATA_SOURCE_ID])
        for span in trace.spans
        if span.attributes.get(semconv.GEN_AI_OPERATION_NAME) == semconv.OP_RETRIEVAL
    }
    assert expected_picture(models, index) == picture(root)
    assert root.span.parent_span_id == caller
    assert root.span.kind is SpanKind.SERVER
    assert not [span.name for span in trace.spans if span.is_error]
    assert {span.service_name for span in trace.spans} == {API, RETRIEVAL, LLM}


def test_tokens_on_each_llm_span_are_those_the_endpoint_counted(stack: Stack) -> None:
    """What the endpoint logged for a request stands on the span that made it, and sums up."""
    header, trace_id, _ = traceparent()

    body = stack.ask("How does paged attention save KV cache memory?", header).json()

    trace = stack.trace(trace_id)
    calls = len(list(llm_spans(trace)))
    logged = {
        record.span_id: record.attributes
        for record in stack.logs(trace_id, "chat_response", *["completion"] * calls)
        if record.body == "completion"
    }
    by_server: dict[str, tuple[int, int]] = {}
    for span in trace.spans:
        if span.span_id in logged:
            usage = logged[span.span_id]
            tokens = (usage["prompt_tokens"], usage["completion_tokens"])
            for above in (span, *ancestors(trace, span)):
                if above.attributes.get(semconv.GEN_AI_OPERATION_NAME) == semconv.OP_CHAT:
                    by_server[above.span_id] = tokens  # type: ignore[assignment]
    on_spans = {
        span.span_id: (
            span.attributes[semconv.GEN_AI_USAGE_INPUT_TOKENS],
            span.attributes[semconv.GEN_AI_USAGE_OUTPUT_TOKENS],
        )
        for span in llm_spans(trace)
    }
    assert len(on_spans) >= 4
    assert by_server == on_spans
    assert body["tokens_used"] == trace.usage.total_tokens > 0
    (workflow,) = (span for span in trace.spans if span.name == "invoke_workflow agent")
    assert workflow.attributes[semconv.SPANLOOM_USAGE_INPUT_TOKENS] == trace.usage.input_tokens
    assert workflow.attributes[semconv.SPANLOOM_USAGE_OUTPUT_TOKENS] == trace.usage.output_tokens


def test_log_lines_stand_beside_their_spans(stack: Stack) -> None:
    """Every line of the trace names a span of the trace, from all three processes."""
    question = "What does a trace sampling decision cost?"
    header, trace_id, _ = traceparent()

    stack.ask(question, header)

    trace = stack.trace(trace_id)
    events = ("chat_request", "chat_response", "step", "completion", "retrieval_rerank")
    records = stack.logs(trace_id, *events)
    span_ids = {span.span_id for span in trace.spans}
    assert {record.span_id for record in records} <= span_ids
    assert {record.resource.service_name for record in records} == {API, RETRIEVAL, LLM}
    (request,) = (record for record in records if record.body == "chat_request")
    assert request.attributes["query_len"] == len(question)
    assert question not in str(records)
    # One line for each step, so that a trace id found in the logs tells the whole path.
    steps = [record.attributes["name"] for record in records if record.body == "step"]
    assert {
        "invoke_node route", "invoke_node retrieve", "invoke_node rerank", "invoke_node tools",
        "invoke_node generate", "invoke_node reflect", "invoke_workflow agent",
    } <= set(steps)  # fmt: skip
    assert steps.count("invoke_node retrieve") == 3


def test_tools_the_model_calls_are_spans(stack: Stack) -> None:
    """A question that needs arithmetic calls a tool; its span is under the tools node."""
    header, trace_id, _ = traceparent()

    body = stack.ask("What is 1234 * 5678?", header).json()

    assert "7006652" in body["answer"].replace(",", "")
    trace = stack.trace(trace_id)
    (tool,) = (span for span in trace.spans if span.name.startswith("execute_tool"))
    assert node_of(trace, tool) == "tools"
    assert tool.attributes[semconv.SPANLOOM_OUTCOME] == semconv.OUTCOME_OK


def test_an_unsampled_caller_is_honoured_and_told(stack: Stack) -> None:
    """The answer and the logs carry the trace id, no span is stored, and the logs say why."""
    header, trace_id, _ = traceparent(sampled=False)

    answer = stack.ask("What is a KV cache?", header)

    assert trace_id == answer.json()["trace_id"]
    records = stack.logs(trace_id, "chat_response")
    assert {record.flags & 1 for record in records} == {0}
    assert stack.reader.get_trace(trace_id) is None


def test_a_stream_ends_with_sources_trace_id_and_usage(stack: Stack) -> None:
    """POST /chat/stream sends tokens as they come and the rest in one final event."""
    header, trace_id, _ = traceparent()
    events: list[tuple[str, str]] = []
    with stack.client.stream(
        "POST",
        f"{stack.api}/chat/stream",
        json={"query": "At what pressure does the Marrowgate boiler work?"},
        headers={"traceparent": header},
    ) as response:
        assert response.headers["x-trace-id"] == trace_id
        name = ""
        for line in response.iter_lines():
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                events.append((name, line.removeprefix("data:").strip()))

    assert [name for name, _ in events][-1] == "final"
    assert len([name for name, _ in events if name == "token"]) > 1
    assert trace_id in events[-1][1]
    assert "marrowgate-boiler" in events[-1][1]
    trace = stack.trace(trace_id, "POST /chat/stream")
    (generate,) = (s for s in llm_spans(trace) if node_of(trace, s) == "generate")
    assert generate.attributes[semconv.GEN_AI_REQUEST_STREAM] is True
    assert generate.attributes[semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] > 0  # type: ignore[operator]


def test_a_session_knows_its_first_question(stack: Stack) -> None:
    """The second question of a session is answered with the first in mind."""
    session = {"session_id": "boiler-talk", "user_id": "ada"}
    stack.ask("At what pressure does the Marrowgate boiler work?", **session)

    body = stack.ask("And when was it built?", **session).json()

    assert "1911" in body["answer"]


def test_servers_keep_idle_connections_longer_than_their_clients(stack: Stack) -> None:
    """With httpx2's own 5 s, one closes a connection just as the other sends a request over it."""
    addresses = [*stack.document["processes"].values(), stack.query]
    clients = [http.client.HTTPConnection(url.removeprefix("http://")) for url in addresses]

    def ask_all() -> None:
        for client in clients:
            client.request("GET", "/health")
            response = client.getresponse()
            response.read()
            assert not response.will_close

    ask_all()
    time.sleep(7)
    ask_all()
    for client in clients:
        client.close()
