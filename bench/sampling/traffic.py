"""Requests of an agent service as a trace backend sees them: when what is known about them arrives.

request  |------------------------------------|            died
spans        ▪   ▪▪      ▪    ▪               ▪ root       ▪▪▪ the reaper's, reap_after later
first        ^ the first span that ended reaches the gateway
evidence                                      ^ … error, timeout, slow: with the root
                                                           ^ … killed: with the reaper's spans
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

BATCH_DELAY_S: Final = 0.5
"""Spans leave a process in batches; the library's default delay."""
DEADLINE_S: Final = 30.0
"""The service's own deadline: no request lasts longer, unless its process dies."""
REAP_AFTER_S: Final = 30.0
"""How long a process is silent before the reaper ends its open spans."""
SLOW_S: Final = 10.0
"""From here on a request is slow: the alert's threshold, and here the gateway's TAIL_SLOW_MS."""


@dataclass(frozen=True)
class Kind:
    """One sort of request, with its share of all of them."""

    name: str
    share: float
    evident: bool
    """Whether its spans show that it matters (a rare path matters, and looks like any other)."""


# Assumed, not measured: a service that mostly works. What sampling keeps of a kind does not
# depend on its share, except through the room that all of them take together.
KINDS: Final = (
    Kind("error", 0.005, evident=True),
    Kind("timeout", 0.002, evident=True),
    Kind("slow", 0.01, evident=True),
    Kind("killed", 0.0002, evident=True),
    Kind("rare path", 0.0001, evident=False),
    Kind("ordinary", 0.9827, evident=False),
)


@dataclass(frozen=True)
class Traffic:
    """Requests in order of arrival; one array element each, times in seconds."""

    kind: NDArray[np.int64]
    """Index into KINDS."""
    begins: Seconds
    first: Seconds
    """When the first ended span arrives; with it the gateway begins to wait."""
    complete: Seconds
    """When the last span arrives: the root's, or for a killed request the reaper's."""
    spans: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kind)


def traffic(
    chance: np.random.Generator, *, rate: float, seconds: float, spans_per_request: float
) -> Traffic:
    """Poisson arrivals at `rate` a second; durations log-normal, median 3 s, as an agent's are.

    Kinds are shuffled in exact shares and not drawn, so that rare ones do not come and go by luck;
    each has at least one request.
    """
    count = max(int(rate * seconds), len(KINDS))
    begins = np.sort(chance.uniform(0, count / rate, count))
    kind = np.full(count, len(KINDS) - 1)
    edge = 0
    for index, one in enumerate(KINDS[:-1]):
        wanted = max(1, round(one.share * count))
        kind[edge : edge + wanted] = index
        edge += wanted
    chance.shuffle(kind)
    duration = np.minimum(chance.lognormal(np.log(3), 0.5, count), SLOW_S * 0.99)
    duration = np.where(kind == _index("slow"), chance.uniform(SLOW_S, DEADLINE_S, count), duration)
    duration = np.where(kind == _index("timeout"), DEADLINE_S, duration)
    # A process dies somewhere in the course of a request that would have lasted to the deadline.
    died = kind == _index("killed")
    duration = np.where(died, chance.uniform(1, DEADLINE_S, count), duration)
    complete = begins + duration + BATCH_DELAY_S + np.where(died, REAP_AFTER_S, 0)
    # The first step of an agent (a route, a guard) ends early in its run.
    first = begins + duration * chance.uniform(0.02, 0.2, count) + BATCH_DELAY_S
    spans = np.maximum(2, chance.poisson(spans_per_request, count))
    return Traffic(kind, begins, first, complete, spans)


def _index(name: str) -> int:
    return next(index for index, kind in enumerate(KINDS) if kind.name == name)
