"""A reaper and a process that both could end a span: it has one end, whoever sends it."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.cli.reaping import AGENT, WAIT_S, Agent, Reap, Target, is_reaped
from tests.telemetry.live import attributes, wait_for

pytestmark = pytest.mark.timeout(300)

IN_FLIGHT = "spanloom_inflight_spans"
OUTBOX = "spanloom_reap_outbox_spans"
DIED = 'spanloom_reaped_spans_total{error_type="process_died"}'
LOST = 'spanloom_reaped_spans_total{error_type="span_lost"}'

FINDER = """
import sys
from spanloom.telemetry import setup
telemetry = setup("agent-api")
print("hanging", flush=True)
sys.stdin.readline()
telemetry.shutdown()
"""
DIES_AT_ONCE = AGENT.replace(
    'print("ended", flush=True)', "telemetry.force_flush(30); import os; os.kill(os.getpid(), 9)"
)

# Killed between the answer to a span and its note of it, a process leaves it to be sent again.
HANGS_WHEN_SENT = AGENT.replace("    with tool(", "    telemetry.force_flush(30)\n    with tool(")


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


def by_name(target: Target) -> dict[str, Span]:
    """The spans, of which none came twice."""
    assert set(target.times().values()) <= {1}
    return {span.name: span for span in list(target.spans)}


def is_whole(target: Target) -> bool:
    """Whether each of the agent's three spans has an end."""
    return len(target.times()) == 3


def test_what_was_ended_while_its_process_was_stopped_is_not_ended_again(
    tmp_path: Path, target: Target
) -> None:
    """Stopped for longer than the reaper waits, resumed, and ended in order after all."""
    with (
        Reap(tmp_path, target.url, after="6s") as reap,
        Agent(target.url, reap.otlp, SPANLOOM_REAPED_AFTER="6") as agent,
    ):
        reap.waits_for(IN_FLIGHT, 2)
        agent.process.send_signal(signal.SIGSTOP)
        reap.waits_for(DIED, 2)
        reap.waits_for(OUTBOX, 0)
        agent.process.send_signal(signal.SIGCONT)
        agent.go_on()
        agent.waits_for("ended")
        agent.go_on()
        assert agent.process.wait(WAIT_S) == 0  # all it had to say is sent

        assert is_whole(target)
        spans = by_name(target)
        assert is_reaped(spans["POST /chat"])
        assert is_reaped(spans["execute_tool 天气"])
        assert not is_reaped(spans["done before"])


def test_stopped_for_almost_as_long_the_reaper_ends_what_the_process_gives_up(
    tmp_path: Path, target: Target
) -> None:
    """The process cannot know which of both it was, so it leaves the end to the reaper."""
    with (
        Reap(tmp_path, target.url, after="60s") as reap,
        Agent(target.url, reap.otlp, SPANLOOM_REAPED_AFTER="6") as agent,
    ):
        reap.waits_for(IN_FLIGHT, 2)
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        agent.process.send_signal(signal.SIGCONT)
        assert reap.metrics()[IN_FLIGHT] == 2
        agent.go_on()
        agent.waits_for("ended")
        reap.waits_for(LOST, 2)
        reap.waits_for(OUTBOX, 0)
        agent.go_on()
        assert agent.process.wait(WAIT_S) == 0

        assert is_whole(target)
        spans = by_name(target)
        assert attributes(spans["POST /chat"])["error.type"] == "span_lost"
        assert reap.metrics().get(DIED, 0) == 0


