"""Each alert fires in the real Prometheus on the fault it is there for, and none without one.

The rules are the committed ones; in the copy that this Prometheus reads only the waiting is
shorter: `for`, and the two-minute windows of what has to stay so for a while.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.free_ports import free_port
from tests.stack.faults import Faulty, faulty_service
from tests.stack.programs import (
    ROOT,
    Collector,
    Jaeger,
    Program,
    Prometheus,
    collector,
    jaeger,
    loki,
    prometheus,
    together,
)
from tests.stack.sending import old_line, spans
from tests.stack.waiting import data, eventually

DEADLINE_S = 12  # over the limit of p95, which is 10
QUEUE_BYTES = 2_000_000
WITHIN_S = 150
pytestmark = pytest.mark.timeout(420)

Labels = dict[str, str]


def alert_names() -> set[str]:
    return {
        rule["alert"]
        for file in (ROOT / "prometheus/rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def hurry(server: Prometheus) -> None:
    """Shorten the waiting in this server's copy of the rules."""
    folder = server.targets.parent / "rules"
    changed = 0
    for file in folder.glob("*.yml"):
        text = file.read_text(encoding="utf-8")
        text, waits = re.subn(r"for: \w+", "for: 2s", text)
        text, windows = re.subn(r"\[2m\]", "[10s]", text)
        file.write_text(text, encoding="utf-8")
        changed += waits + windows
    assert changed >= 14


