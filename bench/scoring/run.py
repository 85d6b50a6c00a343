"""Runs the scenarios under a tracer in a process of its own, and outlives whatever that does."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from .card import Scenario
from .conventions import Reader
from .judge import Verdict, judge, never_ran
from .record import Recording
from .tracers import ROOT, Tracer

SECONDS: Final = 90.0
"""For one scenario, and for switching on; the slowest takes ten on a busy machine."""
_LOST_AT_MOST: Final = 3
"""A tracer that hangs or dies so often is not tried any more."""
_CLEARED: Final = ("OTEL_", "SPANLOOM_", "LANGSMITH_", "LANGCHAIN_", "LANGFUSE_", "TRACELOOP_")
_END: Final[dict[str, Any]] = {"event": "exit"}


@dataclass
class Result:
    """What a tracer made of the card."""

    tracer: Tracer
    packages: dict[str, str] = field(default_factory=dict)
    """Versions of what it ran with."""
    verdicts: list[Verdict] = field(default_factory=list)
    broken: str | None = None
    """Why it could not be run at all."""

    @property
    def points(self) -> int:
        """Scenarios in which everything held."""
        return sum(verdict.held for verdict in self.verdicts)

    @property
    def possible(self) -> int:
        """Scenarios that could be run."""
        return sum(verdict.skipped is None for verdict in self.verdicts)


def run(
    tracer: Tracer,
    python: Path,
    scenarios: Sequence[Scenario],
    *,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Run the scenarios one after the other, in a new process after each that took one with it."""
    result = Result(tracer)
    reader = Reader(tracer.conventions)
    remaining = list(scenarios)
    lost = 0
    while remaining:
        if lost == _LOST_AT_MOST:
            why = f"not run: the process hung or died in {lost} scenarios before"
            result.verdicts += [never_ran(scenario, why) for scenario in remaining]
            break
        with _Process(tracer, python, [scenario.name for scenario in remaining]) as process:
            first = process.next(seconds)
            if first["event"] != "on":
                result.broken = first.get("why") or process.why(first, seconds, "switching it on")
                result.verdicts = [never_ran(scenario, result.broken) for scenario in scenarios]
                break
            result.packages = first["packages"]
            while remaining:
                scenario = remaining[0]
                progress(scenario.name)
                event = process.next(seconds)
                if event["event"] == "begin":
                    event = process.next(seconds)
                del remaining[0]
                if event["event"] != "end":
                    lost += 1
                    why = process.why(event, seconds, "the scenario")
                    result.verdicts.append(never_ran(scenario, why))
                    break
                recording = Recording.of(event["result"])
                result.verdicts.append(judge(scenario, recording, reader))
    return result


class _Process:
    """The process with the tracer in it: its lines of JSON, and its end, as events."""

    def __init__(self, tracer: Tracer, python: Path, names: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [str(python), "-m", "scoring.inside", tracer.name, *names],
            env=_environment(tracer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that what it starts can be ended with it
        )
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._events.put(json.loads(line))
        self._events.put(_END)

    def next(self, seconds: float) -> dict[str, Any]:
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return {"event": "too late"}

    def why(self, event: Mapping[str, Any], seconds: float, what: str) -> str:
        """Say how the process failed."""
        if event["event"] == "too late":
            return f"{what} took more than {seconds:.0f} s"
        code = self._process.wait()
        self._errors.seek(0)
        last = ([line.strip() for line in self._errors if line.strip()] or [""])[-1][:200]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{what} ended the process ({how})" + (f": {last}" if last else "")


def _environment(tracer: Tracer) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*_CLEARED, "PYTHON"))
    }
    paths = [str(ROOT / "bench")]
    if tracer.name == "spanloom":
        paths.append(str(ROOT))
    elif tracer.is_here and (own := os.environ.get("PYTHONPATH")):
        paths.append(own)  # a tracer that somebody is writing
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(paths),
        "LANGSMITH_TRACING": "false",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
