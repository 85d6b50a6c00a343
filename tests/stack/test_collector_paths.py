"""What goes through the Collector arrives once, without secrets, content or doubles."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from opentelemetry.trace import set_span_in_context

from spanloom import semconv
from tests.free_ports import free_port
from tests.stack import queries
from tests.stack.programs import Collector, Jaeger, Loki, Prometheus, collector
from tests.stack.programs import jaeger as make_jaeger
from tests.stack.programs import loki as make_loki
from tests.stack.programs import prometheus as make_prometheus
from tests.stack.queries import eventually
from tests.stack.senders import Sender, sender
from tests.telemetry.live import Receiver

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

CARD = "4111 1111 1111 1111"
EMAIL = "zhang.wei@example.com"
KEY = "sk-proj-abcdEFGH1234567890"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
SECRETS = (CARD, CARD.replace(" ", ""), EMAIL, KEY, TOKEN, "hunter2-hunter2")
CHINESE = "订单一二三号已发货，请联系客服。键值缓存是什么？"


class Stack(NamedTuple):
    collector: Collector
    jaeger: Jaeger
    prometheus: Prometheus
    loki: Loki
    reap: Receiver


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    port = free_port()
    with ExitStack() as started:
        metrics = started.enter_context(make_prometheus(folder))
        logs = started.enter_context(make_loki(folder))
        traces = started.enter_context(make_jaeger(folder, metrics))
        reap = Receiver(port)
        started.callback(reap.close)
        made = collector(
            folder,
            traces,
            metrics,
            logs,
            REAP_OTLP_ENDPOINT=reap.url,
            COLLECTOR_RED_CARDINALITY="50",
        )
        yield Stack(started.enter_context(made), traces, metrics, logs, reap)


@pytest.fixture
def shop(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Sender]:
    """A service named after the test."""
    with sender(stack.collector.http, request.node.name) as made:
        yield made


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def stored_trace(stack: Stack, trace_id: str) -> dict[str, Any]:
    found = eventually(
        lambda: queries.jaeger_trace(stack.jaeger.url, trace_id),
        lambda seen: seen is not None,
        f"trace {trace_id} in Jaeger",
    )
    assert found is not None
    return found


def test_secrets_are_masked_and_everything_else_stays(stack: Stack, shop: Sender) -> None:
    """In values, lists, maps, integers, names, messages and events; by the attribute's name too."""
    outer = shop.tracer.start_span(
        f"charge {EMAIL}",
        attributes={
            "app.card": f"card {CARD} ok",
            "app.card.number": 4111111111111111,
            "app.contact": f"写信给{EMAIL}，谢谢",
            "app.list": ["one", EMAIL],
            "app.key": KEY,
            "app.jwt": f"Authorization: Bearer {TOKEN}",
            "db.password": "hunter2-hunter2",
            "http.request.header.authorization": ("hunter2-hunter2",),
            "url.full": "https://bob:hunter2-hunter2@example.com/x",
            "app.text": CHINESE,
            "app.fraction": 0.5500000000000004,
            "app.time": 1_790_000_000_000_000_000,
            semconv.GEN_AI_USAGE_INPUT_TOKENS: 1_234,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: 56,
            semconv.GEN_AI_RESPONSE_FINISH_REASONS: ("stop",),
        },
    )
    outer.add_event("exception", {semconv.EXCEPTION_MESSAGE: f"no such user {EMAIL}"})
    outer.set_status(outer.status.status_code.ERROR, f"refused {CARD}")
    outer.end()
    trace_id = f"{outer.get_span_context().trace_id:032x}"

    found = stored_trace(stack, trace_id)

    text = json.dumps(found, ensure_ascii=False)
    assert [secret for secret in SECRETS if secret in text] == [], text
    (span,) = found["spans"]
    seen = tags(span)
    assert span["operationName"] == "charge ****"
    assert seen["app.card"] == "card **** ok"
    assert seen["app.card.number"] == "****"
    assert seen["app.contact"] == "写信给****，谢谢"
    assert "one" in seen["app.list"]
    assert seen["db.password"] == "****"
    assert seen["url.full"] == "https****example.com/x"
    assert seen["app.text"] == CHINESE
    assert seen["app.fraction"] == 0.5500000000000004
    assert int(seen["app.time"]) == 1_790_000_000_000_000_000
    assert seen[semconv.GEN_AI_USAGE_INPUT_TOKENS] == 1_234
    assert seen[semconv.GEN_AI_USAGE_OUTPUT_TOKENS] == 56
    assert "stop" in seen[semconv.GEN_AI_RESPONSE_FINISH_REASONS]
    assert not any(name.startswith("redaction.") for name in seen)


