"""Conversations: their ids, their memory, and one run at a time in each.

Two engines, one module each: `sqlite`, right for any number of processes that share `data_dir`,
and `postgres`, right for any number of hosts. `address` tells which one the settings name. One
suite (tests/service/sessions/test_contract.py) proves both.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from service.sessions.address import session_store
from service.settings import Settings

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

DEFAULT_SESSION: Final = "default"
ANONYMOUS: Final = "anonymous"


class Sessions(Protocol):
    """The open session memory of one process.

    Where the engine is another process, every method raises DependencyUnavailableError while it
    does not answer.
    """

    @property
    def checkpointer(self) -> "BaseCheckpointSaver[Any]":
        """What LangGraph reads and writes. Loads plain data only, whatever somebody stored."""

    def turn(self, thread: str) -> AbstractAsyncContextManager[None]:
        """Hold the conversation for one run; wait, under a span, while another run has it.

        Whoever dies lets go. Who lost the conversation all the same (its server was restarted)
        cannot write to it: nothing of a run that was overtaken is stored.
        """

    async def forget_older_checkpoints(self, thread: str) -> None:
        """Keep only the newest checkpoint of a conversation, the one the next turn reads."""

    async def check(self) -> None:
        """Return if the memory can be read."""


@asynccontextmanager
async def open_sessions(settings: Settings) -> AsyncIterator[Sessions]:
    """Open the memory, creating its file or tables where there are none.

    ConfigurationError when it cannot be had.
    """
    store = session_store(settings)
    # Each engine is imported where it is used: neither is needed by the other's users, and the
    # supervisor of the workers, which reads addresses only, needs none.
    if isinstance(store, Path):
        from service.sessions.sqlite import open_sqlite_sessions  # noqa: PLC0415

        async with open_sqlite_sessions(store, settings.data_dir / "locks") as sqlite:
            yield sqlite
    else:
        from service.sessions.postgres import open_postgres_sessions  # noqa: PLC0415

        async with open_postgres_sessions(store, settings) as postgres:
            yield postgres


def thread_id(user_id: str, session_id: str) -> str | None:
    """The conversation's id; None for the anonymous default, which is nobody's in particular.

    The NUL byte cannot occur in either id, so that ("a-b", "c") and ("a", "b-c") differ. The
    hash keeps the user's id out of file names, the database and traces.
    """
    if user_id == ANONYMOUS and session_id == DEFAULT_SESSION:
        return None
    return hashlib.sha256(f"{user_id}\0{session_id}".encode()).hexdigest()
