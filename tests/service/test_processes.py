import asyncio
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest

from service.settings import Settings
from tests.service.api_process import ROOT, SECONDS_TO_START, running
from tests.service.loopback import USAGE, FakeLLM, FakeRetrieval, serving


def counting_processes(folder: Path) -> set[str]:
    return {file.stem.rpartition("_")[2] for file in folder.rglob("prometheus/*/counter_*.db")}


async def test_workers_share_port_metrics_sessions_and_end_together(
    llm: FakeLLM, retrieval: FakeRetrieval, tmp_path: Path
) -> None:
    """Two workers look like one service: no cross-talk, sums, one memory, a clean end."""
    async with (
        serving() as serve,
        running(
            AGENT_WORKERS="2",
            AGENT_LLM_PROVIDER="openai_compatible",
            AGENT_LLM_BASE_URL=f"{await serve(llm.app)}/v1",
            AGENT_LLM_MODEL="test-large",
            AGENT_LLM_SMALL_MODEL="test-small",
            AGENT_RETRIEVAL_URL=await serve(retrieval.app),
            AGENT_DATA_DIR=str(tmp_path / "data folder"),
        ) as api,
    ):
        listening = await api.wait_for("api_listening")
        await api.wait_for("Application startup complete.", count=2)
        url = f"http://127.0.0.1:{listening['port']}"
        async with httpx2.AsyncClient(
            base_url=url,
            timeout=60,
            trust_env=False,
            # each request on a connection of its own, so that both workers get some
            limits=httpx2.Limits(max_keepalive_connections=0),
        ) as client:

            async def ask(query: str, session: str) -> httpx2.Response:
                return await client.post("/chat", json={"query": query, "session_id": session})

            answers = await asyncio.gather(*(ask(f"Question {n}", f"s-{n}") for n in range(20)))
            for number in range(6):
                await ask(f"Turn {number}", "one")

            async def counted() -> set[str]:
                """What four scrapes say, each of either worker."""
                return {
                    line.rpartition(" ")[2]
                    for _ in range(4)
                    for line in (await client.get("/metrics")).text.splitlines()
                    if line.startswith("agent_requests_total{") and 'status="200"' in line
                }

            async with asyncio.timeout(SECONDS_TO_START):
                # A request is counted after its answer has left.
                while (sums := await counted()) != {"26.0"}:  # noqa: ASYNC110 - by other processes
                    await asyncio.sleep(0.05)
        counting = counting_processes(tmp_path)
        code = await api.stop()

    assert {answer.status_code for answer in answers} == {200}
    bodies = [answer.json() for answer in answers]
    assert len({body["trace_id"] for body in bodies}) == 20
    assert {body["tokens_used"] for body in bodies} == {4 * USAGE["total_tokens"]}
    assert sums == {"26.0"}
    assert len(counting) == 2
    assert all(f"Turn {number}" in llm.prompt("generate") for number in range(6))
    responses = [line for line in api.lines if line["event"] == "chat_response"]
    assert {body["trace_id"] for body in bodies} <= {line["trace_id"] for line in responses}
    assert code == 0
    assert list((tmp_path / "data folder" / "prometheus").iterdir()) == []


def test_a_full_collection_looks_at_no_import_again(tmp_path: Path) -> None:
    """It would hold all requests up; an application made for a test is left as it is."""
    script = """
import gc, sys
from service.app import create_app
from service.settings import get_settings
create_app(get_settings())
before = gc.get_freeze_count()
create_app()
gc.collect()
print(before, len(gc.get_objects()) < gc.get_freeze_count() / 10)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"AGENT_DATA_DIR": str(tmp_path), "OTEL_SDK_DISABLED": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines()[-1].split() == ["0", "True"]


async def run(*arguments: str, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.app", *arguments),
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS_TO_START):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_a_taken_port_is_one_sentence_that_says_what_to_do() -> None:
    """No traceback: the port, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code, errors = await run("--port", str(port))

    assert code == 1
    assert str(port) in errors
    assert "AGENT_API_PORT" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--port", "99999"], {}, "99999"),
        (["--port", "0", "--host", "no.such.host.invalid"], {}, "no.such.host.invalid"),
        ([], {"AGENT_LLM_PROVIDER": "openai"}, "OPENAI_API_KEY"),
        ([], {"AGENT_LLM_PROVIDER": "anthropic"}, "ANTHROPIC_API_KEY"),
        ([], {"AGENT_LLM_BASE_URL": "http://127.0.0.1:9/v1"}, "AGENT_LLM_MODEL"),
        ([], {"AGENT_API_PORT": "abc"}, "AGENT_API_PORT"),
        ([], {"AGENT_CORS_ORIGINS": "http://x"}, "cors_origins"),
        ([], {"AGENT_DATA_DIR": "/dev/null/var"}, "AGENT_DATA_DIR"),
    ],
)
async def test_a_setting_that_cannot_work_is_one_sentence(
    arguments: list[str], environment: dict[str, str], named: str
) -> None:
    """It names the setting, without a traceback, and the exit status says that nothing ran."""
    nothing = {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""}
    code, errors = await run(*arguments, **nothing, **environment)

    assert code == 1
    assert named in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("mysql://user:hunter2@host/db", "sqlite:///"),
        ("postgresql://user:hunter2@127.0.0.1:9/db", "AGENT_DATABASE_START_S"),
    ],
)
async def test_a_database_that_cannot_work_is_one_sentence(url: str, way_out: str) -> None:
    """The start fails before any worker's, and says what works."""
    code, errors = await run("--port", "0", DATABASE_URL=url, AGENT_DATABASE_START_S="0")

    assert code == 1
    assert way_out in errors
    assert "hunter2" not in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 2  # what is waited for, and that it was in vain


def test_the_process_list_agrees_with_the_settings() -> None:
    """Ports and their variables are the ones the settings know, and all modules exist."""
    listed = tomllib.loads((ROOT / "service" / "processes.toml").read_text())["process"]
    settings = Settings(_env_file=None)
    fields = {"retrieval": "retrieval_port", "offline-llm": "offline_llm_port", "api": "api_port"}

    assert {process["name"] for process in listed} == set(fields)
    for process in listed:
        field = fields[process["name"]]
        assert process["port"] == getattr(settings, field)
        assert process["port_env"] == f"AGENT_{field.upper()}"
        module = process["command"][2].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists()
