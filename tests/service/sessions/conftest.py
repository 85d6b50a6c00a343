"""Both engines of the session memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.service.sessions.postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """A server for all tests that leave it alone; each asks it for a database of its own."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server for one test, which may do to it what it likes."""
    with postgres_server() as running:
        yield running


MakeSettings = Callable[..., Settings]


def settings_for(folder: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, data_dir=folder, **more)


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty memory, once for each engine."""
    if request.param == "sqlite":
        return settings_for(tmp_path)
    server = request.getfixturevalue("server")
    assert isinstance(server, PostgresServer)
    return settings_for(tmp_path, database_url=server.url())
