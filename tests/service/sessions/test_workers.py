"""The API as real processes on one PostgreSQL: workers of one host, and hosts that die."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from tests.service.api_process import Process, running
from tests.service.loopback import FakeLLM, FakeRetrieval, serving
from tests.service.sessions.postgres_server import PASSWORD, PostgresServer

WAIT_S = 60

pytestmark = [pytest.mark.xdist_group("sessions"), pytest.mark.timeout(240)]


class Host:
    """One API with its workers, and a caller of it."""

    def __init__(self, api: Process, url: str) -> None:
        self.api = api
        self._url = url

    async def ask(self, query: str, session: str) -> httpx2.Response:
        # a connection for each request, so that every worker gets some
        async with httpx2.AsyncClient(base_url=self._url, timeout=WAIT_S, trust_env=False) as http:
            return await http.post("/chat", json={"query": query, "session_id": session})

    async def get(self, path: str) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=self._url, timeout=WAIT_S, trust_env=False) as http:
            return await http.get(path)


@pytest.fixture
async def environment(llm: FakeLLM, retrieval: FakeRetrieval) -> AsyncIterator[dict[str, str]]:
    """Where the LLM and retrieval are."""
    async with serving() as serve:
        yield {
            "AGENT_LLM_PROVIDER": "openai_compatible",
            "AGENT_LLM_BASE_URL": f"{await serve(llm.app)}/v1",
            "AGENT_LLM_MODEL": "test-large",
            "AGENT_LLM_SMALL_MODEL": "test-small",
            "AGENT_RETRIEVAL_URL": await serve(retrieval.app),
        }


def host(
    environment: dict[str, str], folder: Path, url: str, *, workers: int = 1
) -> AbstractAsyncContextManager[Host]:
    @asynccontextmanager
    async def started() -> AsyncIterator[Host]:
        async with running(
            **environment,
            AGENT_DATA_DIR=str(folder),
            AGENT_WORKERS=str(workers),
            DATABASE_URL=url,
        ) as api:
            listening = await api.wait_for("api_listening")
            await api.wait_for("Application startup complete.", count=workers)
            yield Host(api, f"http://127.0.0.1:{listening['port']}")

    return started()


async def test_workers_and_hosts_share_one_memory_and_take_turns(
    environment: dict[str, str], llm: FakeLLM, server: PostgresServer, tmp_path: Path
) -> None:
    """All start together on an empty database; two workers and another host, one conversation."""
    url = server.url()
    async with (
        host(environment, tmp_path / "one", url, workers=2) as one,
        host(environment, tmp_path / "two", url) as two,
    ):
        many = await asyncio.gather(
            *(one.ask(f"Question {number}", f"s-{number}") for number in range(12)),
            *((one, two)[number % 2].ask(f"Turn {number}", "shared") for number in range(6)),
        )
        last = await two.ask("And now?", "shared")

        assert {answer.status_code for answer in (*many, last)} == {200}
        # whichever order they took, nobody's turn was overwritten
        assert all(f"Turn {number}" in llm.prompt("generate") for number in range(6))
        assert "Question" not in llm.prompt("generate")
        lines = [*one.api.lines, *two.api.lines]
        assert await one.api.stop() == 0
    written = json.dumps(lines, ensure_ascii=False)
    assert PASSWORD not in written
    assert quote(PASSWORD) not in written


async def test_a_host_that_dies_in_the_middle_of_a_turn_leaves_it_to_another(
    environment: dict[str, str], llm: FakeLLM, server: PostgresServer, tmp_path: Path
) -> None:
    """SIGKILL while the model answers: who waits on another host goes on from what was stored."""
    url = server.url()
    async with (
        host(environment, tmp_path / "one", url) as one,
        host(environment, tmp_path / "two", url) as two,
    ):
        assert (await one.ask("What is the KV cache?", "s")).status_code == 200
        llm.pause.clear()
        llm.paused.clear()
        dying = asyncio.create_task(one.ask("Lost?", "s"))
        await asyncio.wait_for(llm.paused.wait(), WAIT_S)
        routed = llm.kinds().count("route")
        waiting = asyncio.create_task(two.ask("And its memory?", "s"))
        await two.api.wait_for("chat_request")
        await asyncio.sleep(0.3)
        assert llm.kinds().count("route") == routed  # it waits before it does anything

        one.api.process.kill()
        await llm.seen("route", routed + 1)
        llm.pause.set()
        with pytest.raises(httpx2.TransportError):
            await dying
        async with asyncio.timeout(WAIT_S):
            answer = await waiting

    assert answer.status_code == 200
    prompt = llm.prompt("generate")
    assert "What is the KV cache?" in prompt
    assert "Lost?" not in prompt


async def test_workers_find_a_restarted_server_again(
    environment: dict[str, str], llm: FakeLLM, own_server: PostgresServer, tmp_path: Path
) -> None:
    """/ready says it is away, the workers live on, and what was remembered is there."""
    async with host(environment, tmp_path, own_server.url(), workers=2) as ours:
        assert (await ours.ask("What is the KV cache?", "s")).status_code == 200
        own_server.stop()
        ready = await ours.get("/ready")
        assert (ready.status_code, ready.json()["detail"]) == (503, "Not available: sessions")
        assert (await ours.get("/health")).status_code == 200

        own_server.start()
        async with asyncio.timeout(WAIT_S):
            while (await ours.get("/ready")).status_code != 200:  # noqa: ASYNC110  # it is polled
                await asyncio.sleep(0.2)
        async with asyncio.timeout(WAIT_S):
            # the other worker may have to find out for itself
            while (await ours.ask("And its memory?", "s")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    assert "What is the KV cache?" in llm.prompt("generate")
