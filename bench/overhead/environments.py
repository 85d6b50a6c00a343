"""A virtual environment for each tracer, outside the tree: made once, used again."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from overhead.tracers import PEERS

_SHARED = ("langgraph", "langchain-core")
"""Packages that every environment has in the version that is installed here."""


def cache_folder() -> Path:
    """SPANLOOM_BENCH_CACHE, or spanloom-bench in the user's cache folder."""
    if chosen := os.environ.get("SPANLOOM_BENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spanloom-bench"


def make(peer: str) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there.

    Raises:
        subprocess.CalledProcessError: its packages cannot be installed.
    """
    return build(
        peer,
        PEERS[peer].name,
        [
            *PEERS[peer].requirements,
            *(f"{package}=={version(package)}" for package in _SHARED),
            f"opentelemetry-sdk=={version('opentelemetry-sdk')}",
        ],
    )


def build(name: str, title: str, requirements: Sequence[str]) -> Path:
    """Return the Python of the environment of this name, made anew if its requirements changed.

    Raises:
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    wanted = "\n".join(requirements)
    folder = cache_folder() / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    python = folder / "bin/python"
    stamp = folder / "requirements"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"{title}: installing into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is not None:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "-q", "--python", str(python)]
    else:
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*install, *requirements], check=True)
    stamp.write_text(wanted)
    return python


def say(line: str) -> None:
    """Report progress, beside the table that goes to stdout."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
