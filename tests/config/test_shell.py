"""Every shell script of the repository, read by ShellCheck with all its findings on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def scripts() -> list[str]:
    """By their first line, not by a list that somebody would have to keep."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    found = []
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if file.is_file() and file.suffix in {"", ".sh"}:
            first, _, rest = file.read_text(encoding="utf-8").partition("\n")
            if (first.startswith("#!") and first.endswith("sh")) or "shellcheck shell=" in rest:
                found.append(name)
    return found


def check(*files: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SHELLCHECK, "--external-sources", "--severity=style", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", scripts())
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    done = check(script)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_are_found_and_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("#!/bin/sh\nrm -rf $1\n")

    assert {".ci/run", "scripts/setup.sh", "deploy/deploy", "deploy/on-host"} < set(scripts())
    done = check(tmp_path / "bad")
    assert done.returncode == 1
    assert "SC2086" in done.stdout
