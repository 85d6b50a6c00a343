"""Ends spans that nobody else will end.

    process silent for `reap_after` ──▶ all its open spans: process_died, or span_lost where the
                                        process had let go of them before, or ended in order
    process alive, but `reap_after` of heartbeats did not list a span ──▶ span_lost

Behind a Collector ends are never seen: there a span that a heartbeat did not list has left the
store (`open_store(no_ends=True)`), and only one that its process gave up is lost.

What is written is a final span with status ERROR, marked `spanloom.incomplete`, that ends at the
last sign of life, on the process's own clock. Should the true end arrive after all, it takes the
place of this one (see `contract.Writer`).

Silence is measured here, from look to look, on a monotonic clock: neither a clock that was set,
nor this server's own restart or suspension makes a process look dead. So each process has the
whole `reap_after` again after a start.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from spanloom import semconv
from spanloom.contract import Batch, InFlight, Writer
from spanloom.errors import StoreError
from spanloom.model import OpenSpan, OpenState, ProcessState, Span, Status, StatusCode
from spanloom.model.inflight import LOST_AFTER_MISSES

REAP_AFTER_S: Final = 5.0
LEAST_REAP_AFTER_S: Final = 2.0
"""Less would end the spans of a process whose heartbeat is a little late."""
HEARTBEAT_S: Final = 1.0
"""How often processes send heartbeats."""
LOOK_EVERY_S: Final = 0.5
_BATCH: Final = 1000
_MESSAGES: Final = {
    semconv.ERROR_TYPE_PROCESS_DIED: (
        "the process died while this span was open; the end is its last sign of life"
    ),
    semconv.ERROR_TYPE_SPAN_LOST: (
        "the end of this span was never received; it is shown until its process let go of it"
    ),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Due:
    """Spans of one process that are to be ended: those missing from so many heartbeats."""

    process: str
    min_misses: int


class Silence:
    """Finds out for how long each process has not been heard of."""

    def __init__(self, reap_after_s: float) -> None:
        self._reap_after_s = reap_after_s
        self._silent: dict[str, tuple[ProcessState, float]] = {}
        # As many heartbeats as fit into the time, but no fewer than make a span lost.
        self._misses = max(LOST_AFTER_MISSES, math.ceil(reap_after_s / HEARTBEAT_S))

    def forget(self) -> None:
        """Give each process its whole time again."""
        self._silent = {}

    def look(self, processes: Iterable[ProcessState], elapsed_s: float) -> list[Due]:
        """Which spans are due, after `elapsed_s` of listening since the look before."""
        # A server that was suspended has not listened: such a gap is no silence.
        elapsed_s = min(elapsed_s, 2 * LOOK_EVERY_S)
        silent: dict[str, tuple[ProcessState, float]] = {}
        due: list[Due] = []
        for process in processes:
            before = self._silent.get(process.key)
            quiet = 0.0
            if before is not None and not _was_heard(before[0], process):
                quiet = before[1] + elapsed_s
            silent[process.key] = (process, quiet)
            if not process.open_spans:
                continue
            if quiet >= self._reap_after_s:
                due.append(Due(process.key, 0))
            elif process.most_misses >= self._misses:
                due.append(Due(process.key, self._misses))
        self._silent = silent
        return due


def _was_heard(before: ProcessState, now: ProcessState) -> bool:
    return (before.arrived_unix_nano, before.time_unix_nano, before.sequence) != (
        now.arrived_unix_nano,
        now.time_unix_nano,
        now.sequence,
    )


class Reaper:
    """Looks at a store twice a second, and writes ends into it.

    `on_reaped` is told of spans that were ended, by error type and number. `turned_away` counts
    what the server could not take: heartbeats may have been among it, so that such a time is no
    silence. `hears` is asked whether heartbeats can arrive at all; as long as they can't, and
    after that, each process has its whole time again.
    """

    def __init__(
        self,
        source: InFlight,
        writer: Writer,
        reap_after_s: float,
        on_reaped: Callable[[str, int], None],
        turned_away: Callable[[], int],
        *,
        hears: Callable[[], bool] = lambda: True,
    ) -> None:
        self._source = source
        self._writer = writer
        self._silence = Silence(reap_after_s)
        self._hears = hears
        self._on_reaped = on_reaped
        self._turned_away = turned_away
        self._told = ""

    async def run(self) -> None:
        """Go on until cancelled."""
        looked, refused = time.monotonic(), self._turned_away()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                processes = await asyncio.to_thread(self._source.processes)
                now, refused_now = time.monotonic(), self._turned_away()
                listened = now - looked if refused_now == refused else 0.0
                looked, refused = now, refused_now
                if not self._hears():
                    self._silence.forget()
                    continue
                due = self._silence.look(processes, listened)
                for one in due:
                    await self._end(one)
                self._told = ""
            except Exception as error:  # noqa: BLE001  # what is due stays due
                self._tell(error)

    async def _end(self, due: Due) -> None:
        before: set[tuple[str, str]] = set()
        while True:
            found = await asyncio.to_thread(
                self._source.open_spans, due.process, min_misses=due.min_misses, limit=_BATCH
            )
            ids = {(one.span.trace_id, one.span.span_id) for one in found}
            if not found or ids & before:
                return
            before = ids
            ended = list(incomplete(found))
            await asyncio.wrap_future(self._writer.submit(Batch(spans=ended)))
            for error_type in _MESSAGES:
                number = sum(s.attributes[semconv.ERROR_TYPE] == error_type for s in ended)
                if number:
                    self._on_reaped(error_type, number)

    def _tell(self, error: Exception) -> None:
        problem = str(error)
        if problem != self._told:  # twice a second would fill the log
            self._told = problem
            surprise = None if isinstance(error, StoreError) else error
            _log.warning("open spans could not be ended: %s", problem, exc_info=surprise)


def incomplete(spans: Iterable[OpenSpan]) -> Iterator[Span]:
    """Final spans for those that will not be ended by their process."""
    for one in spans:
        lost = one.state is OpenState.LOST
        error_type = semconv.ERROR_TYPE_SPAN_LOST if lost else semconv.ERROR_TYPE_PROCESS_DIED
        attributes = {
            **one.span.attributes,
            semconv.SPANLOOM_INCOMPLETE: True,
            semconv.SPANLOOM_OUTCOME: semconv.OUTCOME_ERROR,
            semconv.ERROR_TYPE: error_type,
        }
        attributes.pop(semconv.SPANLOOM_IN_FLIGHT, None)
        yield replace(
            one.span,
            attributes=attributes,
            status=Status(StatusCode.ERROR, _MESSAGES[error_type]),
        )