def test_prompts_and_answers_go_no_further(stack: Stack, shop: Sender) -> None:
    content = {name: f"内容 of {name}" for name in semconv.CONTENT_ATTRIBUTES}
    with shop.tracer.start_as_current_span(
        "chat m-large", attributes={**content, semconv.GEN_AI_USAGE_INPUT_TOKENS: 7}
    ) as span:
        span.add_event("gen_ai.content.prompt", {"gen_ai.prompt": "内容 of the event"})
        shop.log("内容 of a message", **content)
    shop.logger.emit(event_name="gen_ai.user.message", body={"content": "内容 of the body"})

    found = stored_trace(stack, f"{span.get_span_context().trace_id:032x}")
    lines = eventually(
        lambda: queries.loki_entries(stack.loki.url, f'{{service_name="{shop.service}"}}'),
        lambda seen: len(seen) == 2,
        "two lines in Loki",
    )

    assert "内容" not in json.dumps(found, ensure_ascii=False)
    assert tags(found["spans"][0])[semconv.GEN_AI_USAGE_INPUT_TOKENS] == 7
    assert {line for line, _ in lines} == {"内容 of a message", "content stripped"}
    assert not any("内容" in value for _, labels in lines for value in labels.values())


def test_a_log_line_is_found_by_its_trace_id_and_has_no_secret(stack: Stack, shop: Sender) -> None:
    with shop.tracer.start_as_current_span("outer") as span:
        shop.log(f"mail to {EMAIL}: {CHINESE}", app__key=KEY)
    trace_id = f"{span.get_span_context().trace_id:032x}"
    query = f'{{service_name="{shop.service}"}} | trace_id="{trace_id}"'

    ((line, labels),) = eventually(
        lambda: queries.loki_entries(stack.loki.url, query), bool, "the line in Loki"
    )

    assert line == f"mail to ****: {CHINESE}"
    assert labels["app_key"] == "****"
    assert labels["span_id"] == f"{span.get_span_context().span_id:016x}"


def test_red_metrics_count_every_span_and_their_exemplars_open(stack: Stack, shop: Sender) -> None:
    for number in range(60):
        shop.trace(
            "chat m-large",
            "execute_tool search",
            ms=200_000 if number == 0 else 40,
            error=number % 10 == 0,
            gen_ai__request__model="m-large",
            gen_ai__usage__input_tokens=5,
            app__who=EMAIL,
        )
    shop.flush()
    calls = f'traces_span_metrics_calls_total{{service_name="{shop.service}"}}'
    buckets = f'traces_span_metrics_duration_seconds_bucket{{service_name="{shop.service}"}}'

    eventually(
        lambda: queries.prometheus_value(stack.prometheus.url, f"sum({calls})"),
        lambda seen: seen == 180,
        "180 spans counted",
    )
    by_status = {
        series["metric"]["status_code"]: float(series["value"][1])
        for series in queries.prometheus(
            stack.prometheus.url, f'sum by (status_code) ({calls[:-1]},span_name="POST /chat"}})'
        )
    }
    assert by_status == {"STATUS_CODE_UNSET": 54, "STATUS_CODE_ERROR": 6}
    assert (
        queries.prometheus_value(
            stack.prometheus.url, f'sum({calls[:-1]},gen_ai_request_model="m-large"}})'
        )
        == 60
    )
    below_300, all_of_them = (
        queries.prometheus_value(stack.prometheus.url, f'sum({buckets[:-1]},le="{bound}"}})')
        for bound in ("300", "+Inf")
    )
    assert below_300 == all_of_them == 180
    assert (
        queries.prometheus_value(stack.prometheus.url, f'sum({buckets[:-1]},le="120"}})') <= 177 + 2
    )

    exemplars = eventually(
        lambda: queries.prometheus_exemplars(stack.prometheus.url, buckets), bool, "exemplars"
    )
    sent = {trace.trace_id: trace for trace in shop.traces}
    for exemplar in exemplars:
        assert exemplar["labels"]["span_id"] in sent[exemplar["labels"]["trace_id"]].span_ids
        stored_trace(stack, exemplar["labels"]["trace_id"])


