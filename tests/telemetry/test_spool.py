import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloom import semconv
from tests.free_ports import free_port
from tests.telemetry.live import Receiver, Script, attributes, child_environment, wait_for

DEAD = "http://127.0.0.1:9"
ERROR = 2
START = """
import os, pathlib, sys, time
from spanloom.telemetry import get_logger, setup, step, tool
telemetry = setup("spooled")
log = get_logger("script")
def work(first, last):
    for number in range(first, last):
        with step(f"span {number}", number=number): pass
def until_journaled(*names):
    folder = pathlib.Path(os.environ["SPANLOOM_SPOOL_DIR"])
    while not all(
        any(name.encode() in path.read_bytes() for path in folder.glob("*.traces.*"))
        for name in names
    ):
        time.sleep(0.05)
def ready():
    open(sys.argv[1], "w").close()
    time.sleep(600)
"""


def names(receiver: Receiver) -> Counter[str]:
    return Counter(span.name for span in list(receiver.spans))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


class Processes:
    """Starts Python with the spool; `crash` waits for `ready()` in it, then kills it."""

    def __init__(self, folder: Path, tmp_path: Path) -> None:
        self._folder = folder
        self._tmp_path = tmp_path
        self._count = 0
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, text: str, url: str, **environment: str) -> Path:
        self._count += 1
        mark = self._tmp_path / f"ready{self._count}"
        with (self._tmp_path / f"stdout{self._count}").open("wb") as stdout:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-c", START + text, str(mark)],
                    env=self.environment(url, **environment),
                    stdout=stdout,
                )
            )
        return mark

    def environment(self, url: str, **environment: str) -> dict[str, str]:
        return child_environment(
            **{
                "OTEL_EXPORTER_OTLP_ENDPOINT": url,
                "OTEL_METRICS_EXPORTER": "none",
                "SPANLOOM_SPOOL_DIR": str(self._folder),
                "SPANLOOM_INFLIGHT_AFTER": "0.2",
                "SPANLOOM_LOG_STEPS": "off",
                **environment,
            }
        )

    def crash(self, text: str, url: str, **environment: str) -> None:
        self.kill_at(self.start(text, url, **environment))

    def kill_at(self, mark: Path) -> None:
        """Kill the one started last once it has set its mark."""
        wait_for(lambda: mark.exists() or self.started[-1].poll() is not None)
        assert self.started[-1].poll() is None
        self.started[-1].kill()
        self.started[-1].wait()

    def left(self) -> list[str]:
        """Files that belong to no living process."""
        living = tuple(f"{one.pid}-" for one in self.started if one.poll() is None)
        return [name for name in files(self._folder) if not name.startswith(living)]

    def stdout(self) -> str:
        return "".join(path.read_text() for path in sorted(self._tmp_path.glob("stdout*")))


