"""Metrics of several worker processes, some of which are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar, Sample

from spanloom.telemetry import workers
from spanloom.telemetry.exemplars import MAX_FILE_BYTES, ExemplarFile, read_exemplars
from spanloom.telemetry.workers import SharedMetrics
from tests.telemetry.live import Receiver, Script, child_environment, wait_for
from tests.telemetry.metrics_service import HEALTHCHECK_S, WORKERS

CUT_OFF = (OSError, HTTPException)
"""What a request ends with whose worker is killed."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class FourWorkers:
    """`metrics_service.py` and what it answers, each time over a new connection."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        port_file = folder / "port"
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "metrics_service.py"), str(port_file)],
                env=child_environment(**environment),
                stdout=log,
                stderr=log,
            )
        wait_for(port_file.exists)
        self.url = f"http://127.0.0.1:{port_file.read_text()}"
        self.attempts = 0
        self.answers: list[dict[str, Any]] = []

    def get(self, path: str, **parameters: Any) -> str:
        request = urllib.request.Request(
            f"{self.url}{path}?{urlencode(parameters)}", headers={"Accept": OPENMETRICS}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.read().decode())
        except HTTPError as exc:  # which would be an OSError as well
            raise AssertionError(f"{path} answered {exc.code}") from exc

    def work(self, seconds: float, endpoint: str = "/work") -> dict[str, Any] | None:
        self.attempts += 1
        try:
            answer = json.loads(self.get("/work", seconds=seconds, endpoint=endpoint))
        except CUT_OFF:
            return None
        self.answers.append(answer)
        return dict(answer)

    def reach_all(self, endpoint: str) -> set[int]:
        """Ask until all living workers have answered within a sampled trace."""
        seen: set[int] = set()

        def next_one() -> bool:
            with ThreadPoolExecutor(16) as pool:
                for answer in pool.map(lambda _: self.work(0.3, endpoint), range(16)):
                    if answer and answer["sampled"]:
                        seen.add(answer["pid"])
            return len(seen) >= WORKERS

        # uvicorn may have asked a worker for a sign of life just before it was killed: it waits
        # for the answer as long as for one that is slow, and only then starts another.
        wait_for(next_one, timeout_s=HEALTHCHECK_S + 120)
        return seen

    def samples(self) -> list[Sample]:
        while True:
            try:
                families = text_string_to_metric_families(self.get("/metrics"))
            except CUT_OFF:
                continue
            return [sample for family in families for sample in family.samples]

    def active(self) -> float:
        return sum(s.value for s in self.samples() if s.name == "agent_active_requests")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture
def four_workers(tmp_path: Path, receiver: Receiver) -> Iterator[FourWorkers]:
    service = FourWorkers(
        tmp_path,
        {
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.5",
        },
    )
    yield service
    service.stop()


def key_of(sample: Sample) -> tuple[Any, ...]:
    return sample.name, *sorted(sample.labels.items())


def is_counter(sample: Sample) -> bool:
    return sample.name.endswith(("_total", "_bucket", "_count", "_sum"))


class Watcher:
    """Scrapes all the time, and notes each counter that went back or vanished."""

    def __init__(self, service: FourWorkers) -> None:
        self.went_back: list[tuple[Any, float, float]] = []
        self.scrapes = 0
        self._service = service
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        last: dict[tuple[Any, ...], float] = {}
        while not self._ended.is_set():
            now = {key_of(s): s.value for s in self._service.samples() if is_counter(s)}
            self.went_back += [
                (key, value, now.get(key, -1))
                for key, value in last.items()
                if now.get(key, -1) < value
            ]
            last = now
            self.scrapes += 1


@contextlib.contextmanager
def released(folder: Path) -> Iterator[None]:
    """Let the held requests go at the end."""
    try:
        yield
    finally:
        (folder / "release").touch()


@pytest.mark.timeout(500)
def test_four_workers_are_one_service_though_one_is_killed(
    four_workers: FourWorkers, receiver: Receiver, tmp_path: Path
) -> None:
    """Sums never go back, the gauge loses the dead, exemplars stay and lead to kept traces."""
    service = four_workers
    own_series = "/worker/PID"
    first = service.reach_all(own_series)
    assert len(first) == WORKERS

    held = tmp_path / "held"
    held.mkdir()
    with ThreadPoolExecutor(40) as pool, Watcher(service) as watcher, released(held):
        for number in range(12):
            pool.submit(service.get, "/hold", folder=held, number=number)
        wait_for(lambda: len(list(held.iterdir())) == 12)
        by_worker = Counter(int(path.stem) for path in held.iterdir())
        assert service.active() == 12

        load = [pool.submit(service.work, 0.05 * (n % 40)) for n in range(200)]
        victim, lost = by_worker.most_common(1)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: service.active() == 12 - lost)
        for one in load:
            one.result()
        replaced = first
        while victim in replaced or len(replaced) < WORKERS:
            replaced = service.reach_all(own_series)
        assert len(replaced - first) == 1
        wait_for(lambda: watcher.scrapes > 3)
    wait_for(lambda: service.active() == 0)
    assert watcher.went_back == []

    samples = service.samples()
    totals = {s.labels["endpoint"]: s.value for s in samples if s.name == "agent_requests_total"}
    own = {endpoint: value for endpoint, value in totals.items() if endpoint != "/work"}
    assert {int(endpoint.rpartition("/")[2]) for endpoint in own} == first | replaced
    # A killed worker may have counted a request that it did not answer any more.
    assert len(service.answers) <= sum(totals.values()) <= service.attempts

    with_exemplar = [sample for sample in samples if sample.exemplar is not None]
    sampled = {a["trace_id"]: a["pid"] for a in service.answers if a["sampled"]}
    unsampled = {answer["trace_id"] for answer in service.answers if not answer["sampled"]}
    assert sampled
    assert unsampled
    for sample in with_exemplar:
        trace_id = sample.exemplar.labels["trace_id"]
        assert trace_id not in unsampled
        if sampled.get(trace_id, victim) != victim:  # whose last spans died with it
            wait_for(lambda trace_id=trace_id: receiver.spans_of(trace_id))
    shown = {s.labels["endpoint"] for s in with_exemplar if s.name.endswith("_total")}
    assert shown == {"/work", *own}
    assert {s.name for s in with_exemplar} == {
        "agent_requests_total",
        "agent_latency_seconds_bucket",
    }
    for sample in with_exemplar:
        if "le" in sample.labels:
            assert sample.exemplar.value <= float(sample.labels["le"])


RESTARTS = """
import os, random, signal, sys, time
from pathlib import Path
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from spanloom.telemetry import metrics

folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

def total():
    families = text_string_to_metric_families(metrics.render(OPENMETRICS)[0].decode())
    return sum(sample.value for family in families for sample in family.samples
               if sample.name == "agent_requests_total")

def child(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException as exc:
            print(repr(exc), file=sys.stderr, flush=True)
            os._exit(1)
    return pid

def read():
    last = 0.0
    while not (folder / "stop").exists():
        now = total()
        assert now >= last, f"{last} then {now}"
        last = now

def work():
    for n in range(5):
        context = SpanContext(random.getrandbits(128), random.getrandbits(64), False, TraceFlags(1))
        with trace.use_span(NonRecordingSpan(context)):
            endpoint = f"/chat/{os.getpid()}" if n == 4 else "/chat"
            metrics.record_request(endpoint, "200", 0.3)
    os.kill(os.getpid(), signal.SIGKILL)

readers = [child(read) for _ in range(2)]
for _ in range(20):
    for pid in [child(work) for _ in range(3)]:
        os.waitpid(pid, 0)
(folder / "stop").touch()
codes = [os.waitpid(pid, 0)[1] for pid in readers]
body = metrics.render(OPENMETRICS)[0].decode()
print(total(), codes, len(list(folder.iterdir())), "trace_id" in body)
"""


def test_restarts_do_not_fill_the_folder(script: Script, tmp_path: Path) -> None:
    """Sixty killed workers leave one set of files, every count, and an exemplar; readers agree."""
    program = tmp_path / "restarts.py"
    program.write_text(RESTARTS)
    folder = tmp_path / "shared"
    done = script.run_file(program, timeout_s=100, PROMETHEUS_MULTIPROC_DIR=str(folder))

    assert done.returncode == 0, done.stderr
    total, codes, files, exemplars = done.stdout.replace(", ", ",").split()
    assert (total, codes, exemplars) == ("300.0", "[0,0]", "True"), done.stderr
    assert int(files) < 15, sorted(path.name for path in folder.iterdir())


KEY = mmap_key("agent_requests", "agent_requests_total", ["endpoint"], ["/问"], "Requests.")
TRACE = {"trace_id": "a" * 32, "span_id": "b" * 16}


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_worker(folder: Path, pid: int, count: float, *, time: float = 1.0) -> None:
    """What a worker leaves in the folder."""
    file = MmapedDict(str(folder / f"counter_{pid}.db"))
    file.write_value(KEY, count, 0.0)
    file.close()
    exemplars = open_exemplars(folder / f"worker_{pid}.exemplars")
    exemplars.put(KEY, Exemplar(TRACE, count, time))
    exemplars.close()


def open_exemplars(path: Path) -> ExemplarFile:
    return ExemplarFile(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def only_sample(shared: SharedMetrics) -> Sample:
    (metric,) = shared.collect()
    (sample,) = metric.samples
    return sample


def test_a_merge_that_was_killed_counts_nothing_twice(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the new file and the removal of the old ones, and after it, the sum is the same."""
    write_worker(tmp_path, dead_pid, 7)
    shared = SharedMetrics(tmp_path)
    finish = SharedMetrics._finish_merge

    def die_before_removing(self: SharedMetrics) -> None:
        if self._included():
            raise OSError("killed")
        finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(SharedMetrics, "_finish_merge", die_before_removing)
        assert only_sample(shared).value == 7
        assert (tmp_path / f"counter_{dead_pid}.db").exists()
        assert (tmp_path / "counter_merged.db").exists()
        assert only_sample(shared).value == 7
    assert only_sample(shared).value == 7
    assert not (tmp_path / f"counter_{dead_pid}.db").exists()

    write_worker(tmp_path, dead_pid, 2)  # the process id comes again, and dies again
    assert only_sample(shared).value == 9
    assert only_sample(shared).value == 9


def test_the_newest_exemplar_wins(tmp_path: Path, dead_pid: int) -> None:
    """Among merged and living files, by time, whatever the order of their names."""
    write_worker(tmp_path, dead_pid, 1, time=50.0)
    shared = SharedMetrics(tmp_path)
    assert only_sample(shared).exemplar == Exemplar(TRACE, 1, 50.0)
    write_worker(tmp_path, os.getpid(), 2, time=40.0)
    assert only_sample(shared).exemplar == Exemplar(TRACE, 1, 50.0)
    write_worker(tmp_path, os.getpid(), 3, time=60.0)
    assert only_sample(shared).exemplar == Exemplar(TRACE, 3, 60.0)
    assert only_sample(shared).labels == {"endpoint": "/问"}


def test_the_files_of_a_living_worker_are_left_alone(tmp_path: Path) -> None:
    """Locked means alive, even if the process id cannot be seen from here."""
    write_worker(tmp_path, 999_999_999, 4)
    locked = workers._open_locked(tmp_path / "worker_999999999.exemplars")
    shared = SharedMetrics(tmp_path)
    assert only_sample(shared).value == 4
    assert (tmp_path / "counter_999999999.db").exists()
    os.close(locked)
    assert only_sample(shared).value == 4
    assert not (tmp_path / "counter_999999999.db").exists()


OPENS_AND_CLOSES = """
import os, threading

def work():
    while True:
        os.close(os.open(os.devnull, os.O_RDONLY))

threading.Thread(target=work, daemon=True).start()
input()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_stranger_with_a_dead_workers_process_id_is_no_worker(tmp_path: Path) -> None:
    """The gauge of a dead worker goes although its process id is in use again, and busy."""
    stranger = subprocess.Popen([sys.executable, "-c", OPENS_AND_CLOSES], stdin=subprocess.PIPE)
    try:
        gauge = MmapedDict(str(tmp_path / f"gauge_livesum_{stranger.pid}.db"))
        gauge.write_value(mmap_key("active", "active", [], [], "Active."), 3.0, 0.0)
        gauge.close()
        assert SharedMetrics(tmp_path).collect() == []
    finally:
        stranger.communicate(b"\n")


def test_what_a_kill_cut_off_is_skipped(tmp_path: Path, dead_pid: int) -> None:
    """Empty, short and torn files of dead and living workers cost themselves only."""
    write_worker(tmp_path, os.getpid(), 5)
    (tmp_path / f"counter_{dead_pid}.db").touch()
    (tmp_path / f"worker_{dead_pid}.exemplars").write_bytes(b"SLEX")
    (tmp_path / "histogram_1.db").write_bytes(b"\xff\xff\0\0torn")
    (tmp_path / "worker_1.exemplars").write_bytes(os.urandom(5000))
    (tmp_path / "histogram_merged.db").write_bytes(b"")
    shared = SharedMetrics(tmp_path)
    for _ in range(2):
        assert only_sample(shared).value == 5
        assert only_sample(shared).exemplar is not None


def test_a_histogram_is_shown_once_its_last_bucket_is_written(tmp_path: Path) -> None:
    """Each scrape parses, whatever part of a new series a worker has written or was killed in."""
    db = MmapedDict(str(tmp_path / f"histogram_{os.getpid()}.db"))
    parts = [("_sum", []), *(("_bucket", [bound]) for bound in ("0.1", "1.0", "+Inf"))]
    shared = SharedMetrics(tmp_path)
    shown = []
    for endpoint in ("/问", "/new"):
        for suffix, bound in parts:
            names = ["endpoint", *(["le"] if bound else [])]
            key = mmap_key("latency", f"latency{suffix}", names, [endpoint, *bound], "Latency.")
            db.read_value(key)
            body = generate_latest(shared.registry()).decode()
            (family, *_) = [*text_string_to_metric_families(body), None]
            shown.append({s.labels["endpoint"] for s in family.samples} if family else set())
    assert shown == [set()] * 3 + [{"/问"}] * 4 + [{"/问", "/new"}]
    db.close()


def test_a_torn_exemplar_is_skipped_and_written_anew(tmp_path: Path) -> None:
    """Each byte of body and key is covered: what was changed is not shown."""
    path = tmp_path / "worker_1.exemplars"
    file = open_exemplars(path)
    file.put(KEY, Exemplar(TRACE, 0.25, 1.0))
    file.put("[]", Exemplar(TRACE, 0.5, 1.0))
    whole = path.read_bytes()
    assert read_exemplars(path)[KEY] == Exemplar(TRACE, 0.25, 1.0)
    start = whole.index(KEY.encode())
    for position in range(start, whole.index(TRACE["span_id"].encode()), 7):
        torn = bytearray(whole)
        torn[position] ^= 0xFF
        path.with_name("torn").write_bytes(torn)
        found = read_exemplars(path.with_name("torn"))
        # The padding after a key is covered by nothing, as nothing is read from it.
        assert KEY not in found or found[KEY] == Exemplar(TRACE, 0.25, 1.0)
        assert found["[]"] == Exemplar(TRACE, 0.5, 1.0)
    file.close()
    again = open_exemplars(path)
    again.put(KEY, Exemplar({"trace_id": "长"}, 0.75, 2.0))
    assert read_exemplars(path)[KEY] == Exemplar({"trace_id": "长"}, 0.75, 2.0)
    again.close()


def test_the_exemplar_file_is_bounded(tmp_path: Path) -> None:
    """Series without end fill it to the limit; exemplars too long to show are left out."""
    path = tmp_path / "worker_1.exemplars"
    file = open_exemplars(path)
    for number in range(MAX_FILE_BYTES // 256):
        file.put(f'["series {number}"]', Exemplar(TRACE, 1, 1))
    file.put('["series 0"]', Exemplar({"trace_id": "x" * 200}, 2, 2))
    file.put('["series 1"]', Exemplar({"trace_id": "x" * 1000}, 2, 2))
    file.close()
    assert path.stat().st_size <= MAX_FILE_BYTES
    found = read_exemplars(path)
    assert '["series 0"]' not in found
    assert found['["series 1"]'].value == 1


def test_an_exemplar_outside_its_bucket_is_not_shown(tmp_path: Path) -> None:
    """Bounds may differ between versions of a program; OpenMetrics forbids such an exemplar."""
    db = MmapedDict(str(tmp_path / f"histogram_{os.getpid()}.db"))
    exemplars = open_exemplars(tmp_path / f"worker_{os.getpid()}.exemplars")
    for bound, value in (("0.1", 0.05), ("0.5", 0.05), ("1.0", 7.0), ("+Inf", 7.0)):
        key = mmap_key("latency", "latency_bucket", ["le"], [bound], "Latency.")
        db.write_value(key, 1.0, 0.0)
        exemplars.put(key, Exemplar(TRACE, value, 1.0))
    (metric,) = SharedMetrics(tmp_path).collect()
    shown = {s.labels["le"] for s in metric.samples if s.exemplar is not None}
    assert shown == {"0.1", "+Inf"}
    db.close()
    exemplars.close()


def test_a_folder_named_too_late_is_said_and_costs_only_the_sum(script: Script) -> None:
    """The variable is read once; afterwards metrics are per worker, and a line says so."""
    done = script.run(
        "import logging, os, prometheus_client, tempfile\n"
        "logging.basicConfig()\n"
        "os.environ['PROMETHEUS_MULTIPROC_DIR'] = tempfile.mkdtemp()\n"
        "from spanloom.telemetry import metrics\n"
        "metrics.record_request('/x', '200', 1)\n"
        "print('agent_requests_total' in metrics.render('')[0].decode())"
    )
    assert done.stdout.strip() == "True", done.stderr
    assert "set too late" in done.stderr
