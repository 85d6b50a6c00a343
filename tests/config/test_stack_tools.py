"""What `make stack-tools` says and does where Go is absent, stops short, or all is built."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import stack_tools

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "stack_tools.py"


def run(cache: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={"PATH": str(path), "SPANLOOM_STACK_TOOLS": str(cache), "HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


def go_that(folder: Path, script: str) -> Path:
    """A folder for PATH whose `go` is the given shell script."""
    folder.mkdir()
    go = folder / "go"
    go.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    go.chmod(0o755)
    return folder


def test_every_tool_is_named_where_there_is_no_go(tmp_path: Path) -> None:
    nothing = tmp_path / "empty"
    nothing.mkdir()
    done = run(tmp_path / "cache", nothing)
    assert done.returncode == 0, done.stderr
    assert "NOT BUILT" in done.stdout
    assert "no Go toolchain on PATH" in done.stdout
    for tool in stack_tools.tools():
        assert f"{tool.name} {tool.version}" in done.stdout


def test_a_module_that_is_refused_is_told_from_code_that_does_not_compile(tmp_path: Path) -> None:
    refused = go_that(tmp_path / "refused", "echo 'go: a/b@v1: reading: 403 Forbidden' >&2; exit 1")
    done = run(tmp_path / "cache", refused, "actionlint")
    assert done.returncode == stack_tools.NOT_HAD
    assert "403 Forbidden" in done.stdout
    broken = go_that(tmp_path / "broken", "echo '# a/b\nx.go:1:2: undefined: y' >&2; exit 1")
    done = run(tmp_path / "cache", broken, "actionlint")
    assert done.returncode == 1
    assert "undefined: y" in done.stdout


def test_one_failure_does_not_keep_the_others_from_being_built(tmp_path: Path) -> None:
    one_fails = go_that(
        tmp_path / "go",
        'case "$*" in *actionlint*) exit 1;; esac; echo "#!/bin/sh" > "$GOBIN/kustomize"\n'
        '/bin/chmod +x "$GOBIN/kustomize"',
    )
    cache = tmp_path / "cache"
    done = run(cache, one_fails, "actionlint", "kustomize")
    assert done.returncode == stack_tools.NOT_HAD
    assert "NOT BUILT: actionlint" in done.stdout
    assert [path.name for path in (cache / "bin").iterdir() if path.suffix != ".built-from"] == [
        f"kustomize-{stack_tools.versions()['KUSTOMIZE_VERSION']}"
    ]
    # What is there is not built again: this Go would fail.
    no_go = go_that(tmp_path / "no-go", "exit 1")
    again = run(cache, no_go, "kustomize")
    assert (again.returncode, again.stdout) == (0, f"stack tools: all 1 in {cache / 'bin'}\n")


def test_a_binary_from_other_sources_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANLOOM_STACK_TOOLS", str(tmp_path))
    tool = next(tool for tool in stack_tools.tools() if tool.name == "otelcol")
    tool.path.parent.mkdir()
    tool.path.write_text("", encoding="utf-8")
    tool.path.chmod(0o755)
    assert stack_tools.find("otelcol") is None
    tool.stamp.write_text(tool.fingerprint, encoding="utf-8")
    assert stack_tools.find("otelcol") == tool.path
    modules = tmp_path / "modules"
    (modules / "otelcol").mkdir(parents=True)
    for file in (stack_tools.MODULES / "otelcol").iterdir():
        (modules / "otelcol" / file.name).write_bytes(file.read_bytes() + b"\n")
    monkeypatch.setattr(stack_tools, "MODULES", modules)
    assert stack_tools.find("otelcol") is None


def test_modules_pin_the_releases_that_the_versions_file_names() -> None:
    """A binary named 0.161.0 that is built from another release would prove nothing."""
    release = stack_tools.versions()
    collector = (stack_tools.MODULES / "otelcol/go.mod").read_text(encoding="utf-8")
    tag = f"v{release['COLLECTOR_VERSION']}"
    assert f"go.opentelemetry.io/collector/otelcol {tag}\n" in collector
    contrib = [line for line in collector.splitlines() if "collector-contrib/" in line]
    direct = [line for line in contrib if "//" not in line and "=>" not in line]
    assert direct
    assert {line.split()[1] for line in direct} == {tag}
    loki = (stack_tools.MODULES / "loki/go.mod").read_text(encoding="utf-8")
    assert f"github.com/grafana/loki/v3 v{release['LOKI_VERSION']} " in loki
    # Jaeger 2.N is released as Go module 1.(N+63): 2.13.0 is v1.76.0.
    jaeger = (stack_tools.MODULES / "jaeger/go.mod").read_text(encoding="utf-8")
    _, minor, patch = release["JAEGER_VERSION"].split(".")
    assert f"github.com/jaegertracing/jaeger v1.{int(minor) + 63}.{patch} " in jaeger


def test_no_module_lists_where_it_is_downloaded() -> None:
    for file in stack_tools.MODULES.glob("*/*"):
        assert "proxy." not in file.read_text(encoding="utf-8"), file
