import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from spanloom.telemetry import genai_metrics, metrics, step, tool
from spanloom.telemetry.testing import capture_spans
from tests.telemetry.live import Script

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Reading:
    """What the OpenTelemetry side holds."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def reading(request: pytest.FixtureRequest) -> Iterator[Reading]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    genai_metrics.use_meter_provider(provider, names=getattr(request, "param", "newest"))
    yield Reading(reader)
    genai_metrics.use_meter_provider(None)


def sample(name: str, accept: str = OPENMETRICS, **labels: str) -> str | None:
    """Return the whole line of one sample."""
    body, _ = metrics.render(accept)
    for line in body.decode().splitlines():
        if line.startswith(f"{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return line
    return None


def test_requests_are_counted_and_timed_both_ways(reading: Reading) -> None:
    """One request is one count and one observation, in Prometheus and over OTLP."""
    metrics.record_request("/both-ways", "200", 0.3)

    assert sample("agent_requests_total", endpoint="/both-ways", status="200") is not None
    bounds = re.findall(
        r'agent_latency_seconds_bucket\{endpoint="/both-ways",le="([^"]+)"\}',
        metrics.render(OPENMETRICS)[0].decode(),
    )
    assert bounds == ["0.1", "0.5", "1.0", "2.0", "5.0", "10.0", "30.0", "60.0", "120.0", "+Inf"]
    (count,) = reading.points("agent_requests_total")
    assert count.value == 1
    (latency,) = reading.points("agent_latency_seconds")
    assert tuple(latency.explicit_bounds) == metrics.LATENCY_BUCKETS
    assert latency.bucket_counts[1] == 1


def test_exemplars_name_the_sampled_span(reading: Reading) -> None:
    """Counters and histograms link to the span they were measured in."""
    with capture_spans() as captured, step("request"):
        metrics.record_request("/exemplar", "200", 0.3)

    context = captured.one("request").context
    for name, labels in (
        ("agent_requests_total", {"endpoint": "/exemplar"}),
        ("agent_latency_seconds_bucket", {"endpoint": "/exemplar", "le": "0.5"}),
    ):
        line = sample(name, **labels)
        assert line is not None
        assert f'trace_id="{context.trace_id:032x}"' in line
        assert f'span_id="{context.span_id:016x}"' in line
    (point,) = reading.points("agent_latency_seconds")
    assert [exemplar.trace_id for exemplar in point.exemplars] == [context.trace_id]


def test_unsampled_requests_leave_no_dead_links(reading: Reading) -> None:
    """Without a kept trace, and outside of any, there is no exemplar."""
    with capture_spans(ALWAYS_OFF), step("request"):
        metrics.record_request("/unsampled", "200", 0.3)
    metrics.record_request("/outside", "200", 0.3)

    for endpoint in ("/unsampled", "/outside"):
        line = sample("agent_requests_total", endpoint=endpoint)
        assert line is not None
        assert "trace_id" not in line


def test_the_accept_header_chooses_the_format() -> None:
    """OpenMetrics is what the scraper asks for; everyone else gets the classic text format."""
    body, content_type = metrics.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    for accept in ("", "text/plain", "*/*", "nonsense;;q=,"):
        body, content_type = metrics.render(accept)
        assert content_type.startswith("text/plain; version=0.0.4"), accept
        assert b"# EOF" not in body
        assert b"trace_id" not in body


def test_label_values_are_bounded(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that invents tool names cannot grow the metrics without end."""
    monkeypatch.setattr(metrics, "_tool", metrics._Labels())  # the limit is one a process
    for number in range(3 * metrics.MAX_LABEL_VALUES):
        metrics.record_tool(tool=f"invented {number}", status="ok", seconds=0.1)
    metrics.record_tool(tool="长" * 5000, status="ok", seconds=0.1)

    names = {point.attributes["tool"] for point in reading.points("agent_tool_calls_total")}
    assert len(names) <= metrics.MAX_LABEL_VALUES + 1
    assert metrics.OTHER in names
    assert max(len(str(name)) for name in names) <= 128


def test_wrong_values_never_raise(reading: Reading) -> None:
    """Whatever is handed in, the request goes on."""
    metrics.record_request(None, object(), "soon")  # type: ignore[arg-type]
    metrics.record_tool(tool=7, status=None, seconds=None)  # type: ignore[arg-type]
    metrics.record_request("/nan", "200", float("nan"))
    with metrics.active_requests():
        pass

    exposition = metrics.render("application/openmetrics-text; version=1.0.0")[0].decode()
    assert 'agent_requests_total{endpoint="/nan",status="200"}' in exposition
    assert list(text_string_to_metric_families(exposition))


