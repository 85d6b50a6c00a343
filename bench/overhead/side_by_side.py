"""No tracing, by hand and ours, each in a process of its own, batch by batch in turns.

    python -m overhead.side_by_side VARIANT SPANS STATE_BYTES EXTRAS     (with bench/ as the folder)

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
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from overhead.by_hand import ByHand
from overhead.in_process import Extras, instrumented, our_provider, provider_by_hand
from overhead.workload import Agent, Workload

VARIANTS = ("nothing", "by_hand", "ours")
RUNS_PER_BATCH = {10: 10, 100: 1, 1000: 1}
WARM_UP = {10: 100, 100: 15, 1000: 3}
QUIETEST = 0.3
"""Share of a process's batches that count: the others met a neighbour."""


@dataclass(frozen=True)
class Sets:
    """CPU microseconds a run: for each set of processes no tracing, by hand and ours."""

    sets: Sequence[tuple[float, float, float]]

    @property
    def nothing(self) -> float:
        """Mean over the sets."""
        return mean(nothing for nothing, _, _ in self.sets)

    @property
    def added_by_hand(self) -> float:
        """Mean over the sets of what spans by hand add."""
        return mean(by_hand - nothing for nothing, by_hand, _ in self.sets)

    @property
    def added_by_us(self) -> float:
        return mean(ours - nothing for nothing, _, ours in self.sets)

    @property
    def ratio(self) -> float:
        return self.added_by_us / self.added_by_hand

    def interval(self) -> tuple[float, float]:
        """90 % of the ratios that the same sets give when they are drawn again (bootstrap)."""
        chance = random.Random(1)
        ratios = sorted(
            Sets(chance.choices(self.sets, k=len(self.sets))).ratio for _ in range(1000)
        )
        return ratios[50], ratios[949]


def measure(*, spans: int, state_bytes: int, extras: Extras, sets: int, seconds: float) -> Sets:
    """Start `sets` times three processes, and let each three take turns for `seconds`."""
    arguments = (str(spans), str(state_bytes), ",".join(sorted(extras)))
    return Sets([_one_set(arguments, seconds) for _ in range(sets)])


def _one_set(arguments: Sequence[str], seconds: float) -> tuple[float, float, float]:
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    chance = random.Random(1)
    with contextlib.ExitStack() as stack:
        processes = {
            variant: stack.enter_context(_start(variant, arguments)) for variant in VARIANTS
        }
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
    nothing, by_hand, ours = (_quiet_mean(found[variant]) for variant in VARIANTS)
    return nothing, by_hand, ours


def _start(variant: str, arguments: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "overhead.side_by_side", variant, *arguments],
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
    variant, spans, state_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    extras = frozenset(filter(None, sys.argv[4].split(",")))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(BrokenPipeError))
        agent = Agent()
        provider, _ = (
            stack.enter_context(our_provider(extras))
            if variant == "ours"
            else provider_by_hand(extras)
        )
        if variant == "ours":
            stack.enter_context(instrumented(provider))
        elif variant == "by_hand":
            agent = ByHand(provider.get_tracer("by hand"), spans=spans)
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
