"""The agent service on the whole stack: each signal of one question in the backend it belongs to.

All the service is told is OTEL_EXPORTER_OTLP_ENDPOINT.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from spanloom import semconv
from tests.stack import queries
from tests.stack.programs import Stack
from tests.stack.queries import eventually
from tests.stack.service import Service, agent_service

API, RETRIEVAL, LLM = PROCESSES = ("agent-api", "retrieval", "offline-llm")
QUESTIONS = (
    "What does a KV cache save, and what does it cost?",
    "键值缓存节省了什么，代价是什么？",
    "What is 3+4?",
    "请计算 12 乘以 7",
)
ROUNDS = 3
SESSION = "end-to-end-1"
PROM_INPUT = "gen_ai_client_inference_usage_input_tokens_total"
PROM_OUTPUT = "gen_ai_client_inference_usage_output_tokens_total"


@dataclass(frozen=True)
class Traffic:
    """The questions that were asked and where their signals are."""

    stack: Stack
    service: Service
    asked: dict[str, str]
    """Trace id to question."""

    @property
    def address(self) -> str:
        """The API's address: the label `instance` of what Prometheus scraped from it."""
        return self.service.api.removeprefix("http://")

    def search(self, **params: str) -> set[str]:
        """Ids of the traces that Jaeger's page would list."""
        answer = httpx2.get(
            f"{self.stack.jaeger.url}/api/traces",
            params={"limit": "1000", "lookback": "1h", **params},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return {trace["traceID"] for trace in answer.json()["data"]}

    def value(self, query: str) -> float:
        """The only value of a query in Prometheus."""
        return queries.prometheus_value(self.stack.prometheus.url, query)


@pytest.fixture(scope="module")
def traffic(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    """A service of this file's own, so that every number is exact."""
    with agent_service(tmp_path_factory.mktemp("end-to-end"), stack.collector.http) as service:
        address = service.api.removeprefix("http://")
        stack.prometheus.scrape("agent-api", address, file="agent-api.yml")
        asked = {}
        for _ in range(ROUNDS):
            for question in QUESTIONS:
                trace_id, answer = service.ask(question, session_id=SESSION)
                assert answer.status_code == 200, answer.text
                assert answer.json()["trace_id"] == trace_id
                asked[trace_id] = question
        yield Traffic(stack, service, asked)


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def process_tags(trace: dict[str, Any], span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in trace["processes"][span["processID"]]["tags"]}


def services(trace: dict[str, Any]) -> Counter[str]:
    """How many spans of each process."""
    return Counter(trace["processes"][span["processID"]]["serviceName"] for span in trace["spans"])


def whole(trace: dict[str, Any] | None) -> bool:
    """Whether the trace has its last span, the request's, and every other span's parent."""
    if trace is None:
        return False
    ids = {span["spanID"] for span in trace["spans"]}
    orphans = [
        span
        for span in trace["spans"]
        if not any(reference["spanID"] in ids for reference in span["references"])
    ]
    return [span["operationName"] for span in orphans] == ["POST /chat"]


def answered(trace: dict[str, Any]) -> bool:
    """Whether each call from one process to another has the other's span of it.

    The others send by clocks of their own, and what is under that span has gone before it.
    """
    parents = {reference["spanID"] for span in trace["spans"] for reference in span["references"]}
    return all(
        span["spanID"] in parents for span in trace["spans"] if span["operationName"] == "POST"
    )


def stored(traffic: Traffic, trace_id: str) -> dict[str, Any]:
    """The trace, once the spans of each process it must have are there, and all of them."""
    expected = set(PROCESSES) if traffic.asked.get(trace_id) in QUESTIONS[:2] else {API, LLM}

    def complete(trace: dict[str, Any] | None) -> bool:
        return (
            trace is not None
            and whole(trace)
            and answered(trace)
            and expected <= services(trace).keys()
        )

    found = eventually(
        lambda: queries.jaeger_trace(traffic.stack.jaeger.url, trace_id), complete, trace_id
    )
    assert found is not None
    return found


def test_each_trace_opens_by_its_id_with_all_its_processes(traffic: Traffic) -> None:
    for trace_id, question in traffic.asked.items():
        trace = stored(traffic, trace_id)
        if question in QUESTIONS[:2]:
            assert set(services(trace)) == set(PROCESSES), question
        ids = [span["spanID"] for span in trace["spans"]]
        assert len(ids) == len(set(ids)), f"spans stored twice in the trace of {question!r}"
        assert {span["traceID"] for span in trace["spans"]} == {trace_id}


def test_each_trace_is_found_by_service_operation_tag_and_time(traffic: Traffic) -> None:
    asked = set(traffic.asked)
    for params in (
        {"service": API},
        {"service": API, "operation": "POST /chat"},
        {"service": API, "tags": json.dumps({semconv.SESSION_ID: SESSION})},
        {"service": LLM},
    ):
        eventually(
            lambda params=params: traffic.search(**params) & asked,  # type: ignore[misc]
            lambda found: found == asked,
            f"every trace by {params}",
        )
    with_retrieval = {trace for trace, query in traffic.asked.items() if query in QUESTIONS[:2]}
    eventually(
        lambda: traffic.search(service=RETRIEVAL),
        lambda found: found >= with_retrieval,
        "the traces with a search, by the retrieval process",
    )
    assert not traffic.search(service=API, minDuration="1h")


def test_the_current_search_interface_lists_the_same(traffic: Traffic) -> None:
    now = time.time()

    def found() -> set[str]:
        answer = httpx2.get(
            f"{traffic.stack.jaeger.url}/api/v3/traces",
            params={
                "query.service_name": API,
                "query.start_time_min": time.strftime(
                    "%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 1800)
                ),
                "query.start_time_max": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 60)),
                "query.search_depth": "1000",
            },
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return {
            span["traceId"]
            for resource in answer.json()["result"]["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        }

    eventually(found, lambda ids: ids >= set(traffic.asked), "every trace by /api/v3/traces")


@pytest.mark.parametrize(
    "series",
    [
        # Scraped from the service.
        semconv.PROM_LATENCY_SECONDS + "_bucket",
        semconv.PROM_REQUESTS + "_total",
        semconv.PROM_TOKENS + "_total",
        # By OTLP from the service.
        "gen_ai_client_inference_duration_seconds_bucket",
        # By OTLP from the Collector, which counted the spans.
        "traces_span_metrics_duration_seconds_bucket",
    ],
)
def test_an_exemplar_opens_a_trace_in_jaeger(traffic: Traffic, series: str) -> None:
    def ours() -> list[dict[str, Any]]:
        return [
            exemplar
            for exemplar in queries.prometheus_exemplars(traffic.stack.prometheus.url, series)
            if exemplar["labels"]["trace_id"] in traffic.asked
        ]

    for exemplar in eventually(ours, bool, f"exemplars of {series}"):
        trace = stored(traffic, exemplar["labels"]["trace_id"])
        assert exemplar["labels"]["span_id"] in {span["spanID"] for span in trace["spans"]}


def test_the_log_lines_of_a_trace_are_found_by_its_id(traffic: Traffic) -> None:
    for trace_id in traffic.asked:
        lines = eventually(
            lambda trace_id=trace_id: queries.loki_entries(  # type: ignore[misc]
                traffic.stack.loki.url, f'{{service_name="{API}"}} | trace_id="{trace_id}"'
            ),
            bool,
            f"log lines of {trace_id}",
        )
        spans = {span["spanID"] for span in stored(traffic, trace_id)["spans"]}
        for line, labels in lines:
            assert labels["trace_id"] == trace_id, line
            assert labels["span_id"] in spans, line
    events = queries.loki_entries(
        traffic.stack.loki.url,
        f'{{service_name=~".+"}} | event_name=~"{semconv.SPANLOOM_EVENT_PREFIX}.*"'
        f' or event=~"{semconv.SPANLOOM_EVENT_PREFIX}.*"',
    )
    assert not events, "what is in flight is no log line"
    everything = queries.loki_entries(traffic.stack.loki.url, '{service_name=~".+"}')
    assert everything
    for line, labels in everything:
        assert not line.startswith(semconv.SPANLOOM_EVENT_PREFIX), (line, labels)


def test_token_metrics_are_the_sums_of_the_spans(traffic: Traffic) -> None:
    """The same count three ways: spans in Jaeger, OTLP metrics, scraped metrics."""
    sums: Counter[str] = Counter()
    models: Counter[str] = Counter()
    instances = set()
    for trace_id in traffic.asked:
        trace = stored(traffic, trace_id)
        for span in trace["spans"]:
            found = tags(span)
            process = trace["processes"][span["processID"]]["serviceName"]
            if found.get(semconv.GEN_AI_OPERATION_NAME) == semconv.OP_CHAT and process == API:
                sums["input"] += found[semconv.GEN_AI_USAGE_INPUT_TOKENS]
                sums["output"] += found[semconv.GEN_AI_USAGE_OUTPUT_TOKENS]
                models[found[semconv.GEN_AI_REQUEST_MODEL]] += 1
                instances.add(process_tags(trace, span)["service.instance.id"])
    (instance,) = instances
    assert sums["input"] > sums["output"] > 0
    for kind, name in (("input", PROM_INPUT), ("output", PROM_OUTPUT)):
        eventually(
            lambda name=name: traffic.value(f'sum({name}{{instance="{instance}"}})'),  # type: ignore[misc]
            lambda seen, kind=kind: seen == sums[kind],  # type: ignore[misc]
            f"{sums[kind]} {kind} tokens by OTLP",
        )
        scraped = f'sum({semconv.PROM_TOKENS}_total{{instance="{traffic.address}",type="{kind}"}})'
        eventually(
            lambda scraped=scraped: traffic.value(scraped),  # type: ignore[misc]
            lambda seen, kind=kind: seen == sums[kind],  # type: ignore[misc]
            f"{sums[kind]} {kind} tokens scraped",
        )
    calls = f'sum({semconv.PROM_LLM_CALLS}_total{{instance="{traffic.address}"}})'
    assert traffic.value(calls) == models.total()


def test_no_series_exists_twice(traffic: Traffic) -> None:
    """agent_* by scraping only, gen_ai.* by OTLP only; so a sum over all counts once."""
    requests = f'sum({semconv.PROM_REQUESTS}_total{{instance="{traffic.address}"}})'
    eventually(lambda: traffic.value(requests), lambda seen: seen == len(traffic.asked), "requests")
    url = traffic.stack.prometheus.url
    eventually(lambda: queries.prometheus(url, '{__name__=~"gen_ai_.+"}'), bool, "metrics by OTLP")
    agents = queries.prometheus(url, '{__name__=~"agent_.+|spanloom_telemetry_.+"}')
    generative = queries.prometheus(url, '{__name__=~"gen_ai_.+"}')
    # A scraped target's instance is an address, a process's by OTLP its service.instance.id.
    by_otlp = {one["metric"]["instance"] for one in generative}
    scraped = {one["metric"]["instance"] for one in agents}
    assert traffic.address in scraped
    assert all(":" in instance for instance in scraped), scraped
    assert not any(":" in instance for instance in by_otlp), by_otlp
    # What the service would also send by OTLP has the SDK's labels.
    assert not [one["metric"] for one in agents if "otel_scope_name" in one["metric"]]
    red = queries.prometheus(url, '{__name__=~"traces_span_metrics_.+",instance!=""}')
    assert not red, "RED series are a service's, not a process's"


@pytest.mark.parametrize("metric", ["calls", "latencies", "errors"])
def test_jaegers_monitor_tab_has_numbers_from_prometheus(traffic: Traffic, metric: str) -> None:
    params = {
        "service": API,
        "endTs": str(int(time.time() * 1000)),
        "lookback": "3600000",
        "step": "5000",
        "ratePer": "600000",
        "spanKind": "server",
        "groupByOperation": "true",
        **({"quantile": "0.95"} if metric == "latencies" else {}),
    }

    def points() -> dict[str, list[float]]:
        params["endTs"] = str(int(time.time() * 1000))
        # A rate needs an increase that Prometheus saw: questions go on.
        _, answer = traffic.service.ask(QUESTIONS[2])
        assert answer.status_code == 200
        answer = httpx2.get(
            f"{traffic.stack.jaeger.url}/api/metrics/{metric}",
            params=params,
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, list[float]] = {}
        for family in answer.json()["metrics"]:
            (operation,) = (
                label["value"] for label in family["labels"] if label["name"] == "operation"
            )
            found[operation] = [
                point["gaugeValue"]["doubleValue"]
                for point in family["metricPoints"]
                if isinstance(point["gaugeValue"]["doubleValue"], float | int)
            ]
        return found

    def shown(seen: dict[str, list[float]]) -> bool:
        values = seen.get("POST /chat", [])
        return bool(values) and (metric == "errors" or any(value > 0 for value in values))

    eventually(points, shown, f"{metric} of POST /chat")
