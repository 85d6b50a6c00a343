"""The real endpoint as a process of its own, and clients of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from service.llm.tokenizer import Tokenizer, load_tokenizer
from service.settings import Settings
from tests.service.llm.running import Collector, Endpoint, collecting, start_endpoint


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm data")


@pytest.fixture(scope="session")
def endpoint(data_dir: Path, collector: Collector) -> Iterator[Endpoint]:
    """The endpoint at full speed, its telemetry on the way to `collector`."""
    running = start_endpoint(
        data_dir, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100"
    )
    yield running
    running.stop()


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    """The real SDK."""
    with openai.OpenAI(base_url=endpoint.base_url, api_key="any", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=endpoint.base_url, trust_env=False, timeout=30) as raw:
        yield raw


@pytest.fixture(scope="session")
def tokenizer(data_dir: Path) -> Tokenizer:
    return load_tokenizer(data_dir / "tiktoken")


@pytest.fixture
def settings(endpoint: Endpoint, data_dir: Path) -> Settings:
    """Settings of a service that uses the endpoint."""
    return Settings(_env_file=None, offline_llm_port=endpoint.port, data_dir=data_dir)
