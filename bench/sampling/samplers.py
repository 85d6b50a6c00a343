"""Samplers, and what they keep: head sampling by trace id, tail sampling in a gateway.

The gateway follows the Collector's tail_sampling processor: a trace waits in memory until
`decision_wait` after its first span, or `wait_after_root` after its root; where more than
`num_traces` wait, the oldest is dropped undecided; spans that come later share the decision.
"""

import heapq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .traffic import KINDS, Seconds, Traffic

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Kept:
    """What became of each request, and what the sampler had in memory."""

    kept: Flags
    """Whole: all of its spans are stored."""
    dropped_undecided: Flags
    most_waiting: int
    """Traces that waited at once, at most."""


class Sampler(Protocol):
    """Decides which requests of one gateway's traffic are stored."""

    def run(self, traffic: Traffic, chance: np.random.Generator) -> Kept:
        """What is kept of this traffic."""
        ...


@dataclass(frozen=True)
class Head:
    """The caller's coin, tossed before anything is known; costs nothing and waits for nothing."""

    ratio: float

    def run(self, traffic: Traffic, chance: np.random.Generator) -> Kept:
        """Keep a share of all, whatever they are."""
        kept = chance.random(len(traffic)) < self.ratio
        return Kept(kept, np.zeros(len(traffic), dtype=np.bool_), 0)


@dataclass(frozen=True)
class Tail:
    """A gateway that keeps all errors, timeouts and killed requests, and shares of the others."""

    rest: float
    """Share of the requests that nothing speaks for."""
    slow: float
    """Share of the slow ones: all, unless storage has no room for them."""
    decision_wait_s: float
    wait_after_root_s: float | None
    """None: the root's arrival does not shorten the wait."""
    num_traces: int

    def run(self, traffic: Traffic, chance: np.random.Generator) -> Kept:
        """Wait, look, decide."""
        decided = traffic.first + self.decision_wait_s
        if self.wait_after_root_s is not None:
            decided = np.minimum(decided, traffic.complete + self.wait_after_root_s)
        seen = traffic.complete <= decided
        share = np.where(seen, self._shares()[traffic.kind], self.rest)
        kept = chance.random(len(traffic)) < share
        crowded_out, most = self._crowded_out(traffic.first, decided)
        return Kept(kept & ~crowded_out, crowded_out, most)

    def _shares(self) -> NDArray[np.float64]:
        """What share of each kind is kept, once all is known of it."""
        return np.array(
            [
                self.slow if kind.name == "slow" else 1.0 if kind.evident else self.rest
                for kind in KINDS
            ]
        )

    def _crowded_out(self, first: Seconds, decided: Seconds) -> tuple[Flags, int]:
        """Which traces leave before their turn because newer ones need the room."""
        crowded_out = np.zeros(len(first), dtype=np.bool_)
        order = np.argsort(first, kind="stable")
        waiting: list[tuple[float, int]] = []  # by the time of decision
        present = np.zeros(len(first), dtype=np.bool_)
        count = most = oldest = 0
        for index in order:
            while waiting and waiting[0][0] <= first[index]:
                _, done = heapq.heappop(waiting)
                if present[done]:
                    present[done] = False
                    count -= 1
            heapq.heappush(waiting, (float(decided[index]), int(index)))
            present[index] = True
            count += 1
            while count > self.num_traces:
                victim = order[oldest]
                oldest += 1
                if present[victim]:
                    present[victim] = False
                    crowded_out[victim] = True
                    count -= 1
            most = max(most, count)
        return crowded_out, most


@dataclass(frozen=True)
class HeadThenTail:
    """A gateway behind a coin: what the coin loses no gateway can bring back."""

    head: Head
    tail: Tail

    def run(self, traffic: Traffic, chance: np.random.Generator) -> Kept:
        """The gateway sees the head's share only."""
        through = self.head.run(traffic, chance).kept
        chosen = np.flatnonzero(through)
        seen = Traffic(
            traffic.kind[chosen],
            traffic.begins[chosen],
            traffic.first[chosen],
            traffic.complete[chosen],
            traffic.spans[chosen],
        )
        found = self.tail.run(seen, chance)
        kept = np.zeros(len(traffic), dtype=np.bool_)
        kept[chosen[found.kept]] = True
        dropped = np.zeros(len(traffic), dtype=np.bool_)
        dropped[chosen[found.dropped_undecided]] = True
        return Kept(kept, dropped, found.most_waiting)
