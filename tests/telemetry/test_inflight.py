import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from spanloom import semconv
from spanloom.telemetry.inflight import MAX_ANNOUNCED, OpenSpans
from tests.free_ports import free_port
from tests.telemetry.live import Receiver, Script, attributes, child_environment, wait_for

# A receiver that stands still for seconds, as this process may on a busy machine, must not be given
# up: it has taken what it is then sent again. Tests of a backend that is away keep the real second.
START = """
import os, sys, time
from spanloom.telemetry import inflight, setup, step, tool
inflight.SEND_TIMEOUT_S = float(os.environ.get("SEND_TIMEOUT_S", "60"))
telemetry = setup("busy")
"""


def events(receiver: Receiver, name: str) -> list[Any]:
    return [record for record in list(receiver.events) if record.event_name == name]


def heartbeats(receiver: Receiver) -> list[dict[str, Any]]:
    return [attributes(one) for one in events(receiver, semconv.EVENT_PROCESS_HEARTBEAT)]


@pytest.fixture
def start(receiver: Receiver) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python in a process of its own that reports to the receiver."""
    started: list[subprocess.Popen[str]] = []

    def run(
        text: str, stdout: int = subprocess.DEVNULL, **environment: str
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", START + text],
            env=child_environment(
                **{
                    "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                    "SPANLOOM_INFLIGHT_AFTER": "0.2",
                    **environment,
                }
            ),
            stdin=subprocess.PIPE,
            stdout=stdout,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_hang_is_announced_while_it_hangs(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A span that stays open is announced with ids, parent, name, kind, start and attributes."""
    process = start(
        """
with step("node", question="你好"):
    with tool("weather") as call:
        call.span.set_attribute("url.full", "http://h/?password=hunter2hunter2")
        time.sleep(600)
"""
    )
    wait_for(lambda: len(events(receiver, semconv.EVENT_SPAN_OPEN)) >= 2)

    assert process.poll() is None
    assert receiver.spans == []
    node, call = events(receiver, semconv.EVENT_SPAN_OPEN)
    said = attributes(call)
    assert said[semconv.SPANLOOM_SPAN_NAME] == "execute_tool weather"
    assert said[semconv.SPANLOOM_SPAN_KIND] == "internal"
    assert said[semconv.SPANLOOM_SPAN_PARENT_ID] == node.span_id.hex()
    assert said[semconv.SPANLOOM_SPAN_REVISION] == 1
    assert 0 < said[semconv.SPANLOOM_SPAN_START] < call.time_unix_nano
    assert said[semconv.SPANLOOM_SPAN_ATTRIBUTES]["gen_ai.tool.name"] == "weather"
    assert "hunter2" not in str(said)
    assert call.trace_id == node.trace_id != b""
    assert semconv.SPANLOOM_SPAN_PARENT_ID not in attributes(node)
    assert attributes(node)[semconv.SPANLOOM_SPAN_ATTRIBUTES] == {"question": "你好"}
    # The first one with an open span may have come between the beginnings of the two.
    beat = wait_for(
        lambda: [
            b for b in heartbeats(receiver) if len(b[semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS]) == 2
        ]
    )[0]
    assert set(beat[semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS]) == {
        node.span_id.hex(),
        call.span_id.hex(),
    }
    assert beat[semconv.SERVICE_INSTANCE_ID] == receiver.resources_of_logs[0]["service.instance.id"]


def test_the_heartbeat_goes_on_while_the_event_loop_is_blocked(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A node that blocks the loop is announced, and the process does not look dead."""
    start(
        """
import asyncio
async def main():
    with step("blocking"):
        time.sleep(600)
asyncio.run(main())
"""
    )
    wait_for(lambda: events(receiver, semconv.EVENT_SPAN_OPEN))
    before = len(heartbeats(receiver))
    wait_for(lambda: len(heartbeats(receiver)) >= before + 2)

    numbers = [beat[semconv.SPANLOOM_HEARTBEAT_SEQUENCE] for beat in heartbeats(receiver)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_change_is_announced_after_five_seconds(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A span whose attributes changed is announced again; its end takes it off the heartbeat."""
    process = start(
        """
with step("changing") as span, step("still"):
    sys.stdin.readline()
    span.set_attribute("progress", 50)
    sys.stdin.readline()
sys.stdin.readline()
"""
    )
    assert process.stdin is not None
    wait_for(lambda: len(events(receiver, semconv.EVENT_SPAN_OPEN)) == 2)
    process.stdin.write("\n")
    process.stdin.flush()
    again = wait_for(lambda: events(receiver, semconv.EVENT_SPAN_OPEN)[2:])

    (said,) = [attributes(one) for one in again]
    assert said[semconv.SPANLOOM_SPAN_NAME] == "changing"
    assert said[semconv.SPANLOOM_SPAN_REVISION] == 2
    assert said[semconv.SPANLOOM_SPAN_ATTRIBUTES] == {"progress": 50}
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: len(receiver.spans) == 2)
    wait_for(lambda: heartbeats(receiver)[-1][semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS] == [])


