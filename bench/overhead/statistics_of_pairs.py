"""Small differences in noisy times: paired by round, best and middle, and how sure it is."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Rounds:
    """CPU microseconds a run, one value for each round of no tracing, by hand and ours."""

    nothing: Sequence[float]
    by_hand: Sequence[float]
    ours: Sequence[float]
    middle: Callable[[Iterable[float]], float] = median
    """What makes one number of the rounds' differences."""

    @property
    def added_by_hand(self) -> float:
        """The middle of by hand minus no tracing, round by round."""
        return self._added(self.by_hand)

    @property
    def added_by_us(self) -> float:
        return self._added(self.ours)

    @property
    def ratio(self) -> float:
        return self.added_by_us / self.added_by_hand

    @property
    def best(self) -> tuple[float, float]:
        """What by hand and ours add in the quietest batch of each."""
        quietest = min(self.nothing)
        return min(self.by_hand) - quietest, min(self.ours) - quietest

    def interval(self) -> tuple[float, float]:
        """90 % of the ratios that the same rounds give when they are drawn again (bootstrap)."""
        chance = random.Random(1)
        count = len(self.ours)
        ratios = []
        for _ in range(1000):
            drawn = chance.choices(range(count), k=count)
            columns = ([column[i] for i in drawn] for column in self._columns)
            again = Rounds(*columns, middle=self.middle)
            ratios.append(again.ratio)
        ratios.sort()
        return ratios[50], ratios[949]

    @property
    def _columns(self) -> tuple[Sequence[float], ...]:
        return self.nothing, self.by_hand, self.ours

    def _added(self, traced: Sequence[float]) -> float:
        return self.middle(a - b for a, b in zip(traced, self.nothing, strict=True))
