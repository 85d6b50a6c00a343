from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.running import Client, running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One server for a module of questions; what a test writes, the others see."""
    with running(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path / "data") as client:
        yield client
