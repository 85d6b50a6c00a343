"""How telemetry itself fares: open spans, spool and losses, as a scraper reads them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from spanloom.telemetry import drops
from tests.free_ports import free_port
from tests.telemetry.live import Receiver, Script, child_environment, wait_for

SERVE = """
import http.server, sys, time
from spanloom.telemetry import deadline, metrics, setup, step
telemetry = setup("busy")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/metrics":
            command(self.path[1:])
        body, kind = metrics.render(self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass

open_steps = []
def command(name):
    if name == "end":
        open_steps.pop().__exit__(None, None, None)
    else:
        manager = step(name, **({"spanloom.deadline_ms": 300} if name == "late" else {}))
        manager.__enter__()
        open_steps.append(manager)

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Scraped:
    """A process that opens and ends spans when asked to, and answers /metrics."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        while not (line := process.stdout.readline()).strip().isdigit():
            assert line, "the process ended"
        self._url = f"http://127.0.0.1:{line.strip()}"

    def do(self, command: str) -> None:
        httpx2.get(f"{self._url}/{command}", timeout=60).raise_for_status()

    def values(self, name: str, **labels: str) -> list[float]:
        accept = {"Accept": "text/plain"}
        text = httpx2.get(f"{self._url}/metrics", headers=accept, timeout=60).text
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.values(name, **labels)
        return value


@pytest.fixture
def start(receiver: Receiver) -> Iterator[Callable[..., Scraped]]:
    started: list[subprocess.Popen[str]] = []

    def run(**environment: str) -> Scraped:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env=child_environment(
                **{
                    "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                    "SPANLOOM_INFLIGHT_AFTER": "0.2",
                    "SPANLOOM_LOG_STEPS": "off",
                    **environment,
                }
            ),
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return Scraped(process)

    yield run
    for process in started:
        process.kill()
        process.wait()


OPEN = "spanloom_telemetry_open_spans"
OVERDUE = "spanloom_telemetry_overdue_spans"
OLDEST = "spanloom_telemetry_oldest_open_span_timestamp_seconds"
WAITING = "spanloom_telemetry_spool_waiting"
DROPPED = "spanloom_telemetry_dropped_total"


def test_open_spans_are_counted_and_the_oldest_is_dated(start: Callable[..., Scraped]) -> None:
    """Idle: none, and no date; then the first one's begin; a span over its deadline is told."""
    process = start()
    assert process.value(OLDEST) == math.inf
    process.do("first")
    wait_for(lambda: process.value(OLDEST) < math.inf)  # the last of the three that is written
    assert process.value(OPEN) == 1
    first = process.value(OLDEST)
    assert process.value(OVERDUE) == 0
    process.do("late")
    wait_for(lambda: process.value(OVERDUE) == 1)
    assert process.value(OPEN) == 2
    assert process.value(OLDEST) == first
    process.do("end")
    wait_for(lambda: process.value(OVERDUE) == 0)
    assert process.value(OLDEST) == first
    process.do("end")
    wait_for(lambda: process.value(OLDEST) == math.inf)
    assert process.value(OPEN) == 0


def test_the_date_stays_while_the_process_is_stopped(start: Callable[..., Scraped]) -> None:
    """A begin is shown and not an age, so that it needs nobody to count on."""
    process = start()
    process.do("hanging")
    wait_for(lambda: process.value(OLDEST) < math.inf)
    assert process.value(OPEN) == 1
    dates = {process.value(OLDEST)}
    process.do("another")
    wait_for(lambda: process.value(OPEN) == 2)
    dates.add(process.value(OLDEST))
    assert len(dates) == 1


def test_losses_stand_at_zero_from_the_start(start: Callable[..., Scraped]) -> None:
    """Every reason of both signals, so that the first loss is an increase for Prometheus."""
    assert start().values(DROPPED) == [0.0] * 2 * len(drops._REASONS)


def test_what_waits_in_the_spool_is_shown(start: Callable[..., Scraped], tmp_path: Path) -> None:
    """A backend that is away makes it grow; one that is back, shrink to nothing."""
    port = free_port()
    process = start(
        SPANLOOM_SPOOL_DIR=str(tmp_path / "spool"),
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
    )
    for _ in range(3):
        process.do("work")
        process.do("end")
    wait_for(lambda: process.values(WAITING, signal="traces") == [3])
    back = Receiver(port)
    wait_for(lambda: process.values(WAITING, signal="traces") == [0], timeout_s=90)
    assert len(back.spans) == 3
    back.close()


WORKERS = """
import json, multiprocessing, os
from prometheus_client.parser import text_string_to_metric_families

def work(start, done, oldest):
    from spanloom.telemetry import metrics
    metrics.show_open_spans(count=2, overdue=1, oldest=oldest)
    start.wait()
    done.wait()

def read():
    from spanloom.telemetry import metrics
    text = metrics.render("")[0].decode()
    return {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples
            if "open_span" in s.name or "overdue" in s.name}

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(4), context.Event()
    workers = [context.Process(target=work, args=(start, done, at)) for at in (300.0, 200.0, None)]
    for worker in workers: worker.start()
    start.wait()
    shown = [read()]
    for worker in workers:
        worker.kill(); worker.join()
        shown.append(read())
    print(json.dumps(shown))
"""


def test_workers_show_the_oldest_of_all_and_the_dead_none(script: Script, tmp_path: Path) -> None:
    """Counts are added up, dates are the least; what a killed worker had open is not shown."""
    program = tmp_path / "workers.py"
    program.write_text(WORKERS)
    done = script.run_file(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "shared"))

    assert done.returncode == 0, done.stderr
    shown: list[dict[str, Any]] = json.loads(done.stdout)
    assert [one[OPEN] for one in shown] == [6, 4, 2, 0]
    assert [one[OVERDUE] for one in shown] == [3, 2, 1, 0]
    assert [one[OLDEST] for one in shown] == [200, 200, math.inf, math.inf]
    assert os.listdir(tmp_path / "shared")  # noqa: PTH208
