"""deploy/modal/app.py with the real `modal`: what it registers, and its container on loopback."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.settings import Settings
from tests.deploy.apart import package
from tests.deploy.dockerfile import ROOT
from tests.free_ports import free_port
from tests.service.test_settings import environment_name
from tests.stack.programs import Program
from tests.telemetry.live import Receiver

# Twice as long as a busy machine took, and the package is fetched once.
pytestmark = [pytest.mark.xdist_group("modal"), pytest.mark.timeout(400)]

FILE = ROOT / "deploy/modal/app.py"
TEXT = FILE.read_text(encoding="utf-8")
README = (FILE.parent / "README.md").read_text(encoding="utf-8")
PYTHONPATH = "PYTHONPATH"


@pytest.fixture(scope="module")
def modal() -> Path:
    """Folder with the release that the file was written for, and what it needs."""
    return package("modal", "1.6.4", dependencies=True)


def argument(name: str) -> Any:
    """A keyword of `app.cls(…)` or `modal.concurrent(…)`, by its literal."""
    found = [
        ast.literal_eval(keyword.value)
        for node in ast.walk(ast.parse(TEXT))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == name
    ]
    assert len(found) == 1, name
    return found[0]


# --- what is deployed -----------------------------------------------------------------------------


def asked(modal: Path, code: str, folder: Path) -> str:
    """What a Python that has only `modal` prints, as on the machine of whoever deploys."""
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", code],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), PYTHONPATH: f"{modal}"},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def load(path: Path) -> str:
    return (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('app', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['app'] = module\n"
        "spec.loader.exec_module(module)\n"
    )


def test_it_registers_the_service_and_its_web_endpoint(modal: Path, tmp_path: Path) -> None:
    """Without the service's own packages, which the deploying machine need not have."""
    code = load(FILE) + (
        "app = module.app\n"
        "print(app.name, *app.registered_classes, *app.registered_web_endpoints)\n"
        "print('service' in sys.modules or 'spanloom' in sys.modules)"
    )

    assert asked(modal, code, tmp_path).splitlines() == ["spanloom Service Service.api", "False"]


def test_a_container_reads_it_where_there_is_no_checkout(modal: Path, tmp_path: Path) -> None:
    """Alone in its folder; the commit is the image's, nothing asks git."""
    alone = tmp_path / "app.py"
    alone.write_text(TEXT, encoding="utf-8")
    remote = "import modal\nmodal.is_local = lambda: False\n"
    code = remote + load(alone) + "print(module.ROOT, repr(module._revision()))"

    assert asked(modal, code, tmp_path) == "/root ''"


def test_the_image_holds_what_is_locked_and_all_of_the_sources() -> None:
    assert "--require-hashes" in TEXT
    for name in ("requirements.lock", "service", "spanloom"):
        assert (ROOT / name).exists()
        assert f'ROOT / "{name}"' in TEXT
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "classifiers"
    ]
    assert f"Programming Language :: Python :: {argument('python_version')}" in classifiers
    for pattern in (".env", "__pycache__"):
        assert any(pattern in left_out for left_out in re.findall(r'"(\*\*/[^"]+)"', TEXT))


def test_the_deadline_is_the_services_and_the_guide_prices_this_size() -> None:
    assert argument("timeout") > Settings.model_fields["deadline_s"].default
    assert argument("enable_memory_snapshot") is False
    guide = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    cores, gib = argument("cpu"), argument("memory") / 1024
    assert f"{cores:g} × 0.0000131 + {gib:g} × 0.00000222 USD a second" in guide
    connections = Settings.model_fields["database_pool_size"].default + 1
    assert argument("max_containers") * connections <= 90


def test_settings_exist_and_secrets_are_only_named() -> None:
    known = {environment_name(field) for field in Settings.model_fields}
    known |= {f"AGENT_{field.upper()}" for field in Settings.model_fields}
    named = set(re.findall(r'"(AGENT_\w+)"', TEXT))
    assert named
    assert named <= known
    for name in argument("required_keys"):
        assert f"{name}=" in README
    assert not re.search(r"sk-\w+|postgres(ql)?://", TEXT)


# --- its container --------------------------------------------------------------------------------


@contextmanager
def container(modal: Path, folder: Path, **env: str) -> Iterator[Program]:
    """The class as Modal runs it: retrieval and the API, against the offline LLM."""
    api, retrieval, llm = (free_port() for _ in range(3))
    given = {
        "AGENT_DATA_DIR": str(folder / "data"),
        "AGENT_RETRIEVAL_PORT": str(retrieval),
        "AGENT_OFFLINE_LLM_PORT": str(llm),
        "SPANLOOM_TRUST": "none",
    }
    (folder / "data").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("modal_container.py"))]
    url = f"http://127.0.0.1:{api}"
    with ExitStack() as started:
        started.enter_context(
            Program(
                "offline-llm", [sys.executable, "-m", "service.llm", "serve"], folder,
                f"http://127.0.0.1:{llm}/health", given,
            )
        )  # fmt: skip
        yield started.enter_context(
            Program(
                "container", [*command, str(modal), str(api)], folder, f"{url}/health",
                given | {PYTHONPATH: str(ROOT)} | env,
            )
        )  # fmt: skip


def test_a_question_is_answered_and_traced_through_both_processes(
    modal: Path, tmp_path: Path
) -> None:
    """And all of it is sent by the time the container has ended."""
    receiver = Receiver()
    try:
        with container(modal, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url) as running:
            url = running.health.removesuffix("/health")
            stranger = "00-11111111111111111111111111111111-2222222222222222-01"
            answer = httpx2.post(
                f"{url}/chat", json={"query": "KV cache 节省了什么?"},
                headers={"traceparent": stranger}, timeout=60, trust_env=False,
            )  # fmt: skip
            assert answer.status_code == 200, answer.text
        spans = list(receiver.spans)
    finally:
        receiver.close()
    (root,) = [span for span in spans if span.name == "POST /chat"]
    assert root.trace_id.hex() != "1" * 32, "a stranger chose the trace"
    ids = {span.span_id for span in spans if span.trace_id == root.trace_id}
    searched = [span for span in spans if span.name == "POST /search"]
    assert searched
    assert {span.trace_id for span in searched} == {root.trace_id}
    assert {span.parent_span_id for span in searched} <= ids
    assert {each["service.name"] for each in receiver.resources} >= {"agent-api", "retrieval"}


def test_retrieval_that_cannot_start_fails_the_container_and_says_why(
    modal: Path, tmp_path: Path
) -> None:
    """Modal starts another one; nobody is sent to this."""
    with pytest.raises(AssertionError, match="retrieval did not start"):  # noqa: SIM117  # in order
        with container(modal, tmp_path, AGENT_CORPUS_PATH=str(tmp_path / "没有")):
            pass
    log = (tmp_path / "container.log").read_text(encoding="utf-8")
    assert "没有" in log
