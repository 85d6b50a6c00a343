"""`spanloom reap` behind the real Collector: what it ends is in Jaeger, once.

agent ─ OTLP ─▶ Collector ─┬▶ Jaeger, Loki        ─ or ─   agent tier ─▶ gateway, samples ─▶ Jaeger
                  ▲        └▶ spanloom reap ─┐
                  └──────── final spans ─────┘
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.reaping import AGENT, WAIT_S, Agent, Reap
from tests.free_ports import free_port
from tests.stack import queries
from tests.stack.programs import ROOT, Collector, Jaeger, Loki, collector, jaeger, loki, together
from tests.stack.queries import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

IN_FLIGHT = "spanloom_inflight_spans"
OUTBOX = "spanloom_reap_outbox_spans"
DIED = 'spanloom_reaped_spans_total{error_type="process_died"}'
ACCEPTED = "otelcol_receiver_accepted_spans"
SERVICE = "agent-api"

CALLS_MODEL = AGENT.replace('tool("天气")', 'llm_call("m-large", provider="openai")').replace(
    "step, tool", "llm_call, step"
)
DIES_AT_ONCE = CALLS_MODEL.replace(
    'print("ended", flush=True)', "telemetry.force_flush(30); import os; os.kill(os.getpid(), 9)"
)


@dataclass
class Backends:
    collector: Collector
    jaeger: Jaeger
    loki: Loki
    reap: Reap

    def agent(self, script: str = CALLS_MODEL, **env: str) -> Agent:
        """A process that hangs in an LLM call, and sends as the service does."""
        url = self.collector.http
        return Agent(url, url, script=script, SPANLOOM_REAPED_AFTER="60", **env)

    def accepted(self) -> float:
        """Spans that the Collector took so far, from whoever it was."""
        return queries.own_metrics(self.collector.metrics_url).get(ACCEPTED, 0.0)

    def traces(self, number: int) -> list[dict[str, Any]]:
        """So many whole traces of three spans."""
        found = eventually(
            lambda: Counter(queries.jaeger_span_ids(self.jaeger.url, SERVICE)),
            lambda seen: len(seen) == 3 * number,
            f"{number} traces of three spans",
        )
        assert set(found.values()) == {1}
        answer = httpx2.get(
            f"{self.jaeger.url}/api/traces",
            params={"service": SERVICE, "lookback": "2d"},
            timeout=60,
            trust_env=False,
        )
        traces: list[dict[str, Any]] = answer.json()["data"]
        return traces


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[Backends]:
    port = free_port()
    traces, logs = jaeger(tmp_path), loki(tmp_path)
    made = collector(
        tmp_path, traces, None, logs, REAP_OTLP_ENDPOINT=f"http://127.0.0.1:{port}"
    )  # fmt: skip
    with (
        together(traces, logs, made),
        Reap(tmp_path / "reap", made.http, after="8s", port=port) as reap,
    ):
        yield Backends(made, traces, logs, reap)


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def test_a_process_killed_in_an_llm_call_has_its_spans_ended_once(backends: Backends) -> None:
    """ERROR, incomplete, whole trace in Jaeger; the announcements and heartbeats not in Loki."""
    with backends.agent() as agent:
        backends.reap.waits_for(IN_FLIGHT, 2)
        eventually(backends.accepted, lambda seen: seen == 1, "the span that had ended")
        # What a batch in memory still held would die with the process.
        eventually(
            lambda: queries.loki_lines(backends.loki.url, SERVICE), bool, "the step's log line"
        )
        agent.kill()
        backends.reap.waits_for(DIED, 2)
        backends.reap.waits_for(OUTBOX, 0)

    (trace,) = backends.traces(1)
    spans = {span["operationName"]: span for span in trace["spans"]}
    chat, call = spans["POST /chat"], spans["chat m-large"]
    for span in (chat, call):
        said = tags(span)
        assert said["otel.status_code"] == "ERROR"
        assert said["error"] is True
        assert said["spanloom.incomplete"] is True
        assert said["error.type"] == "process_died"
    assert "spanloom.incomplete" not in tags(spans["done before"])
    assert tags(chat)["question"] == "你好"
    assert call["references"][0]["spanID"] == chat["spanID"]
    time.sleep(5)  # the reaper looks and asks on: nothing comes again
    assert backends.accepted() == 3

    lines = queries.loki_entries(backends.loki.url, f'{{service_name="{SERVICE}"}}')
    assert lines
    assert [line for line in lines if "spanloom.span" in str(line)] == []
    assert [line for line in lines if "heartbeat" in str(line)] == []


def test_a_process_killed_right_after_its_ends_were_sent_has_no_others(backends: Backends) -> None:
    """The Collector brings the reaper what it is told of ends."""
    with backends.agent(DIES_AT_ONCE) as agent, backends.agent() as other:
        backends.reap.waits_for(IN_FLIGHT, 4)
        agent.go_on()
        assert agent.process.wait(WAIT_S) == -signal.SIGKILL
        backends.reap.waits_for(IN_FLIGHT, 2)
        # What a batch in memory still held would die with the process.
        eventually(backends.accepted, lambda seen: seen == 4, "all spans that had ended")
        other.kill()
        backends.reap.waits_for(DIED, 2)
        backends.reap.waits_for(OUTBOX, 0)

    traces = backends.traces(2)
    ends = sorted(sum("spanloom.incomplete" in tags(s) for s in one["spans"]) for one in traces)
    assert ends == [0, 2]
    assert backends.accepted() == 6


def test_a_collector_that_is_away_is_no_death_and_loses_no_end(
    tmp_path: Path, backends: Backends
) -> None:
    """Away for longer than the reaper waits; then the process dies while it and the reaper are."""
    reap = backends.reap
    with backends.agent() as agent:
        reap.waits_for(IN_FLIGHT, 2)
        eventually(backends.accepted, lambda seen: seen == 1, "the span that had ended")
        backends.collector.stop()
        reap.waits_for("spanloom_reap_collector_up", 0)
        time.sleep(12)
        assert reap.metrics()[IN_FLIGHT] == 2
        backends.collector.start()
        reap.waits_for("spanloom_reap_hearing", 1)
        time.sleep(9)
        assert reap.metrics()[IN_FLIGHT] == 2

        backends.collector.kill()
        reap.waits_for("spanloom_reap_collector_up", 0)
        agent.kill()
        reap.kill()
    with Reap(tmp_path / "reap", backends.collector.http, after="8s", port=reap.port) as again:
        assert again.metrics()[IN_FLIGHT] == 2
        backends.collector.start()
        again.waits_for(DIED, 2)
        again.waits_for(OUTBOX, 0)
        backends.traces(1)
        assert backends.accepted() == 2  # since its last start: the two ends, once


def test_sampling_keeps_every_trace_of_a_killed_process(tmp_path: Path) -> None:
    """Two tiers, a tenth is kept: the ends come by way of the agent tier, before the decision."""
    port = free_port()
    traces = jaeger(tmp_path)
    gateway = collector(
        tmp_path, traces, None, None, name="gateway",
        config=ROOT / "deploy/collector/gateway.yaml",
        TAIL_DECISION_WAIT="60s", TAIL_WAIT_AFTER_ROOT="3s",
    )  # fmt: skip
    tier = collector(
        tmp_path, None, None, None, name="agent",
        config=ROOT / "deploy/collector/agent.yaml",
        COLLECTOR_GATEWAY_RESOLVER=json.dumps({"static": {"hostnames": [gateway.grpc]}}),
        REAP_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
    )  # fmt: skip
    with (
        together(traces, gateway, tier),
        Reap(tmp_path / "reap", tier.http, after="8s", port=port) as reap,
    ):
        agents = [Agent(tier.http, tier.http, script=CALLS_MODEL) for _ in range(3)]
        try:
            reap.waits_for(IN_FLIGHT, 6)
            # What a batch in memory still held would die with the process.
            eventually(
                lambda: queries.own_metrics(tier.metrics_url).get(ACCEPTED, 0.0),
                lambda seen: seen == 3,
                "the spans that had ended",
            )
        finally:
            for agent in agents:
                os.kill(agent.process.pid, signal.SIGKILL)
                agent.process.communicate()
        reap.waits_for(DIED, 6)
        reap.waits_for(OUTBOX, 0)
        found = eventually(
            lambda: Counter(queries.jaeger_span_ids(traces.url, SERVICE)),
            lambda seen: len(seen) == 9,
            "all three traces whole",
        )
        assert set(found.values()) == {1}