def test_red_series_are_of_a_service_and_not_of_its_processes(stack: Stack) -> None:
    """Two processes of one service: one series, whose label says the service's name once."""
    name = "two-processes"
    for _ in range(2):
        with sender(stack.collector.http, name) as one:
            one.trace(root="GET /one")
    calls = f'traces_span_metrics_calls_total{{service_name="{name}"}}'

    (series,) = eventually(
        lambda: queries.prometheus(stack.prometheus.url, calls),
        lambda seen: bool(seen) and sum(float(one["value"][1]) for one in seen) == 2,
        "both counted",
    )

    assert "instance" not in series["metric"]
    assert series["metric"]["job"] == name
    assert not any(label.startswith("collector_") for label in series["metric"])


def test_names_without_end_do_not_make_series_without_end(stack: Stack, shop: Sender) -> None:
    """Beyond the limit (50 here) spans are still counted, under one series."""
    for number in range(200):
        shop.trace(root=f"GET /orders/{number}")
    shop.flush()
    calls = f'traces_span_metrics_calls_total{{service_name="{shop.service}"}}'
    # The overflow has no labels of the service but its resource's.
    everything = f'{{__name__="traces_span_metrics_calls_total",job="{shop.service}"}}'

    eventually(
        lambda: queries.prometheus_value(stack.prometheus.url, f"sum({everything})"),
        lambda seen: seen == 200,
        "200 spans counted",
    )
    assert len(queries.prometheus(stack.prometheus.url, calls)) <= 51
    assert (
        queries.prometheus_value(
            stack.prometheus.url, f'{everything[:-1]},otel_metric_overflow="true"}}'
        )
        >= 150
    )


