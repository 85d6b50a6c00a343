"""What PostgreSQL adds: another process that may be away, silent, restarted, or not ours alone."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint

from service.errors import ConfigurationError, DependencyUnavailableError
from service.sessions import Sessions, open_sessions
from service.sessions.conversation_locks import _SESSION_SETTINGS, lock_key
from tests.service.conftest import Start
from tests.service.loopback import FakeLLM
from tests.service.sessions.conftest import settings_for
from tests.service.sessions.counting import counter, run_once, runs
from tests.service.sessions.postgres_server import PASSWORD, PostgresServer

WAIT_S = 60

pytestmark = pytest.mark.xdist_group("sessions")


@asynccontextmanager
async def opened(url: str, folder: Path, **more: Any) -> AsyncIterator[Sessions]:
    async with open_sessions(settings_for(folder, database_url=url, **more)) as sessions:
        yield sessions


async def settles(url: str, query: str, expected: object) -> None:
    """Ask the server until it answers what is expected."""
    async with asyncio.timeout(WAIT_S):
        while (answer := ask(url, query)) != expected:
            assert answer is not None
            await asyncio.sleep(0.05)


def ask(url: str, query: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


OURS = "FROM pg_stat_activity WHERE application_name = 'agent-api' AND datname = current_database()"
LOCKERS = f"SELECT count(pg_terminate_backend(pid)) {OURS} AND query LIKE '%%pg_%%advisory%%'"


async def test_those_who_wait_take_no_connection_from_those_who_work(
    server: PostgresServer, tmp_path: Path
) -> None:
    """Sixty waiting and twenty held conversations beside a pool of one: work goes on."""
    url = server.url()
    async with opened(url, tmp_path, database_pool_size=1) as sessions, AsyncExitStack() as held:
        for number in range(20):
            await held.enter_async_context(sessions.turn(f"t{number}"))

        async def wait(number: int) -> None:
            async with sessions.turn(f"t{number % 20}"):
                pass

        waiting = [asyncio.create_task(wait(number)) for number in range(60)]
        async with asyncio.timeout(WAIT_S):
            for _ in range(3):
                await run_once(sessions, "another")
            await sessions.check()
        # What made the tables has closed its connection, which the server may notice later.
        await settles(url, f"SELECT count(*) {OURS}", 2)
        assert not any(task.done() for task in waiting)

        await held.aclose()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*waiting)
        await settles(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", 0)


async def test_a_database_that_knows_no_encoding_keeps_chinese_conversations(
    server: PostgresServer, tmp_path: Path
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(b"CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    url = server.url("ascii")
    async with opened(url, tmp_path) as sessions:
        for _ in range(2):
            await run_once(sessions, "会话-1")
        state = await counter(sessions).aget_state({"configurable": {"thread_id": "会话-1"}})
    assert state.values == {"runs": 2, "notes": ["好", "好"]}


async def test_operations_use_the_whole_pool(server: PostgresServer, tmp_path: Path) -> None:
    """One slow read holds up no other conversation's: LangGraph's own lock would."""
    url = server.url()
    async with opened(url, tmp_path, database_pool_size=2) as sessions:
        await run_once(sessions, "a")
        with psycopg.connect(url) as blocker:
            blocker.execute("LOCK TABLE checkpoint_writes IN ACCESS EXCLUSIVE MODE")
            stuck = asyncio.create_task(runs(sessions, "a"))
            await settles(url, "SELECT count(*) FROM pg_locks WHERE NOT granted", 1)
            async with asyncio.timeout(WAIT_S):
                await sessions.check()  # reads a table that nobody holds
            assert not stuck.done()
            blocker.rollback()
        assert await stuck == 1


async def test_a_restarted_server_is_found_again(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """Memory and turns work after a crash of the server, and what was remembered is there."""
    async with opened(own_server.url(), tmp_path, database_timeout_s=WAIT_S) as sessions:
        await run_once(sessions, "thread")
        for _ in range(2):
            own_server.stop()
            own_server.start()
            async with asyncio.timeout(WAIT_S):
                await run_once(sessions, "thread")
                await sessions.check()

        assert await runs(sessions, "thread") == 3


async def test_a_run_whose_conversation_was_lost_stores_nothing(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """The server restarts in the middle of a run: another may have the turn, so ours is over."""
    config = {"configurable": {"thread_id": "thread"}}
    url = own_server.url()
    async with opened(url, tmp_path) as one, opened(url, tmp_path) as two:
        async with one.turn("thread"):
            own_server.stop()
            own_server.start()
            async with asyncio.timeout(WAIT_S):
                await run_once(two, "thread")
            with pytest.raises(DependencyUnavailableError, match="sessions is unavailable"):
                await counter(one).ainvoke({"runs": 40, "notes": []}, config, durability="exit")
        async with asyncio.timeout(WAIT_S):
            await run_once(one, "thread")

        assert await runs(two, "thread") == 2


async def test_waiters_outlive_a_connection_that_breaks(
    server: PostgresServer, tmp_path: Path
) -> None:
    """A proxy or an operator ends the session of the locks: it is opened again, nobody fails."""
    url = server.url()
    async with (
        opened(url, tmp_path) as one,
        opened(url, tmp_path) as two,
        one.turn("thread"),
    ):
        waiting = asyncio.create_task(run_once(two, "thread"))
        await settles(url, LOCKERS.replace("pg_terminate_backend(pid)", "*"), 2)
        assert ask(url, LOCKERS) == 2
        async with asyncio.timeout(WAIT_S):
            await waiting
        config = {
            "configurable": {"thread_id": "thread", "checkpoint_ns": "", "checkpoint_id": "1"}
        }
        with pytest.raises(DependencyUnavailableError):
            await one.checkpointer.aput(config, empty_checkpoint(), {}, {})
        with pytest.raises(DependencyUnavailableError):
            await one.checkpointer.aput_writes(config, [("notes", "late")], "task")


async def test_a_connection_that_broke_is_no_server_that_is_away(
    server: PostgresServer, tmp_path: Path
) -> None:
    """The first to notice asks again over the next connection, instead of waiting in vain."""
    url = server.url()
    async with opened(url, tmp_path) as sessions:
        await sessions.check()
        assert ask(url, LOCKERS) == 1

        await sessions.check()


async def test_a_server_that_is_away_is_said_at_once_and_found_when_it_is_back(
    own_server: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Turns, memory and the readiness check fail with what the API answers as 503."""
    async with opened(own_server.url(), tmp_path, database_timeout_s=3) as sessions:
        await run_once(sessions, "thread")
        own_server.stop()
        with pytest.raises(DependencyUnavailableError, match="sessions is unavailable"):
            await run_once(sessions, "thread")
        with pytest.raises((DependencyUnavailableError, psycopg.OperationalError)):
            await sessions.check()

        own_server.start()
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await sessions.check()
                    await run_once(sessions, "thread")
                    break
                except (DependencyUnavailableError, psycopg.OperationalError):
                    await asyncio.sleep(0.2)
        assert await runs(sessions, "thread") == 2
    assert PASSWORD not in caplog.text


