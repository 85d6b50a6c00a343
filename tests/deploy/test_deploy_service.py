"""The real API behind the gate: what deploy/on-host asks is what the service answers."""

import re
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from tests.deploy.host import Host, fake_host, wait_until
from tests.free_ports import free_port
from tests.stack.programs import ROOT, Program

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform != "linux", reason="the host's side needs Linux"),
]
GATE_S = 45
"""For the release that will not pass it; the one before is in service again in less."""
TOKENS_PER_S = 25
"""An answer takes some seconds: long enough to be there while the next release comes."""


def push(host: Host, **env: str) -> str:
    """A release whose image is the service of this checkout."""
    commit = host.release(pushed=False)
    exporters = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    program = [sys.executable, "-m", "service.app"]
    # as the image sets them
    of_image = {"AGENT_REVISION": commit, "AGENT_SHUTDOWN_GRACE_S": "35"}
    host.push(commit, program, **of_image, **exporters, **env)
    return commit


def test_a_question_outlives_a_deploy_and_a_release_without_retrieval_is_rolled_back(
    tmp_path: Path,
) -> None:
    ports = {"AGENT_RETRIEVAL_PORT": str(free_port()), "AGENT_OFFLINE_LLM_PORT": str(free_port())}
    shared = {**ports, "AGENT_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    speed = {"AGENT_OFFLINE_LLM_TOKENS_PER_S": str(TOKENS_PER_S)}
    retrieval, llm = (
        Program(
            name,
            [sys.executable, "-m", f"service.{name}", "serve"],
            tmp_path / name,
            f"http://127.0.0.1:{port}/health",
            shared | speed,
        )
        for name, port in zip(("retrieval", "llm"), ports.values(), strict=True)
    )
    with fake_host(tmp_path / "host") as host, retrieval, llm:
        api = f"http://127.0.0.1:{host.port}"

        def get(path: str) -> httpx2.Response:
            return httpx2.get(f"{api}{path}", timeout=30, trust_env=False)

        first, second = push(host, **shared), push(host, **shared)
        done = host.run("deploy", first)
        assert done.returncode == 0, done.stdout + done.stderr
        assert get("/health").json()["revision"] == first

        answers: list[httpx2.Response] = []

        def ask() -> None:
            body = {"query": "什么是 KV 缓存？"}
            answers.append(httpx2.post(f"{api}/chat", json=body, timeout=60, trust_env=False))

        caller = threading.Thread(target=ask)
        caller.start()
        wait_until(lambda: in_flight(get("/metrics").text), "the question is at work")
        done = host.run("deploy", second)
        caller.join()
        assert done.returncode == 0, done.stdout + done.stderr
        assert [answer.status_code for answer in answers] == [200]
        assert answers[0].json()["answer"]
        assert get("/health").json()["revision"] == second

        bad = push(host, **shared | {"AGENT_RETRIEVAL_PORT": str(free_port())})
        done = host.run("deploy", bad, gate=GATE_S)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "/ready: curl: (22)" in done.stdout
        assert "503" in done.stdout
        assert get("/health").json()["revision"] == second
        assert get("/ready").status_code == 200


def in_flight(metrics: str) -> bool:
    """Whether a request has not been answered yet."""
    values = re.findall(r"^agent_active_requests(?:{.*})? (\S+)", metrics, re.MULTILINE)
    return sum(map(float, values)) > 0
