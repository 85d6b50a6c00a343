"""A backend that is away for long: an hour by a stepped clock, and by what is written in it."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from spanloom.telemetry import spool_sender
from spanloom.telemetry.spool import Spool
from spanloom.telemetry.spool_reader import BATCH
from spanloom.telemetry.spool_sender import MAX_WAIT_S, REPLAY_PAUSE_S
from tests.free_ports import free_port
from tests.telemetry.live import Receiver, child_environment, wait_for

pytestmark = pytest.mark.timeout(420)
HOUR_S = 3_600


class Clock:
    """Goes on by a second at each look: the sender looks at it before each attempt."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


class Backend:
    """An exporter that fails until the hour is over, and notes when it was asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[float] = []
        self.taken: list[str] = []
        self.first_taken = 0.0

    def export(self, spans: Any) -> SpanExportResult:
        self.asked.append(self._clock.now)
        if self._clock.now < HOUR_S:
            return SpanExportResult.FAILURE
        self.first_taken = self.first_taken or self._clock.now
        self.taken += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_an_hour_without_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked about once a minute and no more; a minute after it is back, all has arrived."""
    clock = Clock()
    stepped = SimpleNamespace(monotonic=clock.monotonic, time=time.time)
    monkeypatch.setattr(spool_sender, "time", stepped)
    backend = Backend(clock)
    spool = Spool(tmp_path / "spool", max_bytes=64_000_000, fsync=False)
    spool.open("traces", lambda: backend, 0.0005)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spool.span_processor())
    tracer = provider.get_tracer("test")
    for number in range(3_000):
        tracer.start_span(f"span {number}").end()
    wait_for(lambda: len(backend.taken) >= 3_000, 120)
    spool.shutdown("traces")

    during = [at for at in backend.asked if at < HOUR_S]
    gaps = [later - before for before, later in itertools.pairwise(during)]
    # A look at the clock is a second here, and each round looks twice.
    assert max(gaps) <= MAX_WAIT_S + 5
    assert HOUR_S / (MAX_WAIT_S + 5) <= len(during) <= 2 * HOUR_S / MAX_WAIT_S + 10
    assert gaps[-1] >= MAX_WAIT_S / 2
    assert backend.first_taken - HOUR_S <= MAX_WAIT_S + 5
    assert Counter(backend.taken) == {f"span {number}": 1 for number in range(3_000)}


SERVICE = """
import sys, time
from opentelemetry import trace
from spanloom.telemetry import get_logger, setup, step
telemetry = setup("outage")
log = get_logger("outage")
first, last = int(sys.argv[1]), int(sys.argv[2])
with step(f"open {first}"):
    for number in range(first, last):
        with step(f"span {number}"):
            pass
        if number % 100 == 0:
            log.warning(f"line {number}")
    print("written", flush=True)
    if len(sys.argv) > 3:
        time.sleep(600)
"""
SPANS = 12_000


class Outage:
    """Runs of one service on one spool folder, while nothing listens at the backend's address."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._environment = child_environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            OTEL_METRICS_EXPORTER="none",
            SPANLOOM_SPOOL_DIR=str(folder),
            SPANLOOM_LOG_STEPS="off",
        )
        self.started: list[subprocess.Popen[str]] = []

    def run(self, run: int, *, stays: bool) -> subprocess.Popen[str]:
        """One run that has written its spans when this returns, and what is open if it stays."""
        first = run * SPANS
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", SERVICE, str(first), str(first + SPANS)),
                *(["stays"] if stays else []),
            ],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        assert "written\n" in iter(process.stdout.readline, "")
        if stays:
            opened = f"open {first}".encode()
            files = self._folder.glob
            wait_for(lambda: any(opened in each.read_bytes() for each in files("*.traces.*")))
        return process


class TimedReceiver(Receiver):
    """Notes when each request with spans came, and how many they were."""

    def __init__(self, port: int) -> None:
        self.batches: list[tuple[float, int]] = []
        super().__init__(port)

    def take(self, path: str, body: bytes) -> None:
        before = len(self.spans)
        super().take(path, body)
        if path == "/v1/traces":
            self.batches.append((time.monotonic(), len(self.spans) - before))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def outage(tmp_path: Path, port: int) -> Iterator[Outage]:
    outage = Outage(tmp_path / "spool", f"http://127.0.0.1:{port}")
    yield outage
    for process in outage.started:
        process.kill()
        process.communicate()


def test_an_hours_worth_over_a_restart_and_a_kill_arrives_once_and_paced(
    outage: Outage, port: int, tmp_path: Path
) -> None:
    """Three runs: ended by SIGTERM, by kill -9, and alive when the backend is back."""
    stopped = outage.run(0, stays=True)
    os.kill(stopped.pid, signal.SIGTERM)
    assert stopped.wait(60) == -signal.SIGTERM
    killed = outage.run(1, stays=True)
    killed.kill()
    killed.wait()
    outage.run(2, stays=True)
    wanted = Counter({f"span {number}": 1 for number in range(3 * SPANS)})

    back = TimedReceiver(port)
    try:
        # the longest wait between two attempts, and the replay
        wait_for(lambda: len(back.spans) >= len(wanted) + 2, 240)
        wait_for(lambda: sum(name.endswith(".lock") for name in names(tmp_path)) == 1, 60)
        seen = Counter(span.name for span in back.spans)
        opened = {name: count for name, count in seen.items() if name.startswith("open")}
        lines = Counter(record.body.string_value for record in back.logs)
    finally:
        back.close()

    assert {name: seen[name] for name in wanted} == wanted
    assert opened[f"open {SPANS}"] == 1, "what was open at the kill is ended, once"
    assert set(opened.values()) == {1}
    assert len({span.span_id for span in back.spans}) == len(back.spans), "one version of a span id"
    written = {f"line {number}": 1 for number in range(0, 3 * SPANS, 100)}
    assert {line: lines[line] for line in written} == written
    # No flood: batches of a bounded size, and what is read back from disk a pause apart.
    assert max(count for _, count in back.batches) <= BATCH
    took = back.batches[-1][0] - back.batches[0][0]
    assert took >= (2 * SPANS // BATCH - 1) * REPLAY_PAUSE_S


def names(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "spool").iterdir()]
