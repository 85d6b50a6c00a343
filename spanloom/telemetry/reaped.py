"""Who ends an announced span where a reaper runs behind the Collector: its process or the reaper.

Backends that only append would show both ends, so there must never be two (`spanloom reap`).

    announced span ends ─▶ event spanloom.span.ended ─▶ then its end is sent
    process was suspended ─▶ a reaper may have ended all it had announced: these are given up. The
                             event says so, the reaper ends what it still holds, nothing is sent

A process is suspended by SIGSTOP, with its machine, or by a call that holds the interpreter's
lock. A Collector that is away is no suspension: the reaper waits for that as well.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from spanloom.telemetry import drops
from spanloom.telemetry.otlp_encoding import Encoded

_MARGIN_S: Final = 10.0
"""How much sooner than the reaper a process takes itself for dead: events need time to arrive."""
_MAX_LOST: Final = 10_000
"""Spans that were given up and never end; the oldest are forgotten."""

Ids = Mapping[int, int]
"""Trace ids by span id."""
Tell = Callable[[Ids, bool], bool]
"""Sends `spanloom.span.ended` for spans, given up or not; whether that was acknowledged."""


def _now() -> float:
    """Seconds; a suspended machine counts, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Claims:
    """What a reaper may hold open for this process; see the picture above.

    `reaped_after_s` is how long the reaper waits. Any thread may call any method.
    """

    def __init__(self, reaped_after_s: float, clock: Callable[[], float] = _now) -> None:
        self.limit_s: Final = max(reaped_after_s - _MARGIN_S, reaped_after_s / 2)
        """Silence after which a process must take its spans for ended by the reaper."""
        self.tell: Tell | None = None
        """Set by `inflight`; None where nothing is announced."""
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child: what was announced is the parent's."""
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._told: set[int] = set()
        self._alive_at = self._clock()

    def is_alive(self) -> None:
        """Note that the process runs, and whether it did not for a while before."""
        with self._lock:
            self._look()
            self._alive_at = self._clock()

    def _look(self) -> None:
        if self._held and self._clock() - self._alive_at > self.limit_s:
            self._lost |= self._held
            self._held = {}
            for span_id in list(self._lost)[:-_MAX_LOST]:
                del self._lost[span_id]
            self._told &= self._lost.keys()

    def announced(self, spans: Ids) -> None:
        """Note spans that a reaper may know from now on."""
        with self._lock:
            for span_id, trace_id in spans.items():
                if span_id not in self._lost:
                    self._held[span_id] = trace_id

    def held(self) -> dict[int, int]:
        """Announced spans of which the reaper may not know that they ended."""
        with self._lock:
            return dict(self._held)

    def lost(self) -> dict[int, int]:
        """Spans that a reaper may have ended, open or not, until it is told of their end."""
        with self._lock:
            return {one: self._lost[one] for one in self._lost if one not in self._told}

    def forget(self, span_ids: Iterable[int]) -> None:
        """The reaper knows that these ended."""
        with self._lock:
            for span_id in span_ids:
                self._held.pop(span_id, None)
                if span_id in self._lost:
                    self._told.add(span_id)

    def settle(self, spans: Sequence[Encoded]) -> list[Encoded]:
        """Those of the ended spans that may be sent; the reaper is told of them before."""
        with self._lock:
            self._look()
            ids = [span.span_id for span in spans]
            lost = {span_id for span_id in ids if span_id in self._lost}
            ours = {one: self._held[one] for one in ids if one in self._held}
        # Should that fail, the Collector is away: so the reaper ends nothing meanwhile, and the
        # next heartbeat that gets through tells it the same.
        if ours and self.tell is not None and self.tell(ours, False):
            self.forget(ours)
        if not lost:
            return list(spans)
        drops.record_drop("traces", drops.REAPED, len(lost))
        return [span for span in spans if span.span_id not in lost]

    def takes_over(self, spans: Ids, alive: int) -> bool | None:
        """Whether spans of a process that was last alive at `alive` (ns since the epoch) are ours.

        None: the reaper could not be told, ask again later.
        """
        if time.time_ns() - alive > self.limit_s * 1e9 or self.tell is None:
            return False
        return True if not spans or self.tell(spans, False) else None

    def leaves(self, spans: Ids) -> bool:
        """Leave open spans of a dead process to the reaper; False: it could not be told."""
        return not spans or self.tell is None or self.tell(spans, True)