async def test_a_server_that_says_nothing_is_not_waited_for_forever(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """Its processes are stopped as a frozen disk or network would stop them."""
    url = own_server.url()
    async with opened(url, tmp_path, database_timeout_s=3) as sessions:
        await run_once(sessions, "thread")
        backends = f"SELECT array_agg(pid) {OURS}"
        stopped = [own_server.pid, *ask(url, backends)]
        try:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):  # of the start, and about to end
                    os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(DependencyUnavailableError):
                    async with sessions.turn("thread"):
                        pass
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


async def test_a_server_that_fails_while_tidying_up_costs_no_answer(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """The answer is remembered already; older checkpoints go with the next turn."""
    async with opened(own_server.url(), tmp_path, database_timeout_s=3) as sessions:
        await run_once(sessions, "thread")
        own_server.stop()

        await sessions.forget_older_checkpoints("thread")


async def test_a_role_without_the_right_to_create_works_on_tables_that_are_there(
    server: PostgresServer, tmp_path: Path
) -> None:
    """Whoever may create tables does it once; the service need not be allowed to."""
    url = server.url()
    async with opened(url, tmp_path):
        pass
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
        owner.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO plain"
        )
    async with opened(url.replace(url.split("@")[0], "postgresql://plain:plain"), tmp_path) as ours:
        await run_once(ours, "thread")

        assert await runs(ours, "thread") == 1


