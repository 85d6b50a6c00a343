from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.running import Client, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path / "data") as client:
        yield client
