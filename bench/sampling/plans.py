"""Plans for a rate of requests: how much is stored, by which sampler, in how many gateways."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from .samplers import Head, Kept, Tail
from .traffic import BATCH_DELAY_S, DEADLINE_S, KINDS, REAP_AFTER_S, Traffic, traffic

DECISION_WAIT_S: Final = DEADLINE_S + REAP_AFTER_S + 20
"""The gateway's: longer than the longest request, and than the reaper's answer to its death."""
WAIT_AFTER_ROOT_S: Final = 10.0
"""Spans of other processes come by clocks of their own; after this the root is not waited for."""
SECONDS: Final = 240.0
"""Simulated time: several decision waits, so that the buffer is as full as it gets."""
MOST_REQUESTS: Final = 400_000
"""Of one gateway, simulated: more would show the same shares, slower."""


@dataclass(frozen=True)
class Budget:
    """What storage takes, and what that means for the samplers at a rate of requests."""

    requests: float
    """A second."""
    spans_per_request: float
    stored_spans: float
    """A second, at most."""

    @property
    def share(self) -> float:
        """Of all spans, 1 where all can be stored."""
        return min(1.0, self.stored_spans / (self.requests * self.spans_per_request))

    @property
    def shares(self) -> tuple[float, float]:
        """Of the ordinary, and of the slow requests: the ordinary give way first, then the slow.

        Errors, timeouts and killed requests are kept whatever it takes: where they alone are too
        many, the budget is exceeded, and that is a reason to grow storage.
        """
        share = {kind.name: kind.share for kind in KINDS}
        slow = share["slow"]
        others = sum(kind.share for kind in KINDS if not kind.evident)
        always = 1 - slow - others
        room = self.share - always
        if room >= slow:
            return min(1.0, (room - slow) / others), 1.0
        return 0.0, max(0.0, room / slow)

    def head(self) -> Head:
        """The coin that fits."""
        return Head(self.share)

    def tail(self, gateway_rate: float) -> Tail:
        """The gateway that fits, with room for half as much again as comes in while it waits."""
        rest, slow = self.shares
        room = math.ceil(1.5 * gateway_rate * DECISION_WAIT_S)
        return Tail(rest, slow, DECISION_WAIT_S, WAIT_AFTER_ROOT_S, room)

    def tail_by_default(self) -> Tail:
        """The processor's own defaults: 30 s, whatever the root does, and 50,000 traces."""
        rest, slow = self.shares
        return Tail(rest, slow, 30.0, None, 50_000)


@dataclass(frozen=True)
class Outcome:
    """What a sampler kept of one gateway's traffic."""

    kept: dict[str, float]
    """Share of each kind that is stored whole."""
    stored: float
    """Share of all spans."""
    dropped_undecided: float
    waiting: int
    """Traces in one gateway's memory, at most."""


def one_gateways_traffic(rate: float, spans_per_request: float, seed: int) -> Traffic:
    """The same for every sampler of a row."""
    seconds = min(SECONDS, MOST_REQUESTS / rate)
    return traffic(
        np.random.default_rng(seed),
        rate=rate,
        seconds=max(seconds, 2 * (DECISION_WAIT_S + BATCH_DELAY_S)),
        spans_per_request=spans_per_request,
    )


def outcome(found: Kept, seen: Traffic) -> Outcome:
    """Shares of each kind."""
    kept = {
        kind.name: float(found.kept[seen.kind == index].mean()) for index, kind in enumerate(KINDS)
    }
    return Outcome(
        kept,
        stored=float(seen.spans[found.kept].sum() / seen.spans.sum()),
        dropped_undecided=float(found.dropped_undecided.mean()),
        waiting=found.most_waiting,
    )
