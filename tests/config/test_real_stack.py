"""`make stack`: what it would start, what it says where it cannot, and its guide."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import real_stack, stack_tools
from spanloom import ports
from spanloom.errors import ConfigurationError
from spanloom.server.reap import REAP_AFTER_S

ROOT = Path(__file__).parents[2]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which every program counts as built; none is started here."""
    monkeypatch.setenv("SPANLOOM_STACK_TOOLS", str(tmp_path))
    for tool in stack_tools.tools():
        tool.path.parent.mkdir(parents=True, exist_ok=True)
        tool.path.write_text("", encoding="utf-8")
        tool.path.chmod(0o755)
        tool.stamp.write_text(tool.fingerprint, encoding="utf-8")


@pytest.mark.usefixtures("built")
def test_each_program_listens_where_its_configuration_says() -> None:
    files = {
        "prometheus": "prometheus/prometheus.yml",
        "loki": "loki/loki.yaml",
        "jaeger": "jaeger/config.yaml",
        "collector": "otel-collector.yaml",
    }
    guide = (ROOT / "docs/stack.md").read_text(encoding="utf-8")
    parts = real_stack.programs()
    assert [part.name for part in parts] == [*files, "reap"]
    assert parts[-1].listens == (ports.REAP_OTLP_HTTP, ports.REAP_HTTP)
    assert all(str(port) in guide for port in parts[-1].listens)
    assert "COLLECTOR_REAP" not in {name for part in parts for name in part.env}
    for part in parts[:-1]:
        text = (ROOT / files[part.name]).read_text(encoding="utf-8")
        assert any(files[part.name] in argument for argument in part.command), part.command
        health = re.search(r":(\d+)", part.health)
        assert health is not None
        assert int(health[1]) in part.listens
        for port in part.listens:
            assert re.search(rf"\b{port}\b", text), f"{port} is not in {files[part.name]}"
            assert re.search(rf"\b{port}\b", guide), f"{port} is not in docs/stack.md"


def test_the_service_gets_the_one_setting_and_nothing_else_of_telemetry() -> None:
    parts, request = real_stack.service()
    assert {part.name for part in parts} >= {"api", "retrieval", "offline-llm"}
    for part in parts:
        telemetry = {name for name in part.env if name.startswith("OTEL_")}
        assert telemetry == {"OTEL_EXPORTER_OTLP_ENDPOINT"}
        assert float(part.env["SPANLOOM_REAPED_AFTER"]) == REAP_AFTER_S
    assert "traceparent: 00-" in request


def test_a_taken_port_is_named_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        part = real_stack.Part("loki", [], "", "", (port,))
        with pytest.raises(ConfigurationError, match=f"port {port}, which loki needs, is held by"):
            real_stack.require_free([part])


def test_without_the_programs_it_says_how_to_get_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.real_stack"],
        env={**os.environ, "SPANLOOM_STACK_TOOLS": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "make stack-tools" in done.stderr + done.stdout
