"""Sockets and servers: several uvicorn servers in one event loop, each on a socket of ours."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from spanloom.errors import ConfigurationError

_BACKLOG: Final = 1024
_GRACEFUL_SHUTDOWN_S: Final = 5


def listen(host: str, port: int, purpose: str, option: str) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Args:
        host: name or address to bind.
        port: 0 to 65535.
        purpose: what the port is for, as the error message says it.
        option: the command-line option that chooses the port.

    Raises:
        ConfigurationError: the port is taken or forbidden, or the host is not ours.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(
            f"cannot listen on {host!r}: {error.strerror}; check --host"
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
        raise ConfigurationError(_refusal(error, host, port, purpose, option)) from error
    made.setblocking(False)  # its only argument
    return made


def _refusal(error: OSError, host: str, port: int, purpose: str, option: str) -> str:
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
            return f"{host} is not an address of this machine; check --host."
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
