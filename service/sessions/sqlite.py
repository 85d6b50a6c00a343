"""Session memory in a SQLite file, for any number of worker processes that share a folder."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import aiosqlite
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from spanloom.telemetry import step

_BUSY_TIMEOUT_S: Final = 10.0
_FIRST_POLL_S: Final = 0.005
_LONGEST_POLL_S: Final = 0.05


class _Queue:
    """Those of one process who have or want a conversation; only the first polls its file."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.people = 0


class SqliteSessions:
    """The memory and the folder of lock files, one per conversation that is being held."""

    def __init__(self, checkpointer: AsyncSqliteSaver, locks: Path) -> None:
        self.checkpointer = checkpointer
        self._locks = locks
        self._queues: WeakValueDictionary[str, _Queue] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, thread: str) -> AsyncIterator[None]:
        """Hold the conversation by its lock file."""
        queue = self._queues.setdefault(thread, _Queue())
        path = self._locks / f"{thread}.lock"
        # asyncio's lock is free for a moment between one holder and the waiter it wakes; whoever
        # took the file then would wait for the queue while the waiter polls for the file.
        lock = None if queue.people else _try_lock(path)
        queue.people += 1
        try:
            if lock is None:
                with step("session_wait"):
                    await queue.turn.acquire()
                    try:
                        lock = await _poll_lock(path)
                    except BaseException:
                        queue.turn.release()
                        raise
            else:
                await queue.turn.acquire()  # free, so it does not suspend
            try:
                yield
            finally:
                _unlock(path, lock)
                queue.turn.release()
        finally:
            queue.people -= 1

    async def forget_older_checkpoints(self, thread: str) -> None:
        """Delete all but the newest checkpoint."""
        newest = "(SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?1)"
        async with self.checkpointer.lock:
            for table in ("writes", "checkpoints"):
                await self.checkpointer.conn.execute(
                    f"DELETE FROM {table} WHERE thread_id = ?1 AND checkpoint_id < {newest}",  # noqa: S608  # both are constants
                    (thread,),
                )

    async def check(self) -> None:
        """Read the file."""
        async with self.checkpointer.conn.execute("SELECT 1 FROM checkpoints LIMIT 1") as cursor:
            await cursor.fetchone()


@asynccontextmanager
async def open_sqlite_sessions(path: Path, locks: Path) -> AsyncIterator[SqliteSessions]:
    """Open the memory, creating its file and folders where there are none."""
    _make_folders(path.parent, locks)
    # Conversations are nobody else's business; SQLite gives the files beside it the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    async with aiosqlite.connect(
        path,
        timeout=_BUSY_TIMEOUT_S,
        # Autocommit: a run cancelled between a statement and its commit would otherwise keep the
        # write lock, and with it every other worker, until this process writes again.
        isolation_level=None,
    ) as connection:
        saver = AsyncSqliteSaver(
            connection,
            # Only plain data is ever loaded from disk, whatever LANGGRAPH_STRICT_MSGPACK says.
            serde=JsonPlusSerializer(allowed_msgpack_modules=None),
        )
        # Switching to WAL needs the file alone: workers that start together take turns.
        setup_lock = locks / "setup.lock"
        lock = await _poll_lock(setup_lock)
        try:
            await saver.setup()
        finally:
            _unlock(setup_lock, lock)
        yield SqliteSessions(saver, locks)


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def _try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock file, or None while somebody else does.

    Holders delete the file before they let go, so a lock may be won on a file that is gone;
    then the next file decides.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116  # pairs with fstat
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


async def _poll_lock(path: Path) -> int:
    # flock has no asynchronous form, and a thread blocked in it could not be cancelled.
    pause = _FIRST_POLL_S
    while (descriptor := _try_lock(path)) is None:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL_S)
    return descriptor


def _unlock(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)
