"""What every engine of the session memory promises, each proven once for all of them."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.chat import Question
from service.sessions import Sessions, open_sessions
from service.settings import Settings
from tests.service.sessions.counting import run_once, runs

ROOT = Path(__file__).parents[3]
WAIT_S = 60

pytestmark = pytest.mark.xdist_group("sessions")


async def test_a_turn_is_held_by_one_and_free_after_an_error(settings: Settings) -> None:
    """However a turn ends, the next one may begin; never two at a time."""
    running = 0

    async def turn(sessions_of: int, *, fail: bool) -> None:
        nonlocal running
        async with opened[sessions_of].turn("thread"):
            running += 1
            assert running == 1
            await asyncio.sleep(0.002)
            running -= 1
            if fail:
                raise LookupError

    async with open_sessions(settings) as one, open_sessions(settings) as two:
        opened = [one, two]
        ended = await asyncio.gather(
            *(turn(number % 2, fail=number % 3 == 0) for number in range(30)),
            return_exceptions=True,
        )

    assert sum(isinstance(end, LookupError) for end in ended) == 10
    assert sum(end is None for end in ended) == 20


async def test_conversations_do_not_wait_for_each_other(settings: Settings) -> None:
    """Every conversation has a turn of its own."""
    async with open_sessions(settings) as one, open_sessions(settings) as two:

        async def hold_all() -> None:
            async with one.turn("a"), two.turn("b"), one.turn("c"):
                pass

        await asyncio.wait_for(hold_all(), WAIT_S)


async def test_a_waiter_that_gives_up_leaves_the_queue(settings: Settings) -> None:
    """A cancelled wait takes nothing with it."""
    async with open_sessions(settings) as sessions:

        async def take() -> None:
            async with sessions.turn("thread"):
                pass

        async with sessions.turn("thread"):
            waiting = [asyncio.create_task(take()) for _ in range(3)]
            await asyncio.sleep(0.02)
            waiting[0].cancel()
            waiting[1].cancel()
        await asyncio.wait_for(waiting[2], WAIT_S)


async def test_turns_that_are_cancelled_at_any_moment_leave_nothing_locked(
    settings: Settings,
) -> None:
    """Asking, waiting, holding, letting go: whoever is cancelled there is out of the way."""
    async with open_sessions(settings) as one, open_sessions(settings) as two:

        async def take(sessions: Sessions) -> None:
            async with sessions.turn("thread"):
                await asyncio.sleep(0.001)

        for number in range(40):
            task = asyncio.create_task(take(one if number % 2 else two))
            await asyncio.sleep(0.0003 * (number % 8))
            task.cancel()
        for sessions in (one, two):
            async with asyncio.timeout(WAIT_S):
                await take(sessions)


async def test_a_turn_that_begins_as_another_ends_waits_behind_those_who_wait(
    settings: Settings,
) -> None:
    """Between the end of one turn and the waking of the next in line nobody may push in.

    The one would hold the lock and the other the queue, each waiting for the other.
    """
    order: list[str] = []
    async with open_sessions(settings) as sessions:

        async def wait() -> None:
            async with sessions.turn("thread"):
                order.append("waiter")

        async with sessions.turn("thread"):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.02)
        async with asyncio.timeout(WAIT_S), sessions.turn("thread"):
            order.append("late")
        await asyncio.wait_for(waiting, WAIT_S)

    assert order == ["waiter", "late"]


async def test_only_a_wait_is_a_span(settings: Settings, spans: InMemorySpanExporter) -> None:
    """Whoever need not wait pays nothing; a wait shows, also one for another process's turn."""

    async def take(sessions: Sessions) -> None:
        async with sessions.turn("thread"):
            pass

    async with open_sessions(settings) as one, open_sessions(settings) as two:
        await take(one)
        assert spans.get_finished_spans() == ()
        async with one.turn("thread"):
            waiting = [asyncio.create_task(take(sessions)) for sessions in (one, two)]
            await asyncio.sleep(3)  # until a server has told each that there is a wait
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*waiting)

    assert [span.name for span in spans.get_finished_spans()] == ["session_wait"] * 2


async def test_what_one_remembers_the_other_knows(settings: Settings) -> None:
    """Both see one memory; conversations are apart; of each the newest checkpoint is kept."""
    async with open_sessions(settings) as one, open_sessions(settings) as two:
        for sessions in (one, two, one):
            await run_once(sessions, "甲")
        await run_once(two, "乙")
        kept = [
            each async for each in one.checkpointer.alist({"configurable": {"thread_id": "甲"}})
        ]
        state = [each.checkpoint["channel_values"]["notes"] for each in kept]
        counted = [await runs(sessions, "甲") for sessions in (one, two)]
        other = await runs(one, "乙")
        await one.check()

    assert state == [["好", "好", "好"]]
    assert counted == [3, 3]
    assert other == 1


async def test_only_plain_data_is_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that somebody stored is not brought to life, whatever the environment says."""
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "false")
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"value": Question("问", "s", "u"), "text": "plain"}
    checkpoint["channel_versions"] = {"value": "1", "text": "1"}
    config = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}

    async with open_sessions(settings) as sessions, sessions.turn("thread"):
        await sessions.checkpointer.aput(config, checkpoint, {}, checkpoint["channel_versions"])
        loaded = await sessions.checkpointer.aget_tuple(config)

    assert loaded is not None
    values = loaded.checkpoint["channel_values"]
    assert values["text"] == "plain"
    assert not isinstance(values.get("value"), Question)


@contextlib.asynccontextmanager
async def counting(
    settings: Settings, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`counting.py` as a process on the same memory; killed at the end if it still runs."""
    url = settings.database_url
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.service.sessions.counting", *arguments),
        env={
            **os.environ,
            "AGENT_DATA_DIR": str(settings.data_dir),
            "DATABASE_URL": "" if url is None else url.get_secret_value(),
        },
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        return (await process.stdout.readline()).decode().strip()


async def test_processes_that_start_together_share_an_empty_memory(settings: Settings) -> None:
    """Both make the tables, neither fails, and not one turn of theirs is lost."""
    async with counting(settings, "thread", "20") as one, counting(settings, "thread", "20") as two:
        ended = [await line_of(one), await line_of(two)]

    async with open_sessions(settings) as sessions:
        counted = await runs(sessions, "thread")
    assert ended == ["done", "done"]
    assert counted == 40


async def test_the_turn_of_a_killed_process_is_free(settings: Settings) -> None:
    """SIGKILL in the middle of a turn: those who wait get it, and the memory is whole."""
    async with counting(settings, "thread", "hold") as holder, open_sessions(settings) as sessions:
        assert await line_of(holder) == "holding"
        waiting = asyncio.create_task(run_once(sessions, "thread"))
        await asyncio.sleep(0.3)
        assert not waiting.done()

        holder.kill()
        async with asyncio.timeout(WAIT_S):
            await waiting

        assert await runs(sessions, "thread") == 1
