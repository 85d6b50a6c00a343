"""Fixtures: a real OTLP receiver on loopback, and real service processes to watch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.telemetry.live import Receiver, Script, Service


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(**environment: str) -> Service:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Service(folder, environment))
        return started[-1]

    yield start
    for service in started:
        service.stop()
