"""Which database the session memory is in, as DATABASE_URL says."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from service.errors import ConfigurationError
from service.settings import Settings

_POSTGRES: Final = ("postgres", "postgresql")

_CONNECTION_DEFAULTS: Final = {
    "application_name": "agent-api",
    "connect_timeout": "5",
    # A server that is cut off is noticed in seconds; the kernel's own patience is minutes.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",  # ms
}


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """A database on a PostgreSQL server."""

    name: str
    """What messages call it: host, port and database, without user and password."""
    parameters: dict[str, Any] = field(repr=False)
    """libpq's connection parameters, the password among them."""

    def without_password(self, text: str) -> str:
        """A message of the driver's, made safe to show: it names hosts and users, never secrets."""
        password = self.parameters.get("password")
        return text.replace(password, "***") if password else text


def session_store(settings: Settings) -> Path | PostgresAddress:
    """The SQLite file or the PostgreSQL database; ConfigurationError for what is neither."""
    if settings.database_url is None:
        return settings.data_dir / "sessions.sqlite"
    text = settings.database_url.get_secret_value()
    scheme, _, rest = text.partition("://")
    # SQLAlchemy's users name their driver, too; ours is always psycopg
    scheme = scheme.partition("+")[0]
    if scheme in _POSTGRES:
        return _postgres(f"{scheme}://{rest}")
    path = unquote(rest.partition("?")[0].removeprefix("/"))
    if scheme != "sqlite" or not rest.startswith("/") or not path or path == ":memory:":
        # the value may hold a password, so it is not repeated
        raise ConfigurationError(
            "DATABASE_URL must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or a file that"
            " all workers can share: sqlite:///relative/path or sqlite:////absolute/path."
        )
    return Path(path)


def _postgres(url: str) -> PostgresAddress:
    if any(find_spec(name) is None for name in ("psycopg", "psycopg_pool")) or not (
        find_spec("langgraph.checkpoint.postgres")
    ):
        raise ConfigurationError(
            "DATABASE_URL names PostgreSQL, which needs an extra: pip install 'spanloom[postgres]'"
        )
    from psycopg import Error  # noqa: PLC0415  # needs the extra just checked
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        given = conninfo_to_dict(url)
        if not all(port.isdecimal() for port in str(given.get("port", 0)).split(",")):
            raise Error  # noqa: TRY301  # libpq would say so at every attempt to connect
    except Error:
        # libpq's message quotes what it does not understand, which may be half a password
        raise ConfigurationError(
            "DATABASE_URL cannot be read. It has the form"
            " postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ and %2F for a / in"
            " the password; sqlite:///path names a file instead."
        ) from None
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    port = given.get("port") or "5432"
    database = given.get("dbname") or given.get("user") or "the default database"
    # Whatever the database's encoding: of one in SQL_ASCII, the default of a server in locale C,
    # the driver would return bytes for text.
    parameters = {**_CONNECTION_DEFAULTS, **given, "client_encoding": "utf8"}
    return PostgresAddress(f"{host}:{port}/{database}", parameters)
