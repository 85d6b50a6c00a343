"""The Dockerfile: what it says, and what its own commands make and run (see containers.py)."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from service.settings import Settings
from spanloom.sources.http import HttpReader
from tests.deploy.containers import READY_S, Builder, Container, container, why_not
from tests.deploy.dockerfile import (
    ROOT,
    healthcheck,
    ignore_patterns,
    is_ignored,
    stages,
)
from tests.free_ports import free_port

pytestmark = pytest.mark.xdist_group("image")

MODEL_LOAD_S = 30
SECRET = "sk-planted-in-the-build-context"


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("hadolint")

    done = subprocess.run(
        [program, "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_hadolint_would_object(tmp_path: Path) -> None:
    """The check can fail: a moving tag and an unpinned package are found."""
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN apt-get install curl\n")

    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), tmp_path / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_every_base_image_is_a_full_version() -> None:
    external = {stage.base for stage in stages().values()} - set(stages())

    assert external
    for image in external:
        assert re.search(r":\d+\.\d+\.\d+(-|$)", image), image
    assert any(re.fullmatch(r"python:3\.12\.\d+-slim-\w+", image) for image in external)


@pytest.mark.parametrize("name", ["agent", "chat"])
def test_the_start_period_covers_a_model_load(name: str) -> None:
    """A container that loads for 30 s is not called unhealthy, and a ready one at once healthy."""
    times = healthcheck(stages()[name]).times

    assert times["start-period"] > MODEL_LOAD_S
    assert times["start-interval"] < times["interval"]


def test_the_grace_outlasts_the_deadline() -> None:
    """A request that was accepted may use its whole deadline before the process ends."""
    agent = [word for each in stages()["agent"].instructions for word in each.text.split()]
    (grace,) = (word for word in agent if word.startswith("AGENT_SHUTDOWN_GRACE_S="))

    assert float(grace.partition("=")[2]) > Settings.model_fields["deadline_s"].default
    assert "AGENT_WORKERS=4" in agent


@pytest.mark.parametrize(
    "path",
    [".env", ".env.example", "service/.env", "service/agent/.env.local", "tls.pem", "a/b/c.key",
     ".git/config", "var/sessions.sqlite", "tests/builders.py", "service/__pycache__/x.pyc",
     "deploy/versions.env", ".venv/bin/python"],
)  # fmt: skip
def test_the_context_leaves_out(path: str) -> None:
    assert is_ignored(path, ignore_patterns())


@pytest.mark.parametrize("path", ["service/app.py", "spanloom/py.typed", "requirements.lock"])
def test_the_context_sends(path: str) -> None:
    assert not is_ignored(path, ignore_patterns())


# What follows builds and runs.


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """The Dockerfile's commands, on a copy of the checkout that also holds what must stay out."""
    if reason := why_not():
        pytest.skip(reason)
    context = tmp_path_factory.mktemp("context")
    for name in ("service", "spanloom"):
        shutil.copytree(ROOT / name, context / name)
    for file in (*ROOT.glob("requirements*.lock"), ROOT / "pyproject.toml", ROOT / "README.md",
                 ROOT / "LICENSE", ROOT / ".dockerignore"):  # fmt: skip
        shutil.copy(file, context)
    for planted in (".env", "service/.env", "service/agent/.env.production", "spanloom/tls.key"):
        (context / planted).write_text(f"OPENAI_API_KEY={SECRET}\n")
    made = Builder(context)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_image_holds_what_runs_and_no_secret(builder: Builder) -> None:
    """The very RUN and COPY commands build it; the planted keys are not in it."""
    builder.build("agent")
    written = builder.written("agent")

    assert "/opt/agent/bin/spanloom" in written
    assert "/app/service/app.py" in written
    assert any(re.fullmatch(r"/app/service/__pycache__/app\.cpython-312\.pyc", f) for f in written)
    assert not [file for file in written if ".env" in Path(file).name or file.endswith(".key")]
    found = builder.inside(f"grep -rl -e {SECRET} /mnt/agent/upper /mnt/build/upper || true")
    assert not found
    assert not [file for file in written if re.search(r"/(streamlit|pytest|ruff|mypy)/", file)]


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_as_a_container_it_answers_drains_and_flushes(builder: Builder, tmp_path: Path) -> None:
    """Four workers, uid 1000, a root nobody may write: SIGTERM in a request loses nothing."""
    ports = {name: free_port() for name in ("api", "retrieval", "llm", "grpc", "http", "query")}
    common = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports['http']}",
        "AGENT_RETRIEVAL_URL": f"http://127.0.0.1:{ports['retrieval']}",
        "AGENT_OFFLINE_LLM_PORT": str(ports["llm"]),
        # 20 tokens a second: a question takes seconds
        "AGENT_OFFLINE_LLM_TOKENS_PER_S": "20",
        "AGENT_API_HOST": "127.0.0.1",
        "AGENT_API_PORT": str(ports["api"]),
        "AGENT_DEADLINE_S": "100",
        "AGENT_LLM_TIMEOUT_S": "90",
        "AGENT_SHUTDOWN_GRACE_S": "110",
        "SPANLOOM_SPOOL_DIR": "/data/spool",
    }

    def run(name: str, *command: str) -> contextlib.AbstractContextManager[Container]:
        return container(builder, "agent", tmp_path / name, [*command] or None, **common)

    with (
        run("backend", "spanloom", "serve", "--data-dir", "/data",
            "--otlp-grpc-port", str(ports["grpc"]), "--otlp-http-port", str(ports["http"]),
            "--query-port", str(ports["query"])) as _,
        run("retrieval", "python", "-m", "service.retrieval", "serve",
            "--port", str(ports["retrieval"])) as _,
        run("llm", "python", "-m", "service.llm", "serve") as _,
        run("api") as api,
        httpx2.Client(base_url=f"http://127.0.0.1:{ports['api']}", timeout=120) as client,
    ):  # fmt: skip
        check = healthcheck(builder.stage("agent")).command
        wait_until(lambda: api.execute(check).returncode == 0, api)
        wait_until(lambda: ready(client), api)
        wait_until(lambda: workers(api) == 4, api)
        assert "Uid:\t1000\t1000\t1000\t1000" in Path(f"/proc/{api.pid}/status").read_text()
        # it is the first process, which no default action ends
        assert "service.app" in api.execute(["cat", "/proc/1/cmdline"]).stdout
        for folder in ("/app", "/opt/agent", "/etc", "/"):
            refused = api.execute(["touch", f"{folder}/written"])
            assert "Read-only file system" in refused.stderr, folder
        # the folders' owner is who runs, so this is no question of permissions only
        assert "Read-only file system" in api.execute(["touch", "/app/written"], user=0).stderr

        answers: list[httpx2.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                client.post("/chat", json={"query": "What does a KV cache save?"})
            )
        )
        asking.start()
        wait_until(lambda: active(ports["api"]) == 1, api)
        status = api.stop(wait_s=150)
        asking.join(timeout=150)

        assert answers, "the request was cut off"
        assert answers[0].status_code == 200, answers[0].text
        assert status == 0, api.log.read_text()
        with pytest.raises(httpx2.ConnectError):
            client.get("/health")
        trace_id = answers[0].json()["trace_id"]
        reader = HttpReader(f"http://127.0.0.1:{ports['query']}")
        # its last span ended while the process was being stopped
        trace = reader.get_trace(trace_id)
        assert trace is not None
        (root,) = trace.roots()
        assert root.span.name == "POST /chat"
        assert {"agent-api", "retrieval", "offline-llm"} <= {
            str(span.resource.attributes["service.name"]) for span in trace.spans
        }
        assert not [span for span in trace.spans if span.attributes.get("spanloom.incomplete")]
        stored = {path.name for path in (tmp_path / "api").iterdir()}
        assert {"sessions.sqlite", "spool"} <= stored
        assert "prometheus" not in stored


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_sessions_in_postgresql_need_nothing_of_the_base_image(builder: Builder) -> None:
    """A slim image has no libpq: the driver brings its own."""
    root = builder.build("agent")

    program = (
        "import langgraph.checkpoint.postgres, psycopg_pool, psycopg; print(psycopg.pq.__impl__)"
    )
    printed = builder.inside(f"chroot {root} /opt/agent/bin/python -c '{program}'")

    assert printed.strip() == "binary"


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_chat_page_has_an_image_that_serves_and_stops(builder: Builder, tmp_path: Path) -> None:
    port = free_port()
    env = {"AGENT_CHAT_HOST": "127.0.0.1", "AGENT_CHAT_PORT": str(port)}
    *check, url = healthcheck(builder.stage("chat")).command

    with container(builder, "chat", tmp_path / "chat", **env) as chat:
        here = url.replace(":8501/", f":{port}/")
        assert here != url
        wait_until(lambda: chat.execute([*check, here]).returncode == 0, chat)
        page = httpx2.get(f"http://127.0.0.1:{port}/", timeout=60)
        status = chat.stop(wait_s=60)

    assert page.status_code == 200
    assert "Streamlit" in page.text
    assert status == 0, chat.log.read_text()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_an_unhealthy_container_says_why(builder: Builder, tmp_path: Path) -> None:
    with container(builder, "agent", tmp_path / "none", ["sleep", "60"]) as idle:
        done = idle.execute(healthcheck(builder.stage("agent")).command)

    assert done.returncode == 1
    assert "http://127.0.0.1:8000/health: " in done.stderr


def wait_until(condition: Callable[[], bool], what: Container) -> None:
    end = time.monotonic() + READY_S
    while not condition():
        assert what.process.poll() is None, what.log.read_text()
        assert time.monotonic() < end, what.log.read_text()
        time.sleep(0.2)


def ready(client: httpx2.Client) -> bool:
    return client.get("/ready").status_code == 200


def workers(api: Container) -> int:
    lines = (json.loads(line) for line in api.log.read_text().splitlines() if line.startswith("{"))
    return sum(line["event"] == "Application startup complete." for line in lines)


def active(port: int) -> float:
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("agent_active_requests")
    )
