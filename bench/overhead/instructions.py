"""What tracing costs in instructions, counted by valgrind, on a busy machine too.

    python bench/tracing_overhead.py --instructions

Counting begins with the runs and not with the interpreter, which takes a request from inside the
program; that is what the few lines of C are for. Needs valgrind and a C compiler. It is no time: a
cache that misses costs a hundred instructions' time and none of them.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from overhead.by_hand import ByHand
from overhead.in_process import (
    RUNS_PER_BATCH,
    VARIANTS,
    WARM_UP,
    Case,
    instrumented,
    our_provider,
    provider_by_hand,
)
from overhead.workload import Agent, Workload

_REQUESTS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""
NEEDED = ("valgrind", "cc")
_SUMMARY = re.compile(
    rb"^desc: Trigger: Client Request: (.+?)$.*?^summary: (\d+)", re.MULTILINE | re.DOTALL
)


class Counted(NamedTuple):
    """Instructions of one run."""

    nothing: float
    by_hand: float
    ours: float

    @property
    def ratio(self) -> float:
        """What ours adds by what the spans by hand add."""
        return (self.ours - self.nothing) / (self.by_hand - self.nothing)


def count(cases: list[Case]) -> dict[Case, Counted]:
    """Count all cases, in a process under valgrind; SystemExit where that is not installed."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise SystemExit(f"to count instructions install {' and '.join(missing)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build_requests(folder)
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--instr-atstart=no", "-q"),
                f"--callgrind-out-file={folder / 'counts'}",
                *(sys.executable, "-m", "overhead.instructions", str(library)),
                *map(str, cases),
            ],
            check=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"PYTHONHASHSEED": "0", "LANGSMITH_TRACING": "false"},
            stdout=subprocess.DEVNULL,
        )
        found = read_counts(folder, "counts.*")
    return {
        case: Counted(
            *(found[f"{number}.{variant}"] / RUNS_PER_BATCH[case.spans] for variant in VARIANTS)
        )
        for number, case in enumerate(cases)
    }


def build_requests(folder: Path) -> Path:
    """Make the library by which a program under valgrind begins and ends the counting."""
    library = folder / "requests.so"
    (folder / "requests.c").write_text(_REQUESTS, "utf-8")
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "-o", library, folder / "requests.c"], check=True
    )
    return library


def read_counts(folder: Path, pattern: str) -> dict[str, int]:
    """Return instructions by what `end` was told, of all threads."""
    found: dict[str, int] = {}
    for dump in folder.glob(pattern):
        for label, instructions in _SUMMARY.findall(dump.read_bytes()):
            found[label.decode()] = found.get(label.decode(), 0) + int(instructions)
    return found


def _count_here(requests: ctypes.CDLL, number: int, case: Case) -> None:
    """Run one case in its three ways, each counted once it has been warm for long."""
    spans, state_bytes, extras = case
    hand_provider, _ = provider_by_hand(extras)
    plain = Workload(Agent(), spans=spans, state_bytes=state_bytes)
    tracer = hand_provider.get_tracer("by hand")
    by_hand = Workload(ByHand(tracer, spans=spans), spans=spans, state_bytes=state_bytes)
    with our_provider(extras) as (ours, _), asyncio.Runner() as runner:
        for variant, workload, provider in (
            ("nothing", plain, None),
            ("by_hand", by_hand, hand_provider),
            ("ours", plain, ours),
        ):
            with instrumented(ours) if variant == "ours" else contextlib.nullcontext():
                runner.run(workload.run(WARM_UP[spans]))
                gc.collect()
                requests.begin()
                runner.run(workload.run(RUNS_PER_BATCH[spans]))
                if provider is not None:
                    provider.force_flush()
                requests.end(f"{number}.{variant}".encode())
    hand_provider.shutdown()


def main() -> None:
    """Count in this process, which runs under valgrind."""
    requests = ctypes.CDLL(sys.argv[1])
    for number, text in enumerate(sys.argv[2:]):
        _count_here(requests, number, Case.parse(text))


if __name__ == "__main__":
    main()
