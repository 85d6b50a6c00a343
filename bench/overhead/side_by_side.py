"""No tracing, by hand and ours, each in a process of its own, batch by batch in turns.

    python -m overhead.side_by_side VARIANT SPANS:STATE_BYTES:EXTRAS     (with bench/ as the folder)

In one process, to switch instrumentation on and off makes Python forget what it has cached of the
classes; here every process keeps what it began with, as in an application. In return each process
has its own layout of memory and of dictionaries, which moves a run by a tenth: about what the spans
cost. So there are many sets of three, and what is compared are means over the sets.
"""

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from overhead.by_hand import ByHand
from overhead.in_process import VARIANTS, Case, instrumented, our_provider, provider_by_hand
from overhead.statistics_of_pairs import Rounds
from overhead.workload import Agent, Workload

RUNS_PER_BATCH = {10: 10, 100: 1, 1000: 1}
WARM_UP = {10: 100, 100: 15, 1000: 3}
QUIETEST = 0.3
"""Share of a process's batches that count: the others met a neighbour."""


def measure(case: Case, *, sets: int, seconds: float) -> Rounds:
    """Start `sets` times three processes, and let each three take turns for `seconds`."""
    found = [_one_set(case, seconds) for _ in range(sets)]
    return Rounds(*zip(*found, strict=True), middle=mean)


def _one_set(case: Case, seconds: float) -> list[float]:
    """CPU microseconds a run of each variant, in new processes."""
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    chance = random.Random(1)
    with contextlib.ExitStack() as stack:
        processes = {variant: stack.enter_context(_start(variant, case)) for variant in VARIANTS}
        for process in processes.values():  # each has warmed up
            _answer(process)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for variant in chance.sample(VARIANTS, k=len(VARIANTS)):
                process = processes[variant]
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                found[variant].append(float(_answer(process)))
    return [_quiet_mean(found[variant]) for variant in VARIANTS]


def _start(variant: str, case: Case) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "overhead.side_by_side", variant, str(case)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process of the benchmark has ended; what it said is above")
    return line


def _quiet_mean(times: Sequence[float]) -> float:
    quiet = sorted(times)[: max(1, round(len(times) * QUIETEST))]
    return mean(quiet)


def main() -> None:
    """Be one of the processes: a batch for each line on stdin, until there is no more."""
    variant = sys.argv[1]
    spans, state_bytes, extras = Case.parse(sys.argv[2])
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(BrokenPipeError))
        if variant == "ours":
            provider, _ = stack.enter_context(our_provider(extras))
            stack.enter_context(instrumented(provider))
        else:
            provider, _ = provider_by_hand(extras)
        tracer = provider.get_tracer("by hand")
        agent = ByHand(tracer, spans=spans) if variant == "by_hand" else Agent()
        workload = Workload(agent, spans=spans, state_bytes=state_bytes)
        runner = stack.enter_context(asyncio.Runner())

        def cpu(runs: int) -> float:
            start = time.process_time()
            runner.run(workload.run(runs))
            provider.force_flush()
            return (time.process_time() - start) * 1e6 / runs

        cpu(WARM_UP[spans])
        gc.collect()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(cpu(RUNS_PER_BATCH[spans]), flush=True)


if __name__ == "__main__":
    main()
