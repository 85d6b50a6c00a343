"""Conversations held across workers and hosts, by advisory locks of PostgreSQL.

All locks of a process stand on one connection of its own, apart from the pool:

    turns ──tickets──▶ one task ──1 query for all that wait──▶ one session of the server
                          └─ also: releases, and the question whether the session still lives

So a thousand waiting conversations take no connection from those that work, and when the process
dies the server ends the session and with it every lock. Waiting is polling, because a session
blocked in `pg_advisory_lock` could do nothing else; and the task, not the request, talks to the
server, so that a cancelled request never leaves a lock half taken.

Needs a session of the server's to itself: PgBouncer only in session mode.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import psycopg
from psycopg.rows import DictRow

from service.errors import DependencyUnavailableError
from spanloom.telemetry import get_logger, step

Connection = psycopg.AsyncConnection[DictRow]
Connect = Callable[[], Awaitable[Connection]]

_FIRST_POLL_S: Final = 0.005
_LONGEST_POLL_S: Final = 0.05
_RECONNECT_PAUSE_S: Final = 0.2
_CLOSE_S: Final = 2.0

# The server looks after a client it hears nothing from, or the conversations of a host that lost
# its power would be locked for hours; and it must not end a session for having nothing to do.
# Asked of pg_settings, because servers before 14 do not know all of them.
_SESSION_SETTINGS: Final = """
SELECT set_config(name, wanted, false) FROM pg_settings JOIN (VALUES
    ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'),
    ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '20000'), ('idle_session_timeout', '0')
) AS ours (variable, wanted) ON name = variable
"""
_RELEASE: Final = "SELECT pg_advisory_unlock(key) FROM unnest(%s::bigint[]) AS key"
_TRY: Final = "SELECT key, pg_try_advisory_lock(key) AS is_ours FROM unnest(%s::bigint[]) AS key"

_log = get_logger(__name__)


def lock_key(thread: str) -> int:
    """The conversation's 64-bit number among the database's advisory locks."""
    digest = hashlib.sha256(f"spanloom session {thread}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


class _Ticket:
    """One run that has or wants a conversation."""

    def __init__(self, thread: str, since: float) -> None:
        self.key = lock_key(thread)
        self.since = since
        self.answer = asyncio.Event()
        """Set once it is known whether there is a wait."""
        self.granted = asyncio.Event()
        self.is_lost = False


class ConversationLocks:
    """The conversations of one process. Used between `start` and `stop`.

    `patience_s` is how long the server may be silent before those who wait are told so.
    """

    def __init__(self, connect: Connect, *, patience_s: float) -> None:
        self._connect = connect
        self._patience_s = patience_s
        self._lines: dict[str, deque[_Ticket]] = {}
        """Those of this process who have or want a conversation, in order; only the first asks."""
        self._releases: list[int] = []
        self._pings: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._is_closing = False
        self._answered_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to talk to the server; does not wait for it."""
        self._task = asyncio.create_task(self._talk(), name="conversation-locks")

    async def stop(self) -> None:
        """Let go of everything."""
        self._is_closing = True
        self._wake.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=_CLOSE_S)
            if not done:
                self._task.cancel()
                await asyncio.wait({self._task})

    @asynccontextmanager
    async def hold(self, thread: str) -> AsyncIterator[None]:
        """Hold a conversation; wait for it under the span `session_wait`.

        Raises DependencyUnavailableError where the server does not answer.
        """
        ticket = _Ticket(thread, self._now())
        line = self._lines.setdefault(thread, deque())
        if line:
            ticket.answer.set()
        line.append(ticket)
        self._wake.set()
        try:
            await self._wait(ticket, ticket.answer)
            if not ticket.granted.is_set():
                with step("session_wait"):
                    await self._wait(ticket, ticket.granted)
            yield
        finally:
            line.remove(ticket)
            if not line:
                del self._lines[thread]
            if ticket.granted.is_set() and not ticket.is_lost:
                self._releases.append(ticket.key)
            self._wake.set()

    async def confirm(self, thread: str) -> None:
        """Return if the conversation is still held, as the server sees it.

        A restart of the server, or of a proxy before it, ends sessions and frees their locks;
        another run may have taken the conversation since.
        """
        line = self._lines.get(thread)
        if not line or not line[0].granted.is_set():
            raise RuntimeError("a conversation is written only by the run that holds it")
        ticket = line[0]
        if not ticket.is_lost:
            await self.ping()
        if ticket.is_lost:
            raise DependencyUnavailableError(
                "sessions", "the connection that held the conversation broke", worth_retrying=False
            )

    async def ping(self) -> None:
        """Return if the server answers on the connection that holds the locks."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings.append(answer)
        self._wake.set()
        try:
            async with asyncio.timeout(self._patience_s):
                await answer
        except TimeoutError:
            raise self._silent() from None
        finally:
            with suppress(ValueError):  # answered, or being asked right now
                self._pings.remove(answer)

    async def _wait(self, ticket: _Ticket, event: asyncio.Event) -> None:
        """Wait for the event, as long as the server answers at all."""
        while not event.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await event.wait()
                    return
            if self._now() - max(ticket.since, self._answered_at) >= self._patience_s:
                raise self._silent()

    def _silent(self) -> DependencyUnavailableError:
        return DependencyUnavailableError(
            "sessions", "PostgreSQL does not answer", worth_retrying=False
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _talk(self) -> None:
        """Carry what is wanted to the server and back, for as long as this object lives."""
        connection: Connection | None = None
        is_connected = True
        poll_s = _FIRST_POLL_S
        try:
            while not self._is_closing or self._releases:
                try:
                    if connection is None:
                        connection = await self._connect()
                        await connection.execute(_SESSION_SETTINGS)
                        is_connected = True
                    # Polling is for those who were refused; news is carried at once.
                    waiting = self._waiting()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(poll_s if waiting else None):
                            await self._wake.wait()
                            poll_s = _FIRST_POLL_S
                    self._wake.clear()
                    poll_s = min(2 * poll_s, _LONGEST_POLL_S)
                    await self._exchange(connection)
                except Exception as error:  # noqa: BLE001 - whatever it is, the locks may be gone
                    lost = self._forget()
                    if is_connected:  # once an outage, not at every attempt to connect
                        _log.warning(
                            "session_locks_lost", held=lost, error_type=type(error).__name__
                        )
                        is_connected = False
                    if connection is not None:
                        await connection.close()
                    connection = None
                    if self._is_closing:
                        return
                    await asyncio.sleep(_RECONNECT_PAUSE_S)
        finally:
            if connection is not None:
                await connection.close()

    def _waiting(self) -> list[_Ticket]:
        return [line[0] for line in self._lines.values() if not line[0].granted.is_set()]

    async def _exchange(self, connection: Connection) -> None:
        """Release, try, and show that the server answers: at most two short queries."""
        releases, self._releases = self._releases, []
        pings, self._pings = self._pings, []
        tickets = {ticket.key: ticket for ticket in self._waiting()}
        try:
            async with asyncio.timeout(self._patience_s):
                if releases or not tickets:  # releasing nothing is the shortest question
                    await connection.execute(_RELEASE, (releases,))
                if tickets:
                    cursor = await connection.execute(_TRY, (list(tickets),))
                    for row in await cursor.fetchall():
                        self._settle(tickets[row["key"]], is_ours=row["is_ours"])
        except BaseException:
            self._pings.extend(pings)  # asked again of the next connection, and soon
            self._wake.set()
            raise
        self._answered_at = self._now()
        for ping in pings:
            if not ping.done():
                ping.set_result(None)

    def _settle(self, ticket: _Ticket, *, is_ours: bool) -> None:
        ticket.answer.set()
        if not is_ours:
            return
        if any(ticket in line for line in self._lines.values()):
            ticket.granted.set()
        else:  # it gave up while the server was asked
            self._releases.append(ticket.key)
            self._wake.set()

    def _forget(self) -> int:
        """The session has ended, as far as can be known, and all it held with it: how much?"""
        self._releases.clear()
        held = [line[0] for line in self._lines.values() if line[0].granted.is_set()]
        for ticket in held:
            ticket.is_lost = True
        return len(held)
