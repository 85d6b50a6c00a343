"""Fixtures: a real OTLP receiver on loopback, and real service processes to watch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor

from spanloom.telemetry import endings, sdk
from spanloom.telemetry.langgraph import LangGraphInstrumentor
from tests.telemetry.live import Receiver, Script, Service


@pytest.fixture(autouse=True)
def process_telemetry_set_aside() -> Iterator[None]:
    """Take off what `setup` installed for other tests of this process, and put it back after.

    The service's tests set telemetry up once for the process, as the service does; whoever runs
    between them must neither see it nor take it away.
    """
    handle = sdk._handle
    if handle is None:
        yield
        return
    listener = endings._on_step
    endings.set_step_listener(None)
    for instrumentor in (
        LangGraphInstrumentor(),
        HTTPXClientInstrumentor(),
        HTTPX2ClientInstrumentor(),
    ):
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
    yield
    endings.set_step_listener(listener)
    sdk._instrument_libraries(handle)


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
