"""scripts/setup.sh speaks in sentences when it cannot go on, and costs nothing when done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-ui.lock", "requirements-dev.lock")
COREUTILS = ("sh", "dirname", "cat", "cksum", "tr", "grep")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without .venv, in a path with a space."""
    copy = tmp_path / "a checkout"
    (copy / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, copy / name)
    return copy


def path_with(tmp_path: Path, **programs: str) -> str:
    """A PATH that holds the core utilities and the given shell scripts, nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COREUTILS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    for name, body in programs.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    return str(folder)


def run_setup(
    checkout: Path, path: str, mode: str = "run", **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "scripts/setup.sh", mode],
        cwd=checkout,
        env={"PATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
    )


# Answers the script's two questions as Python 3.9 would.
PYTHON_3_9 = 'case "$*" in *exit*) exit 1;; *) echo 3.9;; esac'


def test_a_python_that_is_too_old_gets_a_sentence(checkout: Path, tmp_path: Path) -> None:
    """The message names what is needed, what was found and what to do."""
    done = run_setup(checkout, path_with(tmp_path, python3=PYTHON_3_9))

    assert done.returncode == 2
    assert "Spanloom needs Python 3.11 or newer: python3 is 3.9" in done.stderr
    assert "make run PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all_gets_a_sentence(checkout: Path, tmp_path: Path) -> None:
    done = run_setup(checkout, path_with(tmp_path))

    assert done.returncode == 2
    assert "no python found" in done.stderr


def test_a_named_interpreter_is_not_replaced_by_another(checkout: Path, tmp_path: Path) -> None:
    """PYTHON= that does not work fails, though a good python3 is on the PATH."""
    done = run_setup(checkout, os.environ["PATH"], PYTHON=str(tmp_path / "no such python"))

    assert done.returncode == 2
    assert "no such python is not a working Python" in done.stderr


def test_an_unknown_mode_is_a_usage_error(checkout: Path) -> None:
    done = run_setup(checkout, os.environ["PATH"], mode="everything")

    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_with_hashes_and_names_no_address(lock: str) -> None:
    """Every requirement carries a hash; where packages come from is the installer's business."""
    lines = (ROOT / lock).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]

    assert len(pins) > 50
    assert all("==" in pin and pin.endswith("\\") for pin in pins)
    assert not [line for line in lines if "://" in line]
    assert sum("--hash=sha256:" in line for line in lines) >= len(pins)


def test_each_lock_contains_the_one_before() -> None:
    """Tests run against the versions that are shipped, and whoever has them needs no other set."""

    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.rstrip(" \\") for line in lines if "==" in line and not line.startswith(" ")}

    run, ui, dev = (pins(lock) for lock in LOCKS)
    assert run < ui < dev


def test_tests_of_a_group_share_a_process(tmp_path: Path) -> None:
    """What the first of them starts serves all: a runner that ignores groups says nothing of it."""
    (tmp_path / "test_grouped.py").write_text(
        "import os, pathlib, pytest\n"
        "@pytest.mark.xdist_group('one')\n"
        "@pytest.mark.parametrize('number', range(9))\n"
        "def test_which(number):\n"
        "    pathlib.Path(__file__).with_name(os.environ['PYTEST_XDIST_WORKER']).touch()\n",
        encoding="utf-8",
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"^PYTEST_ARGS \?= (.+)$", makefile, re.MULTILINE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider"),
            *(f"--rootdir={tmp_path}", *arguments.split(), str(tmp_path)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout
    assert len(list(tmp_path.glob("gw*"))) == 1