def test_killed_right_after_an_end_was_sent_it_is_not_ended_again(
    tmp_path: Path, target: Target
) -> None:
    """No heartbeat had time to leave the spans out: the reaper was told before they were sent."""
    with (
        Reap(tmp_path, target.url) as reap,
        Agent(target.url, reap.otlp, script=DIES_AT_ONCE, SPANLOOM_REAPED_AFTER="60") as agent,
        Agent(target.url, reap.otlp, SPANLOOM_REAPED_AFTER="60") as other,
    ):
        reap.waits_for(IN_FLIGHT, 4)
        agent.go_on()
        assert agent.process.wait(WAIT_S) == -signal.SIGKILL
        reap.waits_for(IN_FLIGHT, 2)
        # its first span has been sent, too: what waits in a batch is lost with the process
        wait_for(lambda: len(target.times()) == 4, WAIT_S)
        other.kill()  # later, so that its turn comes later
        reap.waits_for(DIED, 2)
        reap.waits_for(OUTBOX, 0)

        assert len(target.times()) == 6
        assert set(target.times().values()) == {1}
        assert sum(map(is_reaped, target.spans)) == 2


def test_who_finds_the_spool_soon_ends_the_spans_and_the_reaper_does_not(
    tmp_path: Path, target: Target
) -> None:
    env = {"SPANLOOM_REAPED_AFTER": "60", "SPANLOOM_SPOOL_DIR": str(tmp_path / "spool")}
    with Reap(tmp_path, target.url, after="60s") as reap:
        with Agent(target.url, reap.otlp, script=HANGS_WHEN_SENT, **env) as agent:
            reap.waits_for(IN_FLIGHT, 2)
            agent.kill()
        with Agent(target.url, reap.otlp, script=FINDER, **env):
            wait_for(lambda: is_whole(target), WAIT_S)
            reap.waits_for(IN_FLIGHT, 0)

        assert reap.metrics().get(DIED, 0) == 0
        spans = by_name(target)
        assert is_reaped(spans["POST /chat"])
        assert is_reaped(spans["execute_tool 天气"])


def test_who_finds_the_spool_late_leaves_the_spans_to_the_reaper(
    tmp_path: Path, target: Target
) -> None:
    env = {"SPANLOOM_REAPED_AFTER": "5", "SPANLOOM_SPOOL_DIR": str(tmp_path / "spool")}
    with Reap(tmp_path, target.url) as reap:
        with Agent(target.url, reap.otlp, script=HANGS_WHEN_SENT, **env) as agent:
            reap.waits_for(IN_FLIGHT, 2)
            agent.kill()
        reap.waits_for(DIED, 2)
        reap.waits_for(OUTBOX, 0)
        with Agent(target.url, reap.otlp, script=FINDER, **env) as finder:
            wait_for(lambda: not list((tmp_path / "spool").glob("*.traces.*")), WAIT_S)
            finder.go_on()
            assert finder.process.wait(WAIT_S) == 0

        assert is_whole(target)
        assert is_reaped(by_name(target)["POST /chat"])


def test_what_had_ended_in_the_spool_is_sent_as_it_was_however_late(
    tmp_path: Path, target: Target
) -> None:
    """The backend was away as it ended; the reaper knows that it ended, and adds nothing."""
    spool = {"SPANLOOM_SPOOL_DIR": str(tmp_path / "spool")}
    away = Target()
    away.answer = lambda _: (503, b"")
    with Reap(tmp_path, target.url) as reap:
        with (
            Agent(away.url, reap.otlp, SPANLOOM_REAPED_AFTER="60", **spool) as agent,
            Agent(target.url, reap.otlp, SPANLOOM_REAPED_AFTER="60") as other,
        ):
            reap.waits_for(IN_FLIGHT, 4)
            agent.go_on()
            agent.waits_for("ended")
            reap.waits_for(IN_FLIGHT, 2)
            wait_for(lambda: len(target.times()) == 1, WAIT_S)
            agent.kill()
            other.kill()
            reap.waits_for(DIED, 2)
            reap.waits_for(OUTBOX, 0)
        away.close()
        with Agent(target.url, reap.otlp, script=FINDER, SPANLOOM_REAPED_AFTER="3", **spool):
            wait_for(lambda: len(target.times()) == 6, WAIT_S)

        assert set(target.times().values()) == {1}
        assert sum(map(is_reaped, target.spans)) == 2