async def test_the_server_looks_after_silent_clients_of_the_locks(
    server: PostgresServer, tmp_path: Path
) -> None:
    """A host that lost its power says no goodbye: TCP keep-alive, asked for, frees its locks."""
    url = server.url()
    async with opened(url, tmp_path) as sessions, sessions.turn("thread"):
        with psycopg.connect(url) as other:
            row = other.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND ((classid::bigint << 32) | objid::bigint) = %s",
                (lock_key("thread"),),
            ).fetchone()
        assert row == (1,)
        # what the session itself has in force cannot be asked from outside: ask it
        locks = sessions._locks  # type: ignore[attr-defined]
        async with await locks._connect() as connection:
            await connection.execute(_SESSION_SETTINGS)
            shown = await (await connection.execute("SHOW tcp_keepalives_idle")).fetchone()
        assert shown == {"tcp_keepalives_idle": "10"}


async def test_the_start_waits_for_a_server_that_is_still_starting(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """As long as the setting says."""
    url = own_server.url()
    own_server.stop()
    starting = threading.Timer(1, own_server.start)
    starting.start()
    try:
        async with opened(url, tmp_path, database_start_s=WAIT_S) as sessions:
            await run_once(sessions, "thread")
    finally:
        starting.join()


@pytest.mark.parametrize("refused", ["stopped", "wrong password"])
async def test_a_start_in_vain_is_one_sentence_without_the_password(
    own_server: PostgresServer, tmp_path: Path, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which server, why not, and which setting; no secret, also not in the log."""
    caplog.set_level(logging.DEBUG)
    url = own_server.url()
    if refused == "stopped":
        own_server.stop()
    else:
        url = own_server.url(url.rpartition("/")[2], password="hunter2-wrong")
    with pytest.raises(ConfigurationError) as refusal:
        async with opened(url, tmp_path, database_start_s=0):
            pass

    assert f"127.0.0.1:{own_server.port}" in str(refusal.value)
    assert "DATABASE_URL" in str(refusal.value)
    assert "hunter2" not in str(refusal.value) + caplog.text
    assert refusal.value.__cause__ is None


async def test_the_api_says_when_the_database_is_down(
    start: Start, llm: FakeLLM, own_server: PostgresServer
) -> None:
    """/ready names it, /chat answers 503 and says when to try again, and both recover."""
    api = await start(database_url=own_server.url(), database_timeout_s=3)
    assert (await api.ask(session_id="s")).status_code == 200
    assert (await api.client.get("/ready")).status_code == 200

    own_server.stop()
    ready = await api.client.get("/ready")
    asked = await api.ask(session_id="s")
    nobody = await api.ask()

    assert (ready.status_code, ready.json()["detail"]) == (503, "Not available: sessions")
    assert (asked.status_code, asked.json()["detail"]) == (
        503,
        "The session memory is unavailable, try again later",
    )
    assert asked.headers["retry-after"] == "2"
    assert nobody.status_code == 200  # remembers nothing, so it needs no memory

    own_server.start()
    async with asyncio.timeout(WAIT_S):
        while (await api.client.get("/ready")).status_code != 200:  # noqa: ASYNC110  # it is polled
            await asyncio.sleep(0.2)
    assert (await api.ask("And its memory?", session_id="s")).status_code == 200
    assert "What is the KV cache?" in llm.prompt("generate")
