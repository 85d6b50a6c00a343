"""What .ci/run says about the suites it could not run, and what fails it.

The suites themselves are replaced (`make`, and the test of LangGraph's versions), because they
include this one and take minutes; the rest is as committed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scripts import stack_tools

ROOT = Path(__file__).parents[2]


def run_ci(
    folder: Path, *, test_stack: int = 0, versions: int = 0, go: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """.ci/run with a `make` that only says its targets.

    `test_stack` and `versions` are the exit codes of the stack suite and of the versions' test;
    `go` is what stands for the Go toolchain.
    """
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {
        "make": f'echo "make $*"\nif [ "$*" = test-stack ]; then exit {test_stack}; fi\n',
        "test-versions": f'echo "test of the versions"\nexit {versions}\n',
        "chromedriver": "",
        "sshd": "",
        **({} if go is None else {"go": go}),
    }.items():
        program = programs / name
        program.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
        program.chmod(0o755)
    path = f"{programs}:{env.pop('PATH', os.environ['PATH'])}"
    process = subprocess.Popen(
        [ROOT / ".ci/run"],
        env={
            **os.environ,
            "CI_VERSIONS_TEST": str(programs / "test-versions"),
            **env,
            "PATH": path,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=100)
    finally:
        # With everything it started: a suite left running would slow down all that follow.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def bare(folder: Path) -> str:
    """A PATH with only what the script itself needs, so that no Go is found wherever it lies."""
    tools = folder / "system"
    tools.mkdir()
    for name in ("bash", "sh", "env", "dirname", "timeout", "grep", "mktemp", "cat", "rm"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    return str(tools)


def test_without_go_the_suite_is_reported_as_not_run(tmp_path: Path) -> None:
    done = run_ci(tmp_path, PATH=bare(tmp_path), SPANLOOM_STACK_TOOLS=str(tmp_path / "none"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "make test-stack" not in done.stdout.splitlines()
    assert "stack suite NOT RUN: there is no Go toolchain" in done.stdout
    assert f"jaeger {stack_tools.versions()['JAEGER_VERSION']}: NOT BUILT" in done.stdout


def test_a_build_that_takes_too_long_is_cut_and_reported(tmp_path: Path) -> None:
    """Not the real Go: refused by a module proxy, it may end within the second."""
    done = run_ci(
        tmp_path,
        go="exec sleep 300\n",
        CI_STACK_BUILD_BOX="1s",
        SPANLOOM_STACK_TOOLS=str(tmp_path / "none"),
    )
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
        assert said in done.stdout


@pytest.mark.parametrize(
    ("code", "said", "fails"),
    [
        (0, "oldest and newest LangGraph: passed", False),
        (3, "oldest and newest LangGraph NOT RUN", False),
        (1, "FAILED: the step after these (exit code 1)", True),
    ],
)
def test_a_version_that_fails_is_a_failure_and_an_unreachable_registry_is_none(
    tmp_path: Path, code: int, said: str, fails: bool
) -> None:
    done = run_ci(
        tmp_path, versions=code, SPANLOOM_STACK_TOOLS=str(tmp_path / "none"), PATH=bare(tmp_path)
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    assert "test of the versions" in done.stdout.splitlines()
    assert said in done.stdout