def test_an_idle_process_sends_less_than_a_kilobyte_a_second(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A heartbeat with nothing open is small; short spans are never announced."""
    start(
        "with step('short'): pass\ntime.sleep(600)",
        OTEL_METRICS_EXPORTER="none",
        SPANLOOM_INFLIGHT_AFTER="20",  # what is short on any machine
    )
    wait_for(lambda: len(heartbeats(receiver)) >= 3)

    sizes = [
        sum(len(key) + len(value) + 4 for key, value in one.items()) + int(one["content-length"])
        for one in receiver.requests
    ]
    assert max(sizes) < 1_000
    assert events(receiver, semconv.EVENT_SPAN_OPEN) == []


def test_ten_thousand_open_spans_are_bounded_and_counted(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The oldest are announced, once; the heartbeat counts the others and stays small."""
    start(
        """
from opentelemetry import trace
tracer = trace.get_tracer("many")
spans = [tracer.start_span(f"span {n}") for n in range(10_000)]
time.sleep(600)
""",
        OTEL_METRICS_EXPORTER="none",
    )
    wait_for(lambda: len(events(receiver, semconv.EVENT_SPAN_OPEN)) >= MAX_ANNOUNCED)

    # A heartbeat that comes with announcements counts the others, and does not list these yet.
    def complete() -> dict[str, Any] | None:
        beat = heartbeats(receiver)[-1]
        others = beat.get(semconv.SPANLOOM_HEARTBEAT_UNANNOUNCED)
        listed = beat.get(semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS)
        is_complete = others == 10_000 - MAX_ANNOUNCED and len(listed or ()) == MAX_ANNOUNCED
        return beat if is_complete else None

    beat = wait_for(complete)

    announced = events(receiver, semconv.EVENT_SPAN_OPEN)
    names = {attributes(one)[semconv.SPANLOOM_SPAN_NAME] for one in announced}
    assert len(announced) == MAX_ANNOUNCED
    assert names == {f"span {number}" for number in range(MAX_ANNOUNCED)}
    assert len(beat[semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS]) == MAX_ANNOUNCED
    assert int(receiver.requests[-1]["content-length"]) < 30_000


def test_a_forked_child_has_its_own_heartbeat_and_not_its_parents_spans(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """After os.fork the child announces what it began, under its own instance id."""
    start(
        """
parent = os.getpid()
with step("of the parent"):
    if os.fork() == 0:
        with step("of the child"):
            while os.getppid() == parent:  # nobody else ends the child
                time.sleep(0.1)
        os._exit(0)
    time.sleep(600)
"""
    )
    wait_for(lambda: len({b[semconv.SERVICE_INSTANCE_ID] for b in heartbeats(receiver)}) == 2)
    wait_for(
        lambda: (
            len(
                {
                    b[semconv.SERVICE_INSTANCE_ID]
                    for b in heartbeats(receiver)
                    if b[semconv.SPANLOOM_HEARTBEAT_OPEN_SPANS]
                }
            )
            == 2
        )
    )

    names = [
        attributes(one)[semconv.SPANLOOM_SPAN_NAME]
        for one in events(receiver, semconv.EVENT_SPAN_OPEN)
    ]
    assert sorted(names) == ["of the child", "of the parent"]


def test_it_can_be_switched_off(script: Script, receiver: Receiver) -> None:
    """With SPANLOOM_INFLIGHT=off there is neither announcement nor heartbeat nor thread."""
    done = script.run(
        START
        + """
import threading
with step("long"):
    time.sleep(1)
assert "spanloom-inflight" not in {thread.name for thread in threading.enumerate()}
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        SPANLOOM_INFLIGHT="off",
        SPANLOOM_INFLIGHT_AFTER="0.1",
    )

    assert done.returncode == 0, done.stderr
    assert receiver.logs
    assert receiver.events == []


def test_an_orderly_end_is_said(script: Script, receiver: Receiver) -> None:
    """The last heartbeat of a process that shuts down says that it is the last."""
    script.run(START + "time.sleep(1)", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)

    last = [beat.get(semconv.SPANLOOM_HEARTBEAT_LAST) for beat in heartbeats(receiver)]
    assert last[-1] is True
    assert set(last[:-1]) <= {None}


def test_a_dead_backend_costs_nothing_and_blocks_nothing(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """With nothing at the endpoint spans go on, and what is not sent is not kept."""
    process = start(
        """
with step("long"):
    for _ in range(1000):
        with step("short"): pass
    time.sleep(3)
print("done", flush=True)
""",
        stdout=subprocess.PIPE,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        SEND_TIMEOUT_S="1",
    )
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    lines = out.splitlines()
    assert "done" in lines
    complaints = [json.loads(one) for one in lines if one.startswith("{") and "logger" in one]
    assert len([one for one in complaints if one["logger"].startswith("opentelemetry.")]) == 1


def test_an_announcement_that_failed_is_made_when_the_backend_is_back(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """Nothing is queued, but what is still open is announced once the backend answers."""
    port = free_port()
    process = start(
        "with step('long'): time.sleep(600)",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        SEND_TIMEOUT_S="1",
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    back = Receiver(port)
    try:
        found = wait_for(lambda: events(back, semconv.EVENT_SPAN_OPEN))
        assert attributes(found[0])[semconv.SPANLOOM_SPAN_NAME] == "long"
    finally:
        back.close()


def test_sigterm_ends_a_process_with_open_spans_in_time(
    receiver: Receiver, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """SIGTERM is not held up by the heartbeat."""
    process = start("with step('long'): time.sleep(600)")
    wait_for(lambda: events(receiver, semconv.EVENT_SPAN_OPEN))
    os.kill(process.pid, signal.SIGTERM)

    assert process.wait(30) == -signal.SIGTERM


def test_forgotten_and_unsampled_spans_are_not_held() -> None:
    """A span that is dropped without an end leaves; beyond the limit spans are only counted."""
    spans = OpenSpans(limit=3)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spans)
    tracer = provider.get_tracer("test")

    kept = [tracer.start_span(str(number)) for number in range(2)]
    tracer.start_span("forgotten")
    kept.append(tracer.start_span("too many"))
    assert [span.name for _, span in spans] == ["0", "1"]
    assert spans.untracked == 1
    for span in kept:
        span.end()

    assert len(spans) == 0