@dataclass
class World:
    """A stack, a service, and how they are broken."""

    prometheus: Prometheus
    jaeger: Jaeger
    collector: Collector
    tight: Collector
    """A Collector whose memory limit is always reached."""
    folder: Path
    others: list[Program]
    """Processes that are broken by birth."""
    faulty: Faulty | None = None

    def agent(self, name: str, port: int, *arguments: str, **env: str) -> Program:
        """Start tests/stack/broken_agent.py; it sends to the Collector that refuses."""
        program = Program(
            name,
            [sys.executable, "-m", "tests.stack.broken_agent", str(port), *arguments],
            self.folder,
            f"http://127.0.0.1:{port}/metrics",
            {"OTEL_EXPORTER_OTLP_ENDPOINT": self.tight.http} | env,
        )
        self.others.append(program)
        program.start()
        return program

    def firing(self, name: str | None = None, **labels: str) -> list[dict[str, Any]]:
        """Alerts that fire, by name and by labels."""
        return [
            alert
            for alert in data(f"{self.prometheus.url}/api/v1/alerts")["alerts"]
            if alert["state"] == "firing"
            and name in {None, alert["labels"]["alertname"]}
            and labels.items() <= alert["labels"].items()
        ]

    def fires(self, name: str, **labels: str) -> dict[str, Any]:
        return eventually(
            lambda: self.firing(name, **labels), f"{name} {labels} fires", within_s=WITHIN_S
        )[0]

    def clears(self, name: str, **labels: str) -> None:
        eventually(lambda: not self.firing(name, **labels), f"{name} clears", within_s=WITHIN_S)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A healthy stack and a healthy service that nobody scrapes yet."""
    folder = tmp_path_factory.mktemp("alerts")
    metrics, logs = prometheus(folder), loki(folder)
    hurry(metrics)
    traces = jaeger(folder, metrics)
    otlp = collector(folder, traces, metrics, logs, COLLECTOR_TRACE_QUEUE_BYTES=str(QUEUE_BYTES))
    tight = collector(
        folder, traces, metrics, logs, name="tight",
        COLLECTOR_MEMORY_LIMIT_MIB="4", COLLECTOR_MEMORY_SPIKE_MIB="1",
    )  # fmt: skip
    with together(metrics, logs, traces, otlp):
        # Only now: a program that Prometheus asks before it listens is a TargetDown.
        for job, url in (
            ("otel-collector", otlp.metrics_url),
            ("jaeger", traces.metrics_url),
            ("loki", logs.url),
        ):
            metrics.scrape(job, httpx2.URL(url).netloc.decode())
        here = World(metrics, traces, otlp, tight, folder, [])
        with faulty_service(folder / "service", otlp.http, AGENT_DEADLINE_S=str(DEADLINE_S)) as it:
            here.faulty = it
            yield here
        for program in (*here.others, tight):
            program.stop()


@pytest.fixture(scope="module")
def healthy(world: World) -> World:
    """Scraped, asked a few questions, and not one alert."""
    assert world.faulty is not None
    missing = world.fires("TargetMissing", job="agent-api")
    assert missing["annotations"]["summary"] == "Nobody scrapes agent-api"
    address = world.faulty.service.api.removeprefix("http://")
    world.prometheus.scrape("agent-api", address, file="agent-api.yml")
    for _ in range(2):
        for question in ("What is 12*7?", "What time is it in Shanghai?", "What is RAG?"):
            _, answer = world.faulty.service.ask(question)
            assert answer.status_code == 200, answer.text
        time.sleep(3)
    world.clears("TargetMissing")
    eventually(lambda: requests_seen(world) >= 6, "the requests in Prometheus")
    eventually(lambda: not world.firing(), "no alert fires")
    return world


def requests_seen(world: World) -> float:
    query = 'sum(agent_requests_total{status="200"})'
    found = data(f"{world.prometheus.url}/api/v1/query", query=query)["result"]
    return float(found[0]["value"][1]) if found else 0


@pytest.fixture(scope="module")
def broken(healthy: World) -> Iterator[World]:
    """All faults, and traffic that meets them until the last test has ended."""
    world = healthy
    assert world.faulty is not None
    faulty = world.faulty
    world.tight.start()
    world.prometheus.scrape("otel-collector", httpx2.URL(world.tight.metrics_url).netloc.decode())
    port = free_port()
    world.agent("broken-agent", port)
    world.prometheus.scrape("broken-agent", f"127.0.0.1:{port}")
    freeze_a_worker(world)

    with ThreadPoolExecutor(4) as pool:  # three who wait until the deadline
        faulty.model.mode = "hang"
        waiting = [pool.submit(faulty.service.ask, "What is tail sampling?") for _ in range(3)]
        statuses = [each.result()[1].status_code for each in waiting]
        faulty.model.mode = "pass"
    assert statuses == [504, 504, 504]

    world.jaeger.kill()
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(2):
            faulty.refused()
            faulty.service.ask("What is 5/0?")
            old_line(world.collector)

    with ThreadPoolExecutor(1) as pool:
        traffic = pool.submit(go_on)
        fill(world)
        yield world
        done.set()
        traffic.result()


def freeze_a_worker(world: World) -> None:
    """Two workers that answer for each other; the one with an open span stops for good."""
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(world.folder / "workers")}
    port, unused = free_port(), free_port()
    hung = world.agent("hung-worker", unused, **shared)
    world.agent("well-worker", port, "--well", **shared)

    def began() -> bool:
        text = httpx2.get(f"http://127.0.0.1:{port}", timeout=30, trust_env=False).text
        return re.search(r"^spanloom_telemetry_open_spans [1-9]", text, re.MULTILINE) is not None

    eventually(began, "an open span of the worker")
    hung.freeze()
    world.prometheus.scrape("workers", f"127.0.0.1:{port}")


def fill(world: World) -> None:
    """Fill the queue of traces up to 90 %, whatever traffic has put there."""

    def nearly_full() -> bool:
        query = 'otelcol_exporter_queue_size{exporter="otlp_grpc/jaeger"} / on (instance)'
        query += ' otelcol_exporter_queue_capacity{exporter="otlp_grpc/jaeger"} > 0.85'
        return bool(data(f"{world.prometheus.url}/api/v1/query", query=query)["result"])

    sent = 0
    end = time.monotonic() + WITHIN_S
    while not nearly_full():
        assert time.monotonic() < end, f"{sent} requests did not fill the queue"
        if sent * 100_000 < QUEUE_BYTES * 0.8:
            spans(world.collector, note_bytes=10_000)
            sent += 1
        else:
            time.sleep(1)


FAULTS: dict[str, Labels] = {
    "AgentLatencyHigh": {"job": "agent-api"},
    "AgentErrorRateHigh": {"job": "agent-api"},
    "TokenBudgetExceeded": {"job": "broken-agent"},
    "CostBudgetExceeded": {"job": "broken-agent"},
    "LlmRateLimited": {"job": "agent-api", "model": "offline-small"},
    "ToolFailing": {"job": "agent-api", "tool": "calculator"},
    "SpanPastDeadline": {"job": "broken-agent"},
    "SpanOpenTooLong": {"job": "broken-agent"},
    "TelemetryDropped": {"job": "broken-agent", "reason": "export_failed"},
    "CollectorQueueNearFull": {"exporter": "otlp_grpc/jaeger"},
    "CollectorExporterFailing": {"exporter": "otlp_grpc/jaeger"},
    "CollectorDataLost": {"exporter": "otlp_http/loki"},
    "CollectorRefusing": {"receiver": "otlp"},
    "TargetDown": {"job": "jaeger"},
    "BackendDiscarding": {"job": "loki", "reason": "greater_than_max_sample_age"},
}
"""Alert and the labels that say which of the faults it saw."""


def test_nothing_fires_while_nothing_is_wrong(healthy: World) -> None:
    """Nor has anything fired since the start but what the start of the test has to make fire.

    Two alerts are left out whose windows of two minutes are ten seconds here.
    """
    hurried = "TargetMissing|CollectorExporterFailing|CollectorRefusing"
    query = f'ALERTS{{alertstate="firing", alertname!~"{hurried}"}}'
    url = f"{healthy.prometheus.url}/api/v1/query_range"
    now = time.time()
    assert data(url, query=query, start=now - 120, end=now, step=1)["result"] == []


def test_every_alert_is_tried() -> None:
    assert FAULTS.keys() | {"TargetMissing"} == alert_names()


@pytest.mark.parametrize("name", FAULTS)
def test_an_alert_fires_on_its_fault(broken: World, name: str) -> None:
    alert = broken.fires(name, **FAULTS[name])
    said = alert["annotations"]
    assert said["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    assert "{{" not in said["summary"]
    assert "<no value>" not in said["summary"]


def test_a_worker_that_hangs_is_reported_by_the_one_that_does_not(broken: World) -> None:
    """It runs no code any more: the begin of its span speaks for it, read by another process."""
    alert = broken.fires("SpanOpenTooLong", job="workers")
    assert float(alert["value"]) > 60
    broken.clears("TargetDown", job="workers")


def test_alerts_end_with_their_fault(broken: World) -> None:
    """Jaeger comes back, the queue empties by itself."""
    broken.jaeger.start()
    checks: list[Callable[[], None]] = [
        lambda: broken.clears("TargetDown", job="jaeger"),
        lambda: broken.clears("CollectorQueueNearFull"),
        lambda: broken.clears("CollectorExporterFailing", exporter="otlp_grpc/jaeger"),
    ]
    for check in checks:
        check()
