"""Sockets and servers: several uvicorn servers in one event loop, each on a socket of ours."""

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from spanloom.errors import ConfigurationError

_BACKLOG: Final = 1024
_GRACEFUL_SHUTDOWN_S: Final = 5
_KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients (httpx2: 5 s) and load balancers (60 s)
do, or the server closes the very connection over which a request is on its way."""
GRPC_GRACE_S: Final = 5.0
"""How long gRPC calls may take to end once the server stops."""
_START_POLL_S: Final = 0.005
_WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # recognised, not bound


def listen(
    host: str, port: int, purpose: str, option: str, host_option: str = "--host"
) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Args:
        host: name or address to bind.
        port: 0 to 65535.
        purpose: what the port is for, as the error message says it.
        option: the command-line option that chooses the port.
        host_option: the one that chooses the host.

    Raises:
        ConfigurationError: the port is taken or forbidden, or the host is not ours.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(
            f"cannot listen on {host!r}: {error.strerror}; check {host_option}"
        ) from error
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        # bind() alone would let a second server through: two sockets with SO_REUSEADDR may
        # share a port until one of them listens.
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigurationError(
            _refusal(error, f"{host}:{port}", purpose, option, host_option)
        ) from error
    made.setblocking(False)  # its only argument
    return made


def require_free(
    host: str, port: int, purpose: str, option: str, host_option: str = "--host"
) -> None:
    """Try a port that gRPC will open: its own message names neither the cause nor a remedy.

    Arguments and errors are those of `listen`; port 0 is always free.
    """
    if port:
        listen(host, port, purpose, option, host_option).close()


def _refusal(error: OSError, where: str, purpose: str, option: str, host_option: str) -> str:
    host, _, port = where.rpartition(":")
    where = f"port {port} for {purpose}"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{where} is already in use. Stop the program that holds it "
                f"(`ss -ltnp 'sport = :{port}'` names it), or choose another with {option}."
            )
        case errno.EACCES:
            return f"{where} is not allowed to this user; choose one above 1023 with {option}."
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; check {host_option}."
    return f"cannot listen on {host}, {where}: {error.strerror or error}"


class HttpServer(uvicorn.Server):
    """One ASGI application on one socket. Signals belong to whoever runs the loop."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,  # the process that runs us decides about logging
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_S,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signal handlers alone."""
        yield

    async def run_until_stopped(self) -> None:
        """Serve until `should_exit` is set."""
        await self.serve(sockets=[self._listener])


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do `work` beside the block, and cancel it at the block's end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def running(servers: list[HttpServer], stop: asyncio.Event) -> AsyncIterator[None]:
    """Start the servers; stop them, with their requests answered, on the way out."""
    tasks = [asyncio.create_task(server.run_until_stopped()) for server in servers]
    for task in tasks:
        # A server that ends by itself, an error included, ends the others.
        task.add_done_callback(lambda _: stop.set())
    try:
        # uvicorn has no event for it
        while not stop.is_set() and not all(server.started for server in servers):  # noqa: ASYNC110
            await asyncio.sleep(_START_POLL_S)
        yield
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)


@contextlib.contextmanager
def stopping_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on SIGINT and SIGTERM, in the main thread; elsewhere signals are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def url_of(host: str, port: int) -> str:
    """The URL of a plain HTTP or gRPC server, for clients on this machine."""
    if host in _WILDCARDS:
        host = "127.0.0.1"  # for clients here; others know this machine's name
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
