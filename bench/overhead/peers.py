"""Every tracer in fresh processes of its own: best of all rounds minus best of no tracing."""

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from overhead import environments
from overhead.tracers import PEERS

_BENCH = Path(__file__).parents[1]
_OWN = ("nothing", "by-hand", "spanloom")
_SECONDS = 120


@dataclass
class Found:
    """What the rounds of one variant at one state size gave, in microseconds a run."""

    best: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    spans: int = 0
    value_bytes: int = 0
    bytes: int = 0


Key = tuple[str, int]
"""Variant, bytes of state."""


def measure(peers: Sequence[str], sizes: Sequence[int], rounds: int) -> dict[Key, Found]:
    """Run every variant once a round, in shuffled order; a peer that fails is left out."""
    pythons = {variant: Path(sys.executable) for variant in _OWN}
    for peer in peers:
        try:
            pythons[peer] = environments.make(peer)
        except (OSError, subprocess.CalledProcessError) as error:
            environments.say(f"{PEERS[peer].name} is left out: {error}")
    found: dict[Key, Found] = defaultdict(Found)
    chance = random.Random(1)
    for number in range(rounds):
        keys = [(variant, size) for variant in pythons for size in sizes]
        chance.shuffle(keys)
        for variant, size in keys:
            if variant not in pythons:
                continue
            environments.say(f"round {number + 1} of {rounds}: {variant}, {size} bytes")
            try:
                result = _one_round(pythons[variant], variant, size)
            except (subprocess.SubprocessError, ValueError) as error:
                if variant in _OWN:
                    raise
                environments.say(f"{PEERS[variant].name} is left out: {error}")
                del pythons[variant]
                for one in sizes:
                    found.pop((variant, one), None)
                continue
            of_variant = found[variant, size]
            of_variant.best.append(result["best"])
            of_variant.medians.append(result["median"])
            of_variant.spans = result["spans"]
            of_variant.value_bytes = result["value_bytes"]
            of_variant.bytes = result["bytes"]
    return dict(found)


def added(found: dict[Key, Found], variant: str, size: int) -> float:
    """Best of a variant's rounds minus best of no tracing."""
    return min(found[variant, size].best) - min(found["nothing", size].best)


def added_median(found: dict[Key, Found], variant: str, size: int) -> float:
    """Median of the rounds' differences."""
    pairs = zip(found[variant, size].medians, found["nothing", size].medians, strict=True)
    return median(traced - untraced for traced, untraced in pairs)


def _one_round(python: Path, variant: str, size: int) -> dict[str, Any]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "SPANLOOM_", "LANGSMITH_", "LANGFUSE_", "PYTHON"))
    }
    paths = str(_BENCH) if variant not in _OWN else f"{_BENCH}{os.pathsep}{_BENCH.parent}"
    process = subprocess.run(
        [str(python), "-m", "overhead.one_round", variant, str(size)],
        env={**inherited, "PYTHONPATH": paths, "LANGSMITH_TRACING": "false"},
        capture_output=True,
        check=True,
        text=True,
        timeout=_SECONDS,
    )
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result
