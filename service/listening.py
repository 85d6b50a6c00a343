"""Listening sockets of the service's processes."""

import errno
import socket
from typing import Final

from service.errors import ConfigurationError

KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients (httpx2: 5 s) and load balancers (60 s)
do, or the server closes the very connection over which a request is on its way."""
_BACKLOG: Final = 2048
_LARGEST_PORT: Final = 65_535


def listen(host: str, port: int, *, variable: str) -> socket.socket:
    """A TCP socket that listens; port 0 takes a free one.

    Args:
        host: address or name to bind.
        port: 0 to 65535.
        variable: the environment variable that chooses the port, for the error message.

    Raises:
        ConfigurationError: with a sentence that says which port, why not, and what to do.
    """
    # getaddrinfo would take 99999 for 34463
    if not 0 <= port <= _LARGEST_PORT:
        raise ConfigurationError(f"There is no port {port}: they go up to {_LARGEST_PORT}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(_refusal(error, host, port, variable)) from error
    # The protocol is not decoration: asyncio switches Nagle's algorithm off only on sockets that
    # name IPPROTO_TCP, and with it on each answer waits 40 ms for the client's delayed ACK.
    # `socket.create_server` and uvicorn's own `bind_socket` (used for workers) leave it out.
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        # bind alone lets two sockets with SO_REUSEADDR share a port until one of them listens
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigurationError(_refusal(error, host, port, variable)) from error
    made.set_inheritable(True)  # for worker processes
    return made


def _refusal(error: OSError, host: str, port: int, variable: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken. Stop what listens there, or choose another with"
            f" --port or {variable}."
        )
    return f"Cannot listen on {host} port {port}: {error.strerror or error}."
