"""Whether PostgreSQL is there yet, asked once before anything needs it.

Needs the driver only, not LangGraph: the supervisor of the workers asks, too.
"""

import time
from collections.abc import Callable
from typing import Final

import psycopg

from service.errors import ConfigurationError
from service.sessions.address import PostgresAddress

_PAUSE_S: Final = 0.5


def wait_for_database(
    address: PostgresAddress, seconds: float, *, say: Callable[[str], object]
) -> None:
    """Return once the server lets us in; blocks for up to `seconds` and one connection attempt.

    `say` is told, once, that there is something to wait for. A password that is refused is
    waited for as well: a server that starts for the first time makes its users last.

    Raises:
        ConfigurationError: with the server's last word on why not, without the password.
    """
    end = time.monotonic() + seconds
    has_said = False
    while True:
        try:
            psycopg.connect(**address.parameters).close()
        except psycopg.Error as error:
            reason = address.without_password(" ".join(str(error).split())) or "no reason given"
            if time.monotonic() >= end:
                raise ConfigurationError(
                    f"The session memory in PostgreSQL at {address.name} cannot be reached:"
                    f" {reason}. Start it, or correct DATABASE_URL; AGENT_DATABASE_START_S is how"
                    " long the start waits for it."
                ) from None
            if not has_said:
                say(f"waiting for PostgreSQL at {address.name}: {reason}")
                has_said = True
            time.sleep(min(_PAUSE_S, max(0.0, end - time.monotonic())))
        else:
            return