@pytest.fixture
def processes(folder: Path, tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(folder, tmp_path)
    yield processes
    for process in processes.started:
        process.kill()
        process.wait()


def test_a_healthy_backend_leaves_no_files(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """Everything arrives once, and what is confirmed is deleted."""
    processes.start("work(0, 1000); log.info('完成'); telemetry.force_flush(30)", receiver.url)
    assert processes.started[0].wait(60) == 0

    assert names(receiver) == {f"span {number}": 1 for number in range(1000)}
    assert [record.body.string_value for record in receiver.logs] == ["完成"]
    assert receiver.resources[0]["service.name"] == "spooled"
    assert files(folder) == []


def test_kill_9_loses_nothing_that_had_ended(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """Finished spans and logs arrive after the restart, once; the open span arrives incomplete."""
    processes.crash(
        """
with step("request", user="李"):
    work(0, 700)
    log.warning("before the end 进程")
    with tool("weather") as call:
        call.span.set_attribute("city", "北京")
        until_journaled("request", "北京")
        work(700, 710)
        ready()
""",
        DEAD,
    )
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    processes.start("time.sleep(600)", receiver.url)
    wait_for(lambda: "request" in names(receiver) and not processes.left())

    ended = {f"span {number}": 1 for number in range(710)}
    assert names(receiver) == {**ended, "request": 1, "execute_tool weather": 1}
    assert len({span.span_id for span in receiver.spans}) == 712
    spans = {span.name: span for span in receiver.spans}
    request, call = spans["request"], spans["execute_tool weather"]
    for span in (request, call):
        assert attributes(span)[semconv.SPANLOOM_INCOMPLETE] is True
        assert attributes(span)[semconv.ERROR_TYPE] == semconv.ERROR_TYPE_PROCESS_DIED
        assert span.status.code == ERROR
        assert span.end_time_unix_nano >= spans["span 709"].end_time_unix_nano
    assert attributes(request)["user"] == "李"
    assert attributes(call)["city"] == "北京"
    assert call.parent_span_id == request.span_id
    bodies = Counter(record.body.string_value for record in receiver.logs)
    assert bodies["before the end 进程"] == 1
    wait_for(lambda: "ended as incomplete" in processes.stdout())


def test_without_the_spool_at_most_a_batch_delay_is_missing(
    receiver: Receiver, processes: Processes
) -> None:
    """What ended earlier than the batch delay before kill -9 is there."""
    mark = processes.start(
        """
work(0, 50)
while not os.path.exists(sys.argv[1] + ".go"): time.sleep(0.05)
work(50, 60)
ready()
""",
        receiver.url,
        SPANLOOM_SPOOL_DIR="",
    )
    # Nothing has asked for it: they are sent by themselves, and a kill cannot take them back.
    early = {f"span {number}" for number in range(50)}
    wait_for(lambda: set(names(receiver)) == early)
    mark.with_name(f"{mark.name}.go").touch()
    processes.kill_at(mark)

    arrived = names(receiver)
    assert {name: arrived[name] for name in early} == dict.fromkeys(early, 1)


def test_a_backend_that_was_dead_gets_everything(
    processes: Processes, folder: Path, tmp_path: Path
) -> None:
    """More than the memory holds waits on disk, and arrives once when the backend is back."""
    port = free_port()
    mark = processes.start("work(0, 6000); ready()", f"http://127.0.0.1:{port}")
    wait_for(mark.exists)
    back = Receiver(port)
    try:
        wait_for(lambda: len(back.spans) >= 6000, 60)

        assert names(back) == {f"span {number}": 1 for number in range(6000)}
    finally:
        back.close()


def test_a_torn_record_ends_its_segment_only(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """Half a record at the end is passed over, and everything before it arrives."""
    processes.crash("work(0, 20); ready()", DEAD)
    (segment,) = folder.glob("*.traces.*")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-7])
    processes.start("time.sleep(600)", receiver.url)
    wait_for(lambda: receiver.spans and not processes.left())

    assert names(receiver) == {f"span {number}": 1 for number in range(19)}


def test_what_a_dead_process_left_damaged_is_counted(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """What lies before a flipped bit arrives; that something behind it is lost is in the metric."""
    processes.crash("work(0, 20); ready()", DEAD)
    (segment,) = folder.glob("*.traces.*")
    data = bytearray(segment.read_bytes())
    data[data.index(b"\x07span 10") + 1] ^= 1  # with its length before it
    segment.write_bytes(data)
    mark = processes.start(
        """
from spanloom.telemetry.metrics import render
wanted = b'spanloom_telemetry_dropped_total{reason="damaged",signal="traces"} 1.0'
while wanted not in render("")[0]:
    time.sleep(0.1)
ready()
""",
        receiver.url,
    )
    wait_for(lambda: mark.exists() and not processes.left(), 60)

    assert names(receiver) == {f"span {number}": 1 for number in range(10)}


def test_what_cannot_be_encoded_is_counted_and_stops_nobody(
    receiver: Receiver, processes: Processes
) -> None:
    """Seconds where the SDK wants nanoseconds, as an integer; and a body of no type OTLP has."""
    mark = processes.start(
        """
from opentelemetry import trace
from opentelemetry._logs import LogRecord, get_logger as otel_logger
from spanloom.telemetry.metrics import render
tracer = trace.get_tracer("t")
for moment in (None, time.time(), None):
    tracer.start_span("s", start_time=moment).end()
    otel_logger("l").emit(LogRecord(timestamp=moment, body={"object": object()}))
wanted = [
    b'spanloom_telemetry_dropped_total{reason="invalid",signal="%s"} 1.0' % signal
    for signal in (b"traces", b"logs")
]
if all(line in render("")[0] for line in wanted):
    ready()
""",
        receiver.url,
    )

    def objects() -> list[str]:
        bodies = [record.body.kvlist_value for record in list(receiver.logs)]
        return [pair.key for body in bodies for pair in body.values]

    wait_for(lambda: mark.exists() and len(receiver.spans) >= 2 and len(objects()) >= 2, 60)
    assert names(receiver) == {"s": 2}
    assert objects() == ["object"] * 2


def test_garbage_in_the_folder_stops_nobody(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """Files that are no segments, or empty, or random, cost nothing but themselves."""
    folder.mkdir(mode=0o700)
    for stem, data in (("1-1-a", b""), ("2-2-b", b"SPLSPOL1" + b"\xff" * 90), ("3-3-c", b"x" * 50)):
        (folder / f"{stem}.lock").touch()
        (folder / f"{stem}.traces.000001.spool").write_bytes(data)
    (folder / "notes.txt").write_text("not ours")
    processes.start("work(0, 3); time.sleep(600)", receiver.url)
    wait_for(lambda: len(receiver.spans) == 3)

    wait_for(lambda: not [name for name in files(folder) if name[0] in "123" and name[1] == "-"])
    assert "notes.txt" in files(folder)


def test_two_processes_share_a_folder(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """Living owners are left alone; two that find a dead one do not both send what it left."""
    processes.crash("work(0, 600); ready()", DEAD)
    for begin in (1000, 2000):
        processes.start(f"work({begin}, {begin + 600})\nready()", receiver.url)
    wait_for(lambda: len(receiver.spans) >= 1800)
    wait_for(lambda: len([name for name in files(folder) if name.endswith(".lock")]) == 2)

    assert set(names(receiver).values()) == {1}
    assert len(names(receiver)) == 1800


def test_the_oldest_is_dropped_and_counted(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """The folder never exceeds its size; what had to go is in the metric and in a log line."""
    processes.start(
        """
from spanloom.telemetry.metrics import render
for number in range(3000):
    with step(f"span {number}", text="x" * 1000): pass
open(sys.argv[1] + ".metrics", "wb").write(render("")[0])
ready()
""",
        DEAD,
        SPANLOOM_SPOOL_MAX_BYTES="1048576",
    )
    mark = Path(processes.started[0].args[-1])  # type: ignore[index]
    wait_for(mark.exists)
    size = sum(path.stat().st_size for path in folder.iterdir())
    processes.started[0].kill()
    processes.started[0].wait()
    processes.start("time.sleep(600)", receiver.url)
    wait_for(lambda: receiver.spans and not processes.left())

    assert size <= 1_048_576
    dropped = 3000 - len(receiver.spans)
    assert 1500 < dropped < 3000
    assert names(receiver) == {f"span {number}": 1 for number in range(dropped, 3000)}
    metrics = Path(f"{mark}.metrics").read_text()
    assert (
        f'spanloom_telemetry_dropped_total{{reason="spool_full",signal="traces"}} {dropped}.0'
        in metrics
    )
    assert processes.stdout().count("telemetry was dropped") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_full_disk_does_not_stop_the_application(
    processes: Processes, small_disk: Path, tmp_path: Path
) -> None:
    """Spans go on in memory; those beyond it are counted; the disk's spans are not damaged."""
    port = free_port()
    mark = processes.start(
        """
from spanloom.telemetry.metrics import render
for number in range(6000):
    with step(f"span {number}", text="x" * 100): pass
open(sys.argv[1] + ".metrics", "wb").write(render("")[0])
ready()
""",
        f"http://127.0.0.1:{port}",
        SPANLOOM_SPOOL_DIR=str(small_disk),
    )
    wait_for(mark.exists)
    counted = Path(f"{mark}.metrics").read_text()
    wanted = 'spanloom_telemetry_dropped_total{reason="disk_full",signal="traces"}'
    (line,) = [one for one in counted.splitlines() if one.startswith(wanted)]
    dropped = int(float(line.split()[-1]))
    assert dropped > 0
    back = Receiver(port)
    try:
        wait_for(lambda: len(back.spans) >= 6000 - dropped, 60)
        assert len(names(back)) == len(back.spans) == 6000 - dropped
    finally:
        back.close()


def test_a_span_whose_end_could_not_be_written_is_not_ended_twice(
    receiver: Receiver, processes: Processes, small_disk: Path
) -> None:
    """Its journaled beginning is taken back in place, which works on a full disk."""
    processes.crash(
        """
with step("long"):
    until_journaled("long")
    filler = pathlib.Path(os.environ["SPANLOOM_SPOOL_DIR"]) / "filler"
    try: filler.write_bytes(b"x" * 400_000)
    except OSError: pass
    work(0, 200)
while not telemetry.force_flush(30):  # what is in memory is lost with the process
    time.sleep(0.1)
filler.unlink()
ready()
""",
        receiver.url,
        SPANLOOM_SPOOL_DIR=str(small_disk),
    )
    wait_for(lambda: "long" in names(receiver))
    processes.start(
        "work(500, 501)\ntime.sleep(600)", receiver.url, SPANLOOM_SPOOL_DIR=str(small_disk)
    )
    wait_for(lambda: "span 500" in names(receiver))
    wait_for(lambda: len([name for name in files(small_disk) if name.endswith(".lock")]) == 1)

    assert names(receiver)["long"] == 1
    assert not [s for s in receiver.spans if semconv.SPANLOOM_INCOMPLETE in attributes(s)]


class Strict:
    """A backend that answers as it is told, and says how it was asked."""

    def __init__(self) -> None:
        strict = self
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.sizes: list[int] = []
        self.asked: list[float] = []
        self.taken: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = 200, {}
                if self.path == "/v1/traces":
                    spans = [
                        span.name
                        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
                        for scope in resource.scope_spans
                        for span in scope.spans
                    ]
                    strict.asked.append(time.monotonic())
                    strict.sizes.append(len(spans))
                    if strict.answers:
                        status, headers = strict.answers.pop(0)
                    if status == 200:
                        strict.taken += spans
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def strict() -> Iterator[Strict]:
    strict = Strict()
    yield strict
    strict.server.shutdown()
    strict.server.server_close()


def test_replay_keeps_to_batches_and_to_what_the_backend_asks(
    strict: Strict, processes: Processes, folder: Path
) -> None:
    """At most 512 spans a request; fewer after 413; Retry-After is waited for; 400 is final."""
    processes.crash("work(0, 2000); ready()", DEAD)
    strict.answers = [(413, {}), (429, {"Retry-After": "1"}), (503, {"Retry-After": "20"})]
    processes.start("time.sleep(600)", strict.url)
    wait_for(lambda: not processes.left(), 100)

    assert strict.sizes[:3] == [512, 256, 256]
    assert strict.asked[2] - strict.asked[1] >= 1
    assert strict.asked[3] - strict.asked[2] >= 20, "nothing is asked before Retry-After is over"
    assert max(strict.sizes) == 512
    assert Counter(strict.taken) == {f"span {number}": 1 for number in range(2000)}


def test_what_the_backend_refuses_does_not_block_the_rest(
    strict: Strict, processes: Processes, folder: Path
) -> None:
    """A batch answered by 400 is dropped and counted, and the next is sent."""
    processes.crash("work(0, 1000); ready()", DEAD)
    strict.answers = [(400, {})]
    processes.start("time.sleep(600)", strict.url)
    wait_for(lambda: not processes.left())

    assert sorted(strict.taken) == sorted(f"span {number}" for number in range(512, 1000))
    wait_for(lambda: '"traces/rejected": 512' in processes.stdout())
    assert processes.stdout().count('"traces/rejected": 512') == 1


def test_a_finder_that_dies_too_leaves_the_rest_to_the_next(
    strict: Strict, receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """The second process sends only what the first had not."""
    processes.crash("with step('open'):\n until_journaled('open')\n work(0, 1500); ready()", DEAD)
    strict.answers = [(200, {}), (200, {}), *[(503, {"Retry-After": "60"})] * 9]
    processes.start("time.sleep(600)", strict.url)
    wait_for(lambda: len(strict.sizes) == 3)
    processes.started[-1].kill()
    processes.started[-1].wait()
    processes.start("time.sleep(600)", receiver.url)
    wait_for(lambda: not processes.left())
    wait_for(lambda: "open" in names(receiver) or "open" in strict.taken)

    assert len(strict.taken) == 1024
    assert Counter([*strict.taken, *names(receiver).elements()]) == {
        "open": 1,
        **{f"span {number}": 1 for number in range(1500)},
    }


def test_a_forked_child_keeps_its_own(
    receiver: Receiver, processes: Processes, folder: Path
) -> None:
    """Parent and child write to files of their own, and each span arrives once."""
    processes.start(
        """
work(0, 10)
child = os.fork()
if child == 0:
    work(100, 110)
    telemetry.force_flush(30)
    os.kill(os.getpid(), 9)
work(10, 20)
os.waitpid(child, 0)
telemetry.force_flush(30)
""",
        receiver.url,
    )
    assert processes.started[0].wait(60) == 0

    expected = {f"span {number}": 1 for number in [*range(20), *range(100, 110)]}
    assert names(receiver) == expected


def test_sigterm_is_quick_with_a_dead_backend(processes: Processes, folder: Path) -> None:
    """The process ends, and what could not be sent stays on disk."""
    mark = processes.start("work(0, 100); ready()", DEAD)
    wait_for(mark.exists)
    os.kill(processes.started[0].pid, signal.SIGTERM)

    assert processes.started[0].wait(30) == -signal.SIGTERM
    assert [name for name in files(folder) if ".traces." in name]


def test_a_folder_others_may_enter_gets_a_private_one_inside(
    receiver: Receiver, script: Script, tmp_path: Path
) -> None:
    """As for a volume that belongs to everybody."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    script.run(
        START + "work(0, 3)",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        SPANLOOM_SPOOL_DIR=str(shared),
    )

    (inside,) = shared.iterdir()
    assert inside.stat().st_mode & 0o777 == 0o700
    assert len(receiver.spans) == 3


def test_a_folder_that_cannot_be_used_is_said_and_ignored(
    receiver: Receiver, script: Script, tmp_path: Path
) -> None:
    """The telemetry goes out as without a spool."""
    (tmp_path / "file").touch()
    done = script.run(
        START + "work(0, 3)",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        SPANLOOM_SPOOL_DIR=str(tmp_path / "file"),
    )

    assert done.stdout.count("SPANLOOM_SPOOL_DIR") == 1
    assert len(receiver.spans) == 3