def test_metrics_come_by_otlp_but_for_those_that_are_scraped(stack: Stack, shop: Sender) -> None:
    shop.meter.create_counter(f"{semconv.PROM_REQUESTS}_total").add(3)
    shop.meter.create_histogram(semconv.PROM_LATENCY_SECONDS, "s").record(0.5)
    tokens = shop.meter.create_counter(semconv.METRIC_INFERENCE_INPUT_TOKENS, "{token}")
    duration = shop.meter.create_histogram(
        semconv.METRIC_INFERENCE_DURATION, "s", explicit_bucket_boundaries_advisory=[0.1, 1, 10]
    )
    with shop.tracer.start_as_current_span("chat") as span:
        tokens.add(41, {"app.who": EMAIL})
        duration.record(2.5)
    shop.flush()
    ours = f'{{job="{shop.service}"}}'

    eventually(
        lambda: queries.prometheus_value(
            stack.prometheus.url,
            f"sum(gen_ai_client_inference_usage_input_tokens_total{ours})",
        ),
        lambda seen: seen == 41,
        "tokens counted",
    )
    series = queries.prometheus(stack.prometheus.url, f'{{__name__=~".+",{ours[1:]}')
    names = {one["metric"]["__name__"] for one in series}
    assert "gen_ai_client_inference_duration_seconds_bucket" in names
    assert not any(name.startswith("agent_") for name in names), names
    assert EMAIL not in json.dumps(series)
    (exemplar,) = eventually(
        lambda: queries.prometheus_exemplars(
            stack.prometheus.url, f"gen_ai_client_inference_duration_seconds_bucket{ours}"
        ),
        bool,
        "the exemplar",
    )
    assert exemplar["labels"]["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_a_sender_of_what_prometheus_refuses_costs_no_other_its_points(stack: Stack) -> None:
    """A clock an hour ahead: Prometheus refuses that request whole, and only that one."""

    def gauge(service: str, at_ns: int) -> dict[str, Any]:
        return {
            "resource": {"attributes": [text("service.name", service)]},
            "scopeMetrics": [
                {"metrics": [{"name": "app.level", "gauge": {"dataPoints": [
                    {"timeUnixNano": str(at_ns), "asDouble": 7.0}]}}]}
            ],
        }  # fmt: skip

    def text(key: str, value: str) -> dict[str, Any]:
        return {"key": key, "value": {"stringValue": value}}

    ahead = time.time_ns() + int(3_600e9)
    for service, at in (("clock-ahead", ahead), ("clock-right", time.time_ns())):
        httpx2.post(
            f"{stack.collector.http}/v1/metrics",
            json={"resourceMetrics": [gauge(service, at)]},
            timeout=60,
        ).raise_for_status()

    eventually(
        lambda: queries.prometheus_value(stack.prometheus.url, 'app_level{job="clock-right"}'),
        lambda seen: seen == 7,
        "the right clock's point",
    )
    assert math.isnan(
        queries.prometheus_value(stack.prometheus.url, 'app_level{job="clock-ahead"}')
    )


def test_what_is_in_flight_goes_to_the_reaper_only(stack: Stack, shop: Sender) -> None:
    parent = shop.tracer.start_span("POST /chat")
    shop.logger.emit(
        event_name=semconv.EVENT_SPAN_OPEN,
        body="open",
        context=set_span_in_context(parent),
        attributes={
            # Sixteen decimal digits: a span id, and no card.
            semconv.SPANLOOM_SPAN_PARENT_ID: "4111111111111111",
            semconv.SPANLOOM_SPAN_NAME: "chat",
            semconv.SPANLOOM_SPAN_ATTRIBUTES: {
                semconv.GEN_AI_INPUT_MESSAGES: "内容",
                semconv.GEN_AI_REQUEST_MODEL: "m-large",
            },
        },
    )
    shop.logger.emit(
        event_name=semconv.EVENT_PROCESS_HEARTBEAT,
        attributes={semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS: ["4111111111111111"]},
    )
    shop.logger.emit(event_name="spanloom.something.new", body="nobody's")
    shop.log("an ordinary line")
    shop.flush()

    eventually(
        lambda: [record.event_name for record in list(stack.reap.events)],
        lambda seen: seen == [semconv.EVENT_SPAN_OPEN, semconv.EVENT_PROCESS_HEARTBEAT],
        "both events, in order",
    )
    opened, beat = stack.reap.events
    assert opened.span_id == parent.get_span_context().span_id.to_bytes(8, "big")
    text = str(opened) + str(beat)
    assert text.count('"4111111111111111"') == 2, text
    assert semconv.GEN_AI_INPUT_MESSAGES not in text
    assert "m-large" in text
    assert stack.reap.logs == []
    assert stack.reap.spans == []
    assert eventually(
        lambda: queries.loki_lines(stack.loki.url, shop.service), bool, "the line in Loki"
    ) == ["an ordinary line"]
    assert shop.service not in queries.jaeger_services(stack.jaeger.url)
    parent.end()


def test_loki_refuses_no_line_for_its_age_size_or_number_of_attributes(
    stack: Stack, shop: Sender
) -> None:
    """Such a refusal is for good. A spool may send what was written days ago, between new lines."""
    now = time.time_ns()
    hour = int(3_600e9)
    shop.logger.emit(body="new", timestamp=now)
    for hours in (3, 30, 100):
        shop.logger.emit(body=f"{hours} hours old", timestamp=now - hours * hour)
    shop.logger.emit(body="new again", timestamp=now)
    shop.logger.emit(body="键" * 200_000, timestamp=now)
    shop.logger.emit(body="with a map", attributes={"app.map": {"a": {"b": "c" * 100}}})
    shop.logger.emit(
        body="with much", attributes={f"app.n{number}": "值" * 1_000 for number in range(120)}
    )
    shop.logger.emit(
        body="with a trace",
        attributes={semconv.EXCEPTION_STACKTRACE: "line\n" * 3_276},
    )
    shop.flush()

    expected = {"new", "3 hours old", "30 hours old", "100 hours old", "new again",
                "with a map", "with much", "with a trace"}  # fmt: skip
    lines = eventually(
        lambda: queries.loki_entries(
            stack.loki.url, f'{{service_name="{shop.service}"}}', hours=150
        ),
        lambda seen: len(seen) == len(expected) + 1,
        "all lines",
    )
    (long,) = [line for line, _ in lines if line not in expected]
    assert long.startswith("键" * 80_000)
    assert len(long.encode()) <= 262_144
    stack_trace = next(labels for line, labels in lines if line == "with a trace")
    assert len(stack_trace["exception_stacktrace"]) == 5 * 3_276


def test_nothing_was_dropped_on_the_way(stack: Stack) -> None:
    """The Collector's own books, after everything above: only the clock ahead was refused."""
    own = queries.own_metrics(stack.collector.metrics_url)

    failed = {name: n for name, n in own.items() if "failed" in name or "refused" in name}
    assert failed, sorted(own)
    assert {name: n for name, n in failed.items() if n} == {
        "otelcol_exporter_send_failed_metric_points": 1
    }
    assert Path(stack.collector.queue).is_dir()
