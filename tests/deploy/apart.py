"""Packages that a test needs and nobody else: installed outside of the project's environment.

Each lies in the user's cache folder under its exact version, is made once and used again. Where the
package cannot be had, for want of a network, the test is skipped and says so.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def package(name: str, version: str, *, keep: str = "", dependencies: bool = False) -> Path:
    """Folder with a release of a package, or with the one file of it that `keep` names."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = Path(caches) / "spanloom" / "apart" / f"{name}-{version}-{python}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        draft = folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        _install(f"{name}=={version}", draft, dependencies=dependencies)
        if keep:
            folder.mkdir()
            shutil.move(draft / keep, folder / Path(keep).name)
            shutil.rmtree(draft)
        else:
            draft.rename(folder)
    return folder


def _install(requirement: str, target: Path, *, dependencies: bool) -> None:
    if uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable]
    elif importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    else:
        pytest.skip(f"{requirement} NOT INSTALLED: there is neither uv nor pip")
    options = ["--quiet", "--target", str(target), *([] if dependencies else ["--no-deps"])]
    done = subprocess.run(
        [*command, *options, requirement], capture_output=True, text=True, check=False, timeout=100
    )
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        pytest.skip(f"{requirement} NOT INSTALLED: {(done.stderr.splitlines() or ['?'])[-1]}")
