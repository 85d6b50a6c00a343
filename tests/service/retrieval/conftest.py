"""An index of the shipped articles, and the real process that serves it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.retrieval.index import Index
from service.retrieval.live import SHIPPED_CORPUS, build
from tests.service.retrieval.running import RetrievalProcess
from tests.telemetry.live import Receiver


@pytest.fixture(scope="session")
def shipped() -> Index:
    return build(SHIPPED_CORPUS, explicit=False)[0]


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.close()


@pytest.fixture(scope="session")
def retrieval(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[RetrievalProcess]:
    """The process over the shipped articles, its telemetry on the way to `receiver`."""
    running = RetrievalProcess(
        tmp_path_factory.mktemp("shipped articles"), OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url
    )
    yield running
    running.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RetrievalProcess]]:
    """Starts processes in `tmp_path` that no collector listens to."""
    started: list[RetrievalProcess] = []

    def start_one(**extra: str) -> RetrievalProcess:
        started.append(RetrievalProcess(tmp_path, OTEL_SDK_DISABLED="true", **extra))
        return started[-1]

    yield start_one
    for process in started:
        process.stop()


@pytest.fixture
def library(tmp_path: Path) -> Callable[..., Path]:
    """Writes files (name to text or bytes) into a folder of the user's own."""

    def write(**files: str | bytes) -> Path:
        folder = tmp_path / "我的 library"
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path = path.with_name(path.name.replace("_md", ".md").replace("_txt", ".txt"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return write