def test_active_requests_go_up_and_down(reading: Reading) -> None:
    """The gauge counts requests in progress, failed ones too."""

    def active() -> float:
        body = metrics.render("")[0].decode()
        found = re.search(r"^agent_active_requests (\S+)$", body, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def failing_request() -> None:
        with metrics.active_requests():
            assert active() == before + 1
            raise ValueError("x")

    before = active()
    with pytest.raises(ValueError, match="x"):
        failing_request()
    assert active() == before


def record_chat(**changes: Any) -> None:
    metrics.record_llm(
        **{
            "provider": "openai",
            "request_model": "gpt-5",
            "response_model": "gpt-5-2026",
            "operation": "chat",
            "seconds": 1.5,
            "input_tokens": 100,
            "output_tokens": 20,
            "time_to_first_chunk": 0.2,
            "cache_read": 40,
            "reasoning": 5,
            "server_address": "127.0.0.1",
            "server_port": 8002,
            **changes,
        }
    )


def test_model_calls_use_the_newest_names(reading: Reading) -> None:
    """Durations, first chunk, and token counters with modality, under the conventions' names."""
    record_chat()

    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.response.model": "gpt-5-2026",
        "server.address": "127.0.0.1",
        "server.port": 8002,
    }
    (duration,) = reading.points("gen_ai.client.inference.duration")
    assert dict(duration.attributes) == common
    assert duration.explicit_bounds[0] == 0.01
    assert duration.explicit_bounds[-1] == 81.92
    for name, amount in (
        ("gen_ai.client.inference.usage.input_tokens", 100),
        ("gen_ai.client.inference.usage.output_tokens", 20),
        ("gen_ai.client.inference.usage.cache_read.input_tokens", 40),
        ("gen_ai.client.inference.usage.reasoning.output_tokens", 5),
    ):
        (point,) = reading.points(name)
        assert point.value == amount
        assert point.attributes["gen_ai.token.modality"] == "text"
    assert len(reading.points("gen_ai.client.inference.time_to_first_chunk")) == 1
    assert reading.points("gen_ai.client.token.usage") == []
    assert {p.attributes["type"]: p.value for p in reading.points("agent_tokens_total")} == {
        "input": 100,
        "output": 20,
    }


def test_failed_calls_count_as_calls(reading: Reading) -> None:
    """A failed call has a duration with its error type, and zero tokens of unknown modality."""
    record_chat(input_tokens=None, output_tokens=None, error_type="timeout", cache_read=None)

    (duration,) = reading.points("gen_ai.client.inference.duration")
    assert duration.attributes["error.type"] == "timeout"
    (tokens,) = reading.points("gen_ai.client.inference.usage.input_tokens")
    assert tokens.value == 0
    assert tokens.attributes["gen_ai.token.modality"] == "unknown"


@pytest.mark.parametrize("reading", ["released"], indirect=True)
def test_the_released_names_are_a_choice(reading: Reading) -> None:
    """By setting the names of the official instrumentations are sent, instead of the newest."""
    record_chat()

    assert len(reading.points("gen_ai.client.operation.duration")) == 1
    usage = reading.points("gen_ai.client.token.usage")
    assert {p.attributes["gen_ai.token.type"]: p.sum for p in usage} == {"input": 100, "output": 20}
    assert reading.points("gen_ai.client.inference.duration") == []


def test_tools_workflows_and_agents_are_timed(reading: Reading) -> None:
    """Each has its duration histogram; a tool's outcome is its status."""
    with capture_spans(), pytest.raises(KeyError), tool("lookup"):
        raise KeyError("x")
    metrics.record_workflow(name="rag", seconds=3, error_type="timeout")
    metrics.record_agent(name="helper", seconds=3)

    (calls,) = reading.points("agent_tool_calls_total")
    assert calls.attributes["status"] == "error"
    (executed,) = reading.points("gen_ai.execute_tool.duration")
    assert executed.attributes["error.type"] == "KeyError"
    (workflow,) = reading.points("gen_ai.invoke_workflow.duration")
    assert workflow.attributes["gen_ai.workflow.name"] == "rag"
    assert workflow.explicit_bounds[-1] == 7200
    (agent,) = reading.points("gen_ai.invoke_agent.duration")
    assert agent.attributes["gen_ai.agent.name"] == "helper"


WORKERS = """
import json, multiprocessing, os, re, sys

def work(start, done):
    from spanloom.telemetry import metrics
    with metrics.active_requests():
        metrics.record_request("/chat", "200", 0.3)
        start.wait()
        done.wait()
    if os.environ.get("DIE"):
        os._exit(9)

def count(pattern):
    from spanloom.telemetry import metrics
    body = metrics.render("")[0].decode()
    found = re.search(pattern, body, re.M)
    return float(found[1]) if found else None

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(4), context.Event()
    workers = [context.Process(target=work, args=(start, done)) for _ in range(3)]
    for worker in workers: worker.start()
    start.wait()
    result = {"requests": count(r'^agent_requests_total\\{.*\\} (\\S+)$'),
              "active": count(r'^agent_active_requests (\\S+)$')}
    for worker in workers: worker.kill(); worker.join()
    result["requests after"] = count(r'^agent_requests_total\\{.*\\} (\\S+)$')
    result["active after"] = count(r'^agent_active_requests (\\S+)$')
    print(json.dumps(result))
"""


def test_workers_are_summed_and_dead_ones_forgotten(script: Script, tmp_path: Path) -> None:
    """Three workers make one sum; killed ones keep their counters and lose their gauges."""
    program = tmp_path / "workers.py"
    program.write_text(WORKERS)
    folder = tmp_path / "shared"
    done = script.run_file(program, PROMETHEUS_MULTIPROC_DIR=str(folder))

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["requests"] == 3
    assert result["active"] == 3
    assert result["requests after"] == 3
    assert not result["active after"]


def test_a_shared_folder_that_cannot_be_used_costs_only_the_sum(
    script: Script, tmp_path: Path
) -> None:
    """A wrong PROMETHEUS_MULTIPROC_DIR leaves metrics per process, and the program running."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = script.run(
        "from spanloom.telemetry import metrics\n"
        "metrics.record_request('/x', '200', 1)\n"
        "print('agent_requests_total' in metrics.render('')[0].decode())",
        PROMETHEUS_MULTIPROC_DIR=str(blocked / "below"),
    )

    assert done.stdout.strip() == "True", done.stderr
