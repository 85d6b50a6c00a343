"""Session memory in PostgreSQL, for any number of workers on any number of hosts."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from service.sessions.address import PostgresAddress
from service.sessions.conversation_locks import Connection, ConversationLocks, lock_key
from service.sessions.postgres_start import wait_for_database
from service.settings import Settings
from spanloom.telemetry import get_logger

_MAX_WAITING: Final = 1_000
_SCHEMA_POLL_S: Final = 0.1

_log = get_logger(__name__)


class _GuardedSaver(AsyncPostgresSaver):
    """LangGraph's saver, writing only what the conversation's holder writes."""

    def __init__(
        self, pool: AsyncConnectionPool[Connection], locks: ConversationLocks, width: int
    ) -> None:
        # Only plain data is ever loaded, whatever LANGGRAPH_STRICT_MSGPACK says.
        super().__init__(pool, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        # Each operation takes a connection of its own from the pool; with the one lock that
        # LangGraph puts before it (meant for a single connection) a pool would be of no use.
        self.lock = asyncio.Semaphore(width)  # type: ignore[assignment]
        self._locks = locks

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, unless the conversation was lost meanwhile."""
        await self._locks.confirm(config["configurable"]["thread_id"])
        return await super().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a run that failed had done of its last step, under the same condition."""
        await self._locks.confirm(config["configurable"]["thread_id"])
        await super().aput_writes(config, writes, task_id, task_path)


class PostgresSessions:
    """The memory over a pool of connections, and the locks over one more."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        checkpointer: AsyncPostgresSaver,
        locks: ConversationLocks,
    ) -> None:
        self.checkpointer = checkpointer
        self._pool = pool
        self._locks = locks

    def turn(self, thread: str) -> AbstractAsyncContextManager[None]:
        """Hold the conversation by an advisory lock."""
        return self._locks.hold(thread)

    async def forget_older_checkpoints(self, thread: str) -> None:
        """Prune the conversation; a server that fails here leaves that to the next turn."""
        try:
            await self.checkpointer.aprune([thread], strategy="keep_latest")
        except psycopg.Error as error:
            # The answer is there and remembered: it is not lost over what tidying up is.
            _log.warning("sessions_not_pruned", error_type=type(error).__name__)

    async def check(self) -> None:
        """Read a table over the pool, and ask the connection of the locks."""
        async with self._pool.connection() as connection:
            await connection.execute("SELECT 1 FROM checkpoints LIMIT 1")
        await self._locks.ping()


@asynccontextmanager
async def open_postgres_sessions(
    address: PostgresAddress, settings: Settings
) -> AsyncIterator[PostgresSessions]:
    """Open the memory, creating its tables where there are none.

    ConfigurationError where the server cannot be reached within `database_start_s`.
    """
    await asyncio.to_thread(
        wait_for_database,
        address,
        settings.database_start_s,
        say=lambda text: _log.warning("sessions_waiting", reason=text),
    )
    parameters: dict[str, Any] = {
        **address.parameters,
        "autocommit": True,
        # Never a prepared statement: poolers hand the next query to another session.
        "prepare_threshold": None,
        "row_factory": dict_row,
    }

    async def connect() -> Connection:
        return await Connection.connect(**parameters)

    async with await connect() as connection:
        await _set_up(connection)
    locks = ConversationLocks(connect, patience_s=settings.database_timeout_s)
    async with AsyncConnectionPool[Connection](
        kwargs=parameters,
        min_size=1,
        max_size=settings.database_pool_size,
        max_waiting=_MAX_WAITING,
        timeout=settings.database_timeout_s,
        # Attempts get rarer with time. Giving up early begins afresh with the next request, and
        # readiness makes one every few seconds, so that an outage outlasts itself by no more.
        reconnect_timeout=settings.database_timeout_s,
        check=AsyncConnectionPool.check_connection,
        name="sessions",
        open=False,
    ) as pool:
        await locks.start()
        try:
            saver = _GuardedSaver(pool, locks, settings.database_pool_size)
            yield PostgresSessions(pool, saver, locks)
        finally:
            await locks.stop()


async def _set_up(connection: Connection) -> None:
    """Bring the tables up to date, one worker at a time.

    By trying the lock again and again: LangGraph's migrations create indexes concurrently, which
    waits for every open statement, also for one that would wait for this lock. Where the tables
    are up to date nothing is created, so that a role without the right to do so suffices.
    """
    saver = AsyncPostgresSaver(connection)
    key = lock_key("\0schema")
    while not await _is_up_to_date(connection, len(saver.MIGRATIONS) - 1):
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s) AS is_ours", (key,))
        row = await cursor.fetchone()
        if row is None or not row["is_ours"]:
            await asyncio.sleep(_SCHEMA_POLL_S)
            continue
        # the lock goes with the connection
        if not await _is_up_to_date(connection, len(saver.MIGRATIONS) - 1):
            await saver.setup()


async def _is_up_to_date(connection: Connection, version: int) -> bool:
    cursor = await connection.execute("SELECT to_regclass('checkpoint_migrations') AS known")
    row = await cursor.fetchone()
    if row is None or row["known"] is None:
        return False
    cursor = await connection.execute("SELECT max(v) AS version FROM checkpoint_migrations")
    row = await cursor.fetchone()
    return row is not None and row["version"] is not None and row["version"] >= version
