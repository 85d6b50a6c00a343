"""HttpReader keeps the storage contract, over a real server on a real store."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from spanloom.server import native_api
from spanloom.server.listening import HttpServer, listen
from spanloom.sources.http import HttpReader
from spanloom.store import SqliteStore, open_store
from tests.store.contract_suite import ContractSuite


class Served:
    """One server for all tests; each puts its own store behind it."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    with listen("127.0.0.1", 0, "the test", "none") as listener:
        served.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = HttpServer(served, listener)
        thread = threading.Thread(target=lambda: asyncio.run(server.run_until_stopped()))
        thread.start()
        yield served
        server.should_exit = True
        thread.join()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(open_store(tmp_path / "spanloom.sqlite")) as store:
        yield store


class TestHttpReader(ContractSuite):
    """The same promises, a process further away."""

    @pytest.fixture
    def reader(self, writer: SqliteStore, served: Served) -> Iterator[HttpReader]:
        served.app = Starlette(routes=native_api.routes(writer))
        with closing(HttpReader(served.url)) as reader:
            yield reader
