"""Brings ended spans from the outbox to the Collector, and finds out whether that is there.

    outbox ─▶ request ─┬▶ taken ───────────────▶ out of the outbox
                       ├▶ refused, too large ──▶ in smaller parts; one alone is dropped, and counted
                       └▶ anything else ───────▶ the same bytes again, later, for ever

Nothing leaves the outbox before it is acknowledged: what a lost acknowledgement makes us send again
is the same bytes, which backends recognise. With an empty outbox an empty request asks, every few
seconds, whether the Collector answers: heartbeats come by way of it, so while it is away silence
says nothing about the processes.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from spanloom.contract import Batch, Outbox, Outgoing, Writer
from spanloom.server.otlp_out import Answer, Outcome, Sender

MAX_SPANS: Final = 200
MAX_BYTES: Final = 1024 * 1024
"""Of one request. Collectors take 4 MiB by gRPC, 20 MiB by HTTP."""
MAX_WAIT_S: Final = 30.0
"""Longest time between two attempts, unless the Collector asks for more."""
_MAX_RETRY_AFTER_S: Final = 600.0
_LOOK_S: Final = 0.25
_WARNING_INTERVAL_S: Final = 60.0

_log = logging.getLogger(__name__)


class Counters(Protocol):
    """Who is told how it goes."""

    def delivered(self, spans: int) -> None:
        """The Collector has them."""

    def refused_spans(self, spans: int) -> None:
        """The Collector will never take them; they are dropped."""

    def delivery_failed(self) -> None:
        """A request got no answer that settles it."""


class Hearing:
    """Whether heartbeats can arrive: the Collector answers, and has had time to send them.

    After a start, and after the Collector was away, nothing is taken for silence before the first
    request from it, or before `grace_s` are over: it may wait between two attempts to reach us.
    """

    def __init__(self, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace_s = grace_s
        self._clock = clock
        self._since = clock()
        self._heard = False
        self._up: bool | None = None

    @property
    def is_collector_up(self) -> bool:
        """Whether it answered last time."""
        return self._up is True

    def heard(self) -> None:
        """In-flight events arrived."""
        self._heard = True

    def answered(self, *, up: bool) -> None:
        """The Collector answered a request of ours, or did not."""
        if up and self._up is False:
            self._since = self._clock()
            self._heard = False
        self._up = up

    def __call__(self) -> bool:
        """Whether silence means something now."""
        rested = self._clock() - self._since >= self._grace_s
        return self.is_collector_up and (self._heard or rested)


class Courier:
    """Empties an outbox for as long as it runs; `probe_s` are between two empty requests."""

    def __init__(
        self,
        outbox: Outbox,
        writer: Writer,
        sender: Sender,
        hearing: Hearing,
        counters: Counters,
        *,
        probe_s: float,
    ) -> None:
        self._outbox = outbox
        self._writer = writer
        self._sender = sender
        self._hearing = hearing
        self._counters = counters
        self._probe_s = probe_s
        self._limit = MAX_SPANS
        self._failures = 0
        self._next_warning = 0.0

    async def run(self) -> None:
        """Go on until cancelled."""
        next_probe = 0.0
        while True:
            wait = _LOOK_S
            try:
                found = await asyncio.to_thread(self._outbox.outgoing, self._limit, MAX_BYTES)
                if found or time.monotonic() >= next_probe:
                    wait = await self._send(found)
                    next_probe = time.monotonic() + self._probe_s
            except Exception as error:  # noqa: BLE001  # what waits keeps waiting
                self._warn(f"the outbox cannot be read or emptied: {error}")
                wait = 1.0
            await asyncio.sleep(wait)

    async def _send(self, found: Sequence[Outgoing]) -> float:
        """Send some, or ask whether anybody is there; seconds until the next attempt."""
        answer = await self._sender.send(b"".join(one.message for one in found))
        self._hearing.answered(up=answer.outcome is not Outcome.AGAIN)
        match answer.outcome:
            case Outcome.TAKEN:
                rejected = min(answer.rejected, len(found))
                await self._done(found, rejected, answer)
                self._limit = min(MAX_SPANS, self._limit * 2)
            case Outcome.AGAIN:
                return self._failed(answer, empty=not found)
            case _ if len(found) > 1:
                self._limit = max(1, len(found) // 2)
            case _:
                await self._done(found, len(found), answer)
        self._failures = 0
        return 0.0 if found else _LOOK_S

    async def _done(self, found: Sequence[Outgoing], refused: int, answer: Answer) -> None:
        if refused:
            self._counters.refused_spans(refused)
            self._warn(f"the Collector refused {refused} of {len(found)} spans: {answer.message}")
        if found:
            delivered = Batch(delivered=[one.id for one in found])
            await asyncio.wrap_future(self._writer.submit(delivered))
            self._counters.delivered(len(found) - refused)

    def _failed(self, answer: Answer, *, empty: bool) -> float:
        self._counters.delivery_failed()
        self._failures += 1
        self._warn(f"the Collector does not take spans, which are kept: {answer.message}")
        if empty:
            return self._probe_s
        back_off = min(MAX_WAIT_S, 2.0 ** min(self._failures - 1, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        return max(back_off, min(answer.retry_after_s, _MAX_RETRY_AFTER_S))

    def _warn(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._next_warning:  # a Collector that is away for a night
            self._next_warning = now + _WARNING_INTERVAL_S
            _log.warning("%s", message)
