"""The server as a process: start, stop, kill -9, taken ports, its own health and metrics."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spanloom.errors import ConfigurationError, StoreLockedError
from spanloom.otlp import traces_to_message
from spanloom.server.app import Addresses
from tests.server.agent_trace import Builder, agent_trace
from tests.server.running import WAIT_S, Client, running

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

# The command line has its own tests; here only what it calls.
PROGRAM = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from spanloom.server.app import ServerConfig, serve

def ready(addresses):
    print(json.dumps(asdict(addresses)), flush=True)

config = ServerConfig(Path(sys.argv[1]), otlp_grpc_port=0, otlp_http_port=0, query_port=0)
asyncio.run(serve(config, on_ready=ready))
"""


@contextmanager
def process(data_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", Client]]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert child.stdout
        line = child.stdout.readline()
        if not line:
            assert child.stderr
            pytest.fail(child.stderr.read())
        client = Client(Addresses(**json.loads(line)))
        yield child, client
        client.close()
    finally:
        child.kill()
        child.communicate(timeout=WAIT_S)


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    builder = agent_trace(TRACE_ID)
    with process(tmp_path) as (child, client):
        client.send(spans=builder.spans, logs=builder.logs)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(WAIT_S) == -signal.SIGKILL

    with process(tmp_path) as (_, client):
        trace = client.json(f"/api/traces/{TRACE_ID}")["data"][0]
        assert len(trace["spans"]) == 32
        logs = client.json(f"/api/spanloom/traces/{TRACE_ID}/logs")
        assert sum(len(scope["logRecords"]) for scope in logs["resourceLogs"][0]["scopeLogs"]) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with process(tmp_path) as (child, client):
        client.send(spans=agent_trace(TRACE_ID).spans)
        child.send_signal(number)

        assert child.wait(WAIT_S) == 0
        assert child.stderr
        assert child.stderr.read() == ""


def test_it_starts_again_on_the_same_store(tmp_path: Path) -> None:
    for number in range(2):
        with running(tmp_path) as client:
            builder = Builder(f"{number + 1:032x}")
            builder.span("GET /")
            client.send(spans=builder.spans)

            assert len(client.json("/api/traces")["data"]) == number + 1


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("query_port", "--query-port"),
        ("otlp_http_port", "--otlp-http-port"),
        ("otlp_grpc_port", "--otlp-grpc-port"),
    ],
)
def test_a_taken_port_is_named_with_its_remedy(tmp_path: Path, field: str, option: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        with (
            pytest.raises(ConfigurationError, match=rf"port {port} .*in use.*{option}"),
            running(tmp_path, **{field: port}),
        ):
            pass


def test_a_host_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--host"), running(tmp_path, host="192.0.2.1"):
        pass


def test_a_second_server_does_not_touch_the_store(tmp_path: Path) -> None:
    with running(tmp_path), pytest.raises(StoreLockedError), running(tmp_path):
        pass


def test_beyond_loopback_it_warns_and_answers_to_every_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), running(tmp_path, host="0.0.0.0") as client:
        assert "no log-in" in caplog.text
        answer = client.query.get("/health", headers={"host": "traces.example"})
        assert answer.status_code == 200


def test_a_name_can_be_allowed_on_loopback(tmp_path: Path) -> None:
    with running(tmp_path, allowed_hosts=("host.docker.internal",)) as client:
        headers = {"host": "host.docker.internal:16686"}
        assert client.query.get("/health", headers=headers).status_code == 200


def test_health_tells_version_uptime_and_store(server: Client) -> None:
    server.send(spans=agent_trace(TRACE_ID).spans)

    health = server.json("/health")

    assert health["status"] == "ok"
    assert {"version", "uptime_seconds", "store"} < set(health)
    assert (health["store"]["spans"], health["store"]["traces"]) == (32, 1)


def samples(text: str) -> dict[str, Any]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_metrics_count_what_came_in(server: Client) -> None:
    builder = agent_trace(TRACE_ID)
    server.send(spans=builder.spans, logs=builder.logs)
    request = traces_to_message(builder.spans)
    request.resource_spans[0].scope_spans[0].spans.add(name="no ids")
    server.post("/v1/traces", request.SerializeToString())
    server.post("/v1/traces", b"\xff")

    answer = server.query.get("/metrics")
    found = samples(answer.text)

    assert answer.headers["content-type"].startswith("text/plain")
    assert found['spanloom_received_items_total{signal="traces"}'] == 65
    assert found['spanloom_stored_items_total{signal="traces"}'] == 64
    assert found['spanloom_stored_items_total{signal="logs"}'] == 9
    assert found['spanloom_rejected_items_total{reason="invalid",signal="traces"}'] == 1
    assert found['spanloom_rejected_requests_total{signal="traces",status="400"}'] == 1
    assert found["spanloom_store_spans"] == 32  # stored twice, kept once
    assert found["spanloom_store_bytes"] > 0
    assert found["spanloom_queue_items"] == 0


def test_metrics_speak_openmetrics_when_asked(server: Client) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}

    answer = server.query.get("/metrics", headers=accept)

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_twenty_readers_and_writers_at_once(server: Client) -> None:
    def one(number: int) -> int:
        builder = agent_trace(f"{number + 1:032x}")
        server.send(spans=builder.spans, logs=builder.logs)
        trace = server.json(f"/api/traces/{number + 1:032x}")["data"][0]
        assert {span["traceID"] for span in trace["spans"]} == {f"{number + 1:032x}"}
        return len(trace["spans"])

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == [32] * 20
