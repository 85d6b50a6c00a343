"""An API application over small loopback servers, driven over a real socket."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import create_app
from service.settings import Settings
from spanloom.telemetry import Telemetry, setup
from tests.service.loopback import FakeLLM, FakeRetrieval, serving


@pytest.fixture(scope="session")
def _exported_to() -> tuple[Telemetry, InMemorySpanExporter]:
    with pytest.MonkeyPatch.context() as environment:
        for signal in ("TRACES", "METRICS", "LOGS"):
            environment.setenv(f"OTEL_{signal}_EXPORTER", "none")
        telemetry = setup("agent-api-tests")
    exporter = InMemorySpanExporter()
    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    return telemetry, exporter


@pytest.fixture
def telemetry(_exported_to: tuple[Telemetry, InMemorySpanExporter]) -> Telemetry:
    return _exported_to[0]


@pytest.fixture
def spans(_exported_to: tuple[Telemetry, InMemorySpanExporter]) -> InMemorySpanExporter:
    """Finished spans of this test."""
    exporter = _exported_to[1]
    exporter.clear()
    return exporter


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def retrieval() -> FakeRetrieval:
    return FakeRetrieval()


class OutsideClient(httpx2.AsyncClient):
    """A caller from outside: in the same process, yet it makes no spans and sends no context."""

    async def send(self, *args: Any, **kwargs: Any) -> httpx2.Response:
        with suppress_instrumentation():
            return await super().send(*args, **kwargs)


@dataclass
class Api:
    """A running API and a client of it."""

    client: httpx2.AsyncClient
    app: Any
    settings: Settings

    async def ask(self, query: str = "What is the KV cache?", **more: str) -> httpx2.Response:
        return await self.client.post("/chat", json={"query": query, **more})


Start = Callable[..., Awaitable[Api]]


@pytest.fixture
async def start(
    telemetry: Telemetry, llm: FakeLLM, retrieval: FakeRetrieval, tmp_path: Path
) -> AsyncIterator[Start]:
    """Start an API with other settings than the default ones; as many as wanted."""
    async with serving() as serve, contextlib.AsyncExitStack() as stack:
        llm_url = await serve(llm.app)
        retrieval_url = await serve(retrieval.app)

        async def start_one(**overrides: Any) -> Api:
            values = {
                "llm_provider": "openai_compatible",
                "llm_base_url": f"{llm_url}/v1",
                "llm_model": "test-large",
                "llm_small_model": "test-small",
                "retrieval_url": retrieval_url,
                "data_dir": tmp_path / "var",
                **overrides,
            }
            settings = Settings(_env_file=None, **values)
            app = create_app(settings, telemetry=telemetry)
            url = await serve(app)
            client = OutsideClient(base_url=url, timeout=60, trust_env=False)
            await stack.enter_async_context(client)
            return Api(client, app, settings)

        yield start_one


@pytest.fixture
async def api(start: Start) -> Api:
    """An API with default settings over the two servers."""
    return await start()
