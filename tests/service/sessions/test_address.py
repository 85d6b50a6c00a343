from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.sessions.address import PostgresAddress, session_store
from tests.service.sessions.conftest import settings_for


def test_the_database_is_where_the_settings_say(tmp_path: Path) -> None:
    """The data folder by default, a SQLite address if given."""
    assert session_store(settings_for(tmp_path)) == tmp_path / "sessions.sqlite"
    absolute = settings_for(tmp_path, database_url="sqlite:////srv/my%20data/s.sqlite")
    assert session_store(absolute) == Path("/srv/my data/s.sqlite")
    relative = settings_for(tmp_path, database_url="sqlite:///s.sqlite")
    assert session_store(relative) == Path("s.sqlite")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:hunter2@host:port/db",
        "postgresql://user:hunter2@[host/db",
        "postgresql://user:hunter2@host/db?hunter2=x",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://user:hunter2@host/db",
        "nonsense",
    ],
)
def test_an_address_that_cannot_work_says_what_would(tmp_path: Path, address: str) -> None:
    """The message names the setting and the way out, and no password."""
    with pytest.raises(ConfigurationError) as refusal:
        session_store(settings_for(tmp_path, database_url=address))

    assert "DATABASE_URL" in str(refusal.value)
    assert "sqlite:///" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_server_is_called_by_its_address_alone(tmp_path: Path, scheme: str) -> None:
    """Host, port and database; user and password go to the driver and to nobody else."""
    url = f"{scheme}://ada:hunter2%40%E5%AF%86@db.example:6432/agent?sslmode=require"

    store = session_store(settings_for(tmp_path, database_url=url))

    assert isinstance(store, PostgresAddress)
    assert store.name == "db.example:6432/agent"
    assert store.parameters["password"] == "hunter2@密"
    assert store.parameters["sslmode"] == "require"
    assert "hunter2" not in repr(store)
    assert store.without_password("no hunter2@密 here") == "no *** here"


@pytest.mark.parametrize("missing", ["psycopg", "psycopg_pool", "langgraph.checkpoint.postgres"])
def test_a_missing_extra_is_one_sentence(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is where spanloom[postgres] is not installed, or half of it."""
    monkeypatch.setattr(
        "service.sessions.address.find_spec", lambda name: None if name == missing else object()
    )
    settings = settings_for(tmp_path, database_url="postgresql://user:hunter2@host/db")

    with pytest.raises(ConfigurationError, match=r"pip install 'spanloom\[postgres\]'") as refusal:
        session_store(settings)

    assert "hunter2" not in str(refusal.value)
