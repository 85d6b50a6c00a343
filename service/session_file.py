"""Where the session memory is kept."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.errors import ConfigurationError
from service.settings import Settings


def session_file(settings: Settings) -> Path:
    """The SQLite file of the session memory; ConfigurationError for what is not supported."""
    if settings.database_url is None:
        return settings.data_dir / "sessions.sqlite"
    url = urlsplit(settings.database_url.get_secret_value())
    scheme = url.scheme.partition("+")[0]
    if scheme in {"postgres", "postgresql"}:
        raise ConfigurationError(
            "DATABASE_URL names PostgreSQL, which session memory does not speak yet. What works"
            " today: sqlite:///path/to/sessions.sqlite, or no DATABASE_URL at all."
        )
    path = unquote(url.path.removeprefix("/"))
    if scheme != "sqlite" or url.netloc or not path or path == ":memory:":
        # the value may hold a password, so it is not repeated
        raise ConfigurationError(
            "DATABASE_URL must be sqlite:///relative/path or sqlite:////absolute/path, a file"
            " that all workers can share."
        )
    return Path(path)
