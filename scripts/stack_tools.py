"""Builds the programs of the production stack, and three checkers, from Go modules.

    python3 scripts/stack_tools.py           build what is missing   (make stack-tools)
    python3 scripts/stack_tools.py --check   only say what is there

No container engine and no released binary is needed: the Go toolchain and its module proxy are
enough. A binary is named after its release, so that a second call with nothing new returns at
once and several checkouts share one cache. Exit code 0: all there, or there is no Go (it says NOT
BUILT); 3: a module could not be had, or memory or disk did not do; 1: a build failed. Standard
library only, for it also runs before anything is installed.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ROOT / "deploy" / "stack-tools"
VERSIONS = ROOT / "deploy" / "versions.env"
# Go says nothing while it compiles for minutes: somebody waits, so say that it still does.
HEARTBEAT_S = 60
TAIL_LINES = 12

NOT_HAD = 3
# What compiler and linker say where memory or disk ended: not the fault of the sources.
MACHINE_TOO_SMALL = ("signal: killed", "no space left on device", "cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Tool:
    """One program and how Go builds it."""

    name: str
    version: str
    package: str
    module: str | None = None
    """Folder under deploy/stack-tools whose go.mod pins the build; None: the package's own."""
    tag: str = ""
    """Release of the package where it has a go.mod that `go install` accepts."""
    version_symbol: str = ""
    """Variable the linker sets, so that the program says its version."""

    @property
    def path(self) -> Path:
        """Where the binary lies once it is built."""
        return tools_dir() / "bin" / f"{self.name}-{self.version}"

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides what is built."""
        digest = hashlib.sha256(repr((self.package, self.tag, self.version_symbol)).encode())
        if self.module is not None:
            for file in sorted((MODULES / self.module).glob("*")):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()

    @property
    def stamp(self) -> Path:
        """Beside the binary: the fingerprint it was built from."""
        return self.path.with_name(f"{self.path.name}.built-from")

    @property
    def ready(self) -> bool:
        """Whether the binary is there and from these sources."""
        try:
            built_from = self.stamp.read_text(encoding="utf-8")
        except OSError:
            return False
        return built_from == self.fingerprint and os.access(self.path, os.X_OK)


def tools_dir() -> Path:
    """Folder of the binaries, outside the tree: `SPANLOOM_STACK_TOOLS` or the user's cache."""
    if named := os.environ.get("SPANLOOM_STACK_TOOLS"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "spanloom" / "stack-tools"


def versions() -> dict[str, str]:
    """The lines of deploy/versions.env."""
    lines = VERSIONS.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def tools() -> list[Tool]:
    """What is built, in this order: what a suite needs first comes first."""
    release = versions()
    prometheus = release["PROMETHEUS_VERSION"]
    # As a Go module Prometheus 3.16.0 is v0.316.0: it keeps its major version out of the path.
    major, minor, patch = prometheus.split(".")
    prometheus_tag = f"v0.{major}{int(minor):02d}.{patch}"
    prometheus_module = "github.com/prometheus/prometheus/cmd"
    prometheus_symbol = "github.com/prometheus/common/version.Version"
    loki = release["LOKI_VERSION"]
    loki_symbol = "github.com/grafana/loki/v3/pkg/util/build.Version"
    return [
        *(
            Tool(
                name,
                prometheus,
                f"{prometheus_module}/{name}",
                tag=prometheus_tag,
                version_symbol=prometheus_symbol,
            )
            for name in ("promtool", "prometheus")
        ),
        Tool(
            "otelcol",
            release["COLLECTOR_VERSION"],
            ".",
            module="otelcol",
            version_symbol="main.version",
        ),
        Tool(
            "jaeger",
            release["JAEGER_VERSION"],
            "github.com/jaegertracing/jaeger/cmd/jaeger",
            module="jaeger",
            version_symbol="github.com/jaegertracing/jaeger/internal/version.latestVersion",
        ),
        *(
            Tool(
                name,
                loki,
                f"github.com/grafana/loki/v3/cmd/{name}",
                module="loki",
                version_symbol=loki_symbol,
            )
            for name in ("loki", "logcli")
        ),
        Tool(
            "actionlint",
            release["ACTIONLINT_VERSION"],
            "github.com/rhysd/actionlint/cmd/actionlint",
            tag=f"v{release['ACTIONLINT_VERSION']}",
        ),
        Tool(
            "kustomize",
            release["KUSTOMIZE_VERSION"],
            "sigs.k8s.io/kustomize/kustomize/v5",
            tag=f"v{release['KUSTOMIZE_VERSION']}",
        ),
        Tool("compose-config", release["COMPOSE_SPEC_VERSION"], ".", module="compose"),
    ]


def find(name: str) -> Path | None:
    """The binary of a tool, or None where it has not been built from these sources."""
    tool = next(tool for tool in tools() if tool.name == name)
    return tool.path if tool.ready else None


def say(text: str) -> None:
    """One line, at once: a build may be watched for half an hour."""
    print(text, flush=True)


def run_go(arguments: list[str], folder: Path, log: Path, environment: dict[str, str]) -> int:
    """Runs Go with its output in `log`, saying now and then that it is still at it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["go", *arguments], cwd=folder, env=environment, stdout=output, stderr=output
        )
        began = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(timeout=HEARTBEAT_S)
                except subprocess.TimeoutExpired:
                    say(f"    … {time.monotonic() - began:.0f} s")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def build(tool: Tool) -> int:
    """Builds one tool; 0, NOT_HAD or 1, with the end of Go's output on a failure."""
    stage = tools_dir() / "stage" / tool.name
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    log = tools_dir() / f"{tool.name}.log"
    log.unlink(missing_ok=True)
    environment = {
        **os.environ,
        # Two compilers at a time: a link of these takes up to 3 GB. No VCS stamp: the tree is ours.
        "GOFLAGS": os.environ.get("SPANLOOM_STACK_GOFLAGS", "-p=2 -buildvcs=false"),
        "GOBIN": str(stage),
        # Each go.mod stands alone, whatever workspace the checkout lies in.
        "GOWORK": "off",
    }
    flags = ["-trimpath", "-ldflags", "-s -w"]
    if tool.version_symbol:
        flags[-1] += f" -X {tool.version_symbol}={tool.version}"
    began = time.monotonic()
    if tool.module is None:
        folder = stage
        steps = [["install", *flags, f"{tool.package}@{tool.tag}"]]
    else:
        folder = MODULES / tool.module
        steps = [
            # Downloads what the build needs, so that its failure is told from a compiler's.
            ["list", "-mod=readonly", "-deps", tool.package],
            ["build", "-mod=readonly", *flags, "-o", str(stage / tool.name), tool.package],
        ]
    for step in steps:
        if run_go(step, folder, log, environment) != 0:
            text = log.read_text(encoding="utf-8", errors="replace")
            told = [line for line in text.splitlines() if not line.startswith("go: downloading")]
            say(f"  {tool.name} {tool.version}: NOT BUILT, the end of {log}:")
            for line in told[-TAIL_LINES:]:
                say(f"    {line}")
            # A compiler's complaints carry a "# package" line, the module loader's do not.
            compiled = any(line.startswith("# ") for line in told)
            too_small = any(reason in line for line in told for reason in MACHINE_TOO_SMALL)
            return 1 if compiled and not too_small else NOT_HAD
    binary = next(path for path in stage.iterdir() if path.is_file())
    tool.path.parent.mkdir(parents=True, exist_ok=True)
    # The binary first: a stamp never vouches for what is not there yet.
    tool.stamp.unlink(missing_ok=True)
    binary.replace(tool.path)
    tool.stamp.write_text(tool.fingerprint, encoding="utf-8")
    shutil.rmtree(stage)
    log.unlink()
    size = tool.path.stat().st_size / 1e6
    say(f"  {tool.name} {tool.version}: built in {time.monotonic() - began:.0f} s, {size:.0f} MB")
    return 0


@contextlib.contextmanager
def only_builder() -> Iterator[None]:
    """One build at a time on a machine: two would compile the same packages twice."""
    tools_dir().mkdir(parents=True, exist_ok=True)
    with (tools_dir() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Builds what is missing; see the module's text for the exit codes."""
    parser = argparse.ArgumentParser(description="Builds the programs of the production stack.")
    parser.add_argument("--check", action="store_true", help="only say what is there")
    parser.add_argument("names", nargs="*", help="tools to build (default: all)")
    arguments = parser.parse_args()
    known = tools()
    if unknown := set(arguments.names) - {tool.name for tool in known}:
        names = ", ".join(tool.name for tool in known)
        parser.error(f"no tool named {', '.join(sorted(unknown))}; there are {names}")
    wanted = [tool for tool in known if not arguments.names or tool.name in arguments.names]
    missing = [tool for tool in wanted if not tool.ready]
    if arguments.check:
        for tool in wanted:
            say(f"{tool.name} {tool.version}: {tool.path if tool.ready else 'NOT BUILT'}")
        return NOT_HAD if missing else 0
    if not missing:
        say(f"stack tools: all {len(wanted)} in {tools_dir() / 'bin'}")
        return 0
    names = ", ".join(f"{tool.name} {tool.version}" for tool in missing)
    if shutil.which("go") is None:
        say(f"stack tools: NOT BUILT: {names}")
        say("  there is no Go toolchain on PATH: install Go 1.26.5 or newer (https://go.dev),")
        say("  then `make stack-tools` again; everything but `make test-stack` works without it")
        return 0
    say(f"stack tools: {len(missing)} to build, 20 to 35 minutes for all on 2 cores: {names}")
    results: dict[str, int] = {}
    with only_builder():
        for tool in missing:
            if tool.ready:  # by the one we waited for
                continue
            say(f"  {tool.name} {tool.version}: building")
            results[tool.name] = build(tool)
    failed = [name for name, code in results.items() if code != 0]
    if failed:
        say(f"stack tools: NOT BUILT: {', '.join(failed)} (see above); the rest is in place")
        return 1 if 1 in results.values() else NOT_HAD
    say(f"stack tools: all {len(wanted)} in {tools_dir() / 'bin'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
