""".ci/run's part about the real stack: what it says and what fails it.

`make` is replaced, because the suites it would run include this one; the rest is as committed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import stack_tools

ROOT = Path(__file__).parents[2]


def run_ci(folder: Path, *, test_stack: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """.ci/run with a `make` that only says its targets; `test_stack` is that target's exit code."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {
        "make": f'echo "make $*"\nif [ "$*" = test-stack ]; then exit {test_stack}; fi\n',
        "chromedriver": "",
    }.items():
        program = programs / name
        program.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
        program.chmod(0o755)
    path = f"{programs}:{env.pop('PATH', os.environ['PATH'])}"
    return subprocess.run(
        [ROOT / ".ci/run"],
        env={**os.environ, **env, "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_without_go_the_suite_is_reported_as_not_run(tmp_path: Path) -> None:
    # Only what the script itself needs, so that no Go is found wherever it lies.
    tools = tmp_path / "system"
    tools.mkdir()
    for name in ("bash", "sh", "env", "dirname", "timeout", "grep"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    done = run_ci(tmp_path, PATH=str(tools), SPANLOOM_STACK_TOOLS=str(tmp_path / "none"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "make test-stack" not in done.stdout.splitlines()
    assert "stack suite NOT RUN: there is no Go toolchain" in done.stdout.splitlines()[-1]
    assert f"jaeger {stack_tools.versions()['JAEGER_VERSION']}: NOT BUILT" in done.stdout


@pytest.mark.skipif(shutil.which("go") is None, reason="the build that is cut short needs Go")
def test_a_build_that_takes_too_long_is_cut_and_reported(tmp_path: Path) -> None:
    done = run_ci(tmp_path, CI_STACK_BUILD_BOX="1s", SPANLOOM_STACK_TOOLS=str(tmp_path / "none"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "make test-stack" not in done.stdout.splitlines()
    assert "stack suite NOT RUN: the programs were not built within 1s" in done.stdout


def test_with_the_programs_the_suite_runs_and_its_failure_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANLOOM_STACK_TOOLS", str(tmp_path / "tools"))
    for tool in stack_tools.tools():
        tool.path.parent.mkdir(parents=True, exist_ok=True)
        tool.path.write_text("", encoding="utf-8")
        tool.path.chmod(0o755)
        tool.stamp.write_text(tool.fingerprint, encoding="utf-8")
    for code, said in ((0, "stack suite: passed"), (2, "FAILED: the step after these")):
        (tmp_path / str(code)).mkdir()
        done = run_ci(tmp_path / str(code), test_stack=code)
        assert done.returncode == code
        assert "make test-stack" in done.stdout.splitlines()
        assert said in done.stdout.splitlines()[-1]
