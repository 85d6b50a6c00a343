"""Who used how much, at which price; and which model calls were refused."""

import http.server
import re
import threading
from decimal import Decimal
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from spanloom import semconv
from spanloom.telemetry import embeddings, llm_call, metrics, pricing, tool
from spanloom.telemetry.endings import classify, is_rate_limit
from spanloom.telemetry.testing import capture, capture_spans

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Labels = dict[str, str]


def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = metrics.render(OPENMETRICS)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


class Increase:
    """How much the counters have grown since it was made."""

    def __init__(self) -> None:
        self._before = samples()

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """Label values, in the order of label names, of all that grew."""
        return {
            tuple(value for _, value in labels): round(after - self._before.get(key, 0.0), 9)
            for key, after in samples().items()
            for found, labels in [key]
            if found == name and after > self._before.get(key, 0.0)
        }


@pytest.fixture
def increase() -> Increase:
    return Increase()


def ask(model: str = "o3", *, input_tokens: int = 1_000_000, output_tokens: int = 0) -> None:
    with llm_call(model, provider="openai") as call:
        call.usage(input_tokens=input_tokens, output_tokens=output_tokens)


def price(input_tokens: int, output_tokens: int = 0) -> float:
    found = pricing.cost_usd(
        provider="openai", model="o3", input_tokens=input_tokens, output_tokens=output_tokens
    )
    assert found is not None
    assert found > Decimal(0)
    return round(float(found), 9)


def test_dollars_and_tokens_are_counted_once_for_model_node_and_tool(increase: Increase) -> None:
    """The innermost node and tool have them; each call is in one series, so that sums are right."""

    def inner_node(_: Any) -> dict[str, Any]:
        ask(input_tokens=10)
        return {}

    inner = StateGraph(MessagesState)
    inner.add_node("内层", inner_node)
    inner.add_edge(START, "内层")
    graph = inner.compile(name="inner")

    def outer_node(_: Any) -> dict[str, Any]:
        ask(input_tokens=1000, output_tokens=7)
        with tool("summarise"):
            ask(input_tokens=200)
            graph.invoke({"messages": []})
        with embeddings("bge", provider="local") as vectors:
            vectors.usage(input_tokens=3)
        return {}

    outer = StateGraph(MessagesState)
    outer.add_node("answer", outer_node)
    outer.add_edge(START, "answer")
    outer.add_edge("answer", END)
    with capture():
        outer.compile(name="outer").invoke({"messages": []})
        ask(input_tokens=5)

    assert increase.of("agent_step_tokens_total") == {
        ("answer", "none", "input"): 1003,
        ("answer", "none", "output"): 7,
        ("answer", "summarise", "input"): 200,
        ("内层", "summarise", "input"): 10,
        ("none", "none", "input"): 5,
    }
    assert increase.of("agent_step_cost_usd_total") == {
        ("answer", "none"): price(1000, 7),
        ("answer", "summarise"): price(200),
        ("内层", "summarise"): price(10),
        ("none", "none"): price(5),
    }
    assert increase.of("agent_cost_usd_total") == {("o3",): round(price(1215, 7), 9)}
    assert increase.of("agent_tokens_total") == {
        ("o3", "input"): 1215,
        ("o3", "output"): 7,
        ("bge", "input"): 3,
    }
    assert increase.of("agent_llm_calls_total") == {("o3", "ok"): 4, ("bge", "ok"): 1}


def test_calls_that_are_not_sampled_cost_as_much(increase: Increase) -> None:
    """Head sampling thins out traces, not the bill."""
    with capture_spans(ALWAYS_OFF):
        ask()

    assert increase.of("agent_cost_usd_total") == {("o3",): price(1_000_000)}


def test_a_model_without_a_price_has_no_cost(increase: Increase) -> None:
    """Tokens are counted, and no guess is added to the dollars."""
    with capture_spans():
        ask("house-model-7b", input_tokens=12)

    assert increase.of("agent_cost_usd_total") == {}
    assert increase.of("agent_step_cost_usd_total") == {}
    assert increase.of("agent_step_tokens_total") == {("none", "none", "input"): 12}


def test_failures_stand_at_zero_before_the_first() -> None:
    """So that the first rate limit or tool failure is an increase for Prometheus."""
    with capture_spans():
        ask("zero-model", input_tokens=1)
        with tool("zero-tool"):
            pass

    body = metrics.render(OPENMETRICS)[0].decode()
    for status in ("error", "timeout", "cancelled", "rate_limit"):
        line = f'agent_llm_calls_total{{model="zero-model",status="{status}"}} 0.0'
        assert line in body.splitlines()
    for status in ("error", "timeout", "cancelled"):
        line = f'agent_tool_calls_total{{status="{status}",tool="zero-tool"}} 0.0'
        assert line in body.splitlines()
    assert re.search(r'agent_llm_calls_total\{model="zero-model",status="ok"\} 1\.0', body)


def test_a_model_that_answers_under_another_name_is_counted_as_it_was_asked_for(
    increase: Increase,
) -> None:
    """Who is refused learns of no other name: both have to stand in one share of refusals."""
    with capture_spans():
        with llm_call("gpt-5", provider="openai") as call:
            call.response(model="gpt-5-2026-01")
        with pytest.raises(ThrottledError), llm_call("gpt-5", provider="openai"):
            raise ThrottledError

    assert increase.of("agent_llm_calls_total") == {("gpt-5", "ok"): 1, ("gpt-5", "rate_limit"): 1}


class Refusing:
    """An OpenAI-compatible endpoint that answers one status to everything."""

    def __init__(self, status: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                body = b'{"error": {"message": "no", "type": "x", "code": "x"}}'
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(("code", "status"), [(429, "rate_limit"), (500, "error"), (401, "error")])
@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_rate_limits_of_a_real_client_are_told_from_other_errors(
    increase: Increase, code: int, status: str, how: str
) -> None:
    """LangChain's OpenAI client against an endpoint that refuses, asked at once and as a stream."""
    endpoint = Refusing(code)
    model = ChatOpenAI(model="gpt-5", base_url=endpoint.url, api_key="x", max_retries=0)
    with capture() as captured, pytest.raises(Exception, match="no"):
        list(model.stream("hi")) if how == "stream" else model.invoke("hi")
    endpoint.close()

    assert increase.of("agent_llm_calls_total") == {("gpt-5", status): 1}
    span = captured.one("chat gpt-5")
    assert span.attributes[semconv.SPANLOOM_OUTCOME] == "error"
    assert "Error" in span.attributes[semconv.ERROR_TYPE]


class ThrottledError(Exception):
    """As botocore reports it."""

    def __init__(self) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": 429}}


class ResourceExhausted(Exception):  # noqa: N818 - google.api_core's name
    pass


class QuotaError(ResourceExhausted):
    pass


class Hostile(Exception):  # noqa: N818
    @property
    def response(self) -> Any:
        raise RuntimeError("no attribute of mine")


class StatusError(Exception):
    def __init__(self, code: int) -> None:
        self.status_code = code


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (ThrottledError(), True),
        (QuotaError(), True),
        (StatusError(429), True),
        (StatusError(503), False),
        (Hostile(), False),
        (ValueError("429"), False),
    ],
)
def test_rate_limits_are_known_by_status_or_name(exc: Exception, expected: bool) -> None:
    """Whatever an exception's attributes do, the ending is classified."""
    assert is_rate_limit(exc) is expected
    assert classify(exc).outcome == semconv.OUTCOME_ERROR
    assert classify(exc).status == ("rate_limit" if expected else "error")
