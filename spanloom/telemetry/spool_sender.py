"""Sends what is in the spool: a thread of its own for each signal, which nobody waits for."""

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from spanloom.telemetry import drops, metrics, spool_format
from spanloom.telemetry.otlp_encoding import Encoded, encode_whole
from spanloom.telemetry.otlp_export import EncodedExporter
from spanloom.telemetry.reaped import Claims
from spanloom.telemetry.settings import Signal
from spanloom.telemetry.spool_journal import Journal
from spanloom.telemetry.spool_orphans import Orphan
from spanloom.telemetry.spool_reader import BATCH

_logger: Final = logging.getLogger("spanloom.telemetry")

REPLAY_PAUSE_S: Final = 0.05
"""Between two batches read back from disk: at most some 10,000 spans a second."""
MAX_WAIT_S: Final = 60.0
"""Longest time between two attempts to reach a backend, unless it asks for more."""
_MAX_RETRY_AFTER_S: Final = 600.0
_LIMIT_IN_MEMORY: Final = 2_048
_INVALID: Final = 400
_TOO_LARGE: Final = 413
_REFUSALS: Final = frozenset({_INVALID, _TOO_LARGE, 422})


class Answers:
    """Stands before the transport of an OTLP/HTTP exporter, and notes how the backend answers.

    The exporter says only that it failed. Should its internals change, that is all we know: the
    batch is tried again and again, which is right for all failures but a refusal.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.status: int | None = None
        self.retry_after_s = 0.0

    def request(self, *arguments: Any, **named: Any) -> Any:
        """Send one request."""
        result = self._transport.request(*arguments, **named)
        self.status = result.status_code
        self.retry_after_s = 0.0
        with contextlib.suppress(Exception):  # whatever the header holds
            self.retry_after_s = _seconds(result.headers().get("retry-after") or "0")
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GrpcAnswers:
    """Does the same for OTLP/gRPC, by what the exporter tells its own metrics of an error."""

    def __init__(self, metrics: Any) -> None:
        self._metrics = metrics
        self.status: int | None = None
        self.retry_after_s = 0.0

    @contextlib.contextmanager
    def export_operation(self, count: int) -> Iterator[Any]:
        """Measure one request, with its retries."""
        with self._metrics.export_operation(count) as operation:
            yield operation
        self.status = None
        with contextlib.suppress(Exception):  # an error of another kind
            code, details = operation.error.code().name, operation.error.details() or ""
            if code == "INVALID_ARGUMENT":
                self.status = _INVALID
            elif code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
                self.status = _TOO_LARGE


def _listen(exporter: Any) -> Answers | GrpcAnswers | None:
    """Note how the backend answers; None if the exporter has nothing to note it by."""
    client = getattr(exporter, "_client", None)
    transport = getattr(client, "_transport", None)
    # There is no other way to learn the status.
    if client is not None and hasattr(transport, "request"):
        answers = client._transport = Answers(transport)  # noqa: SLF001
        return answers
    metrics = getattr(exporter, "_metrics", None)
    if metrics is not None and hasattr(exporter, "_translate_data"):
        of_grpc = exporter._metrics = GrpcAnswers(metrics)  # noqa: SLF001
        return of_grpc
    return None


def _seconds(retry_after: str) -> float:
    """Read a Retry-After header: seconds, or the time until a date."""
    with contextlib.suppress(ValueError):
        return float(retry_after)
    return parsedate_to_datetime(retry_after).timestamp() - time.time()


class Sender:
    """Brings one signal from the journal, and from dead processes' journals, to the backend."""

    def __init__(
        self,
        signal: Signal,
        journal: Journal,
        create_exporter: Callable[[], Any],
        *,
        delay_s: float,
        orphans: Callable[[Signal], Iterable[Orphan]],
        claims: Claims | None = None,
    ) -> None:
        self._signal: Signal = signal
        self._journal = journal
        self._create_exporter = create_exporter
        self._delay_s = delay_s
        self._orphans = orphans
        self._claims = claims
        self._unspooled: deque[Encoded] = deque(maxlen=_LIMIT_IN_MEMORY)
        self._exporter: EncodedExporter | None = None
        self._answers: Answers | GrpcAnswers | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._limit = BATCH
        self._attempts = 0
        self._flushing = False
        self._replayed = 0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._progress = threading.Condition()
        self._waiting = 0
        self._thread = threading.Thread(
            target=self._run, daemon=True, name=f"spanloom-spool-{signal}"
        )
        self._thread.start()

    def put(self, kind: int, item: Encoded) -> None:
        """Keep one item on disk, or, where that fails, in memory for as long as there is room."""
        try:
            self._journal.append(kind, item)
        except OSError as exc:
            _logger.debug("the spool cannot be written: %s", exc)
            full = len(self._unspooled) == _LIMIT_IN_MEMORY
            self._unspooled.append(item)
            if full:
                drops.record_drop(self._signal, drops.DISK_FULL)
        self._waiting += 1  # a guess, when threads race: it only decides when to begin
        if self._waiting >= BATCH:
            self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._delay_s)
            self._wake.clear()
            self._waiting = 0
            try:
                while not self._stopping.is_set() and self._may_try() and self._step():
                    pass
            except Exception:  # telemetry never breaks the application
                _logger.debug("the spool was not sent", exc_info=True)
                self._failed(0.0)
            metrics.show_spool(self._signal, self._journal.waiting + len(self._unspooled))
            with self._progress:
                self._progress.notify_all()

    def _may_try(self) -> bool:
        return self._flushing or time.monotonic() >= self._retry_at

    def _step(self) -> bool:
        """Send one batch of each kind there is; whether there may be more."""
        more = False
        if self._unspooled:
            count = min(self._limit, len(self._unspooled))
            items = [self._unspooled[index] for index in range(count)]
            if not self._send(items):
                return False
            for _ in items:
                self._unspooled.popleft()
            more = True
        batch = self._journal.next_batch()
        if batch is not None:
            batch = batch.first(self._limit)
            if not self._send(batch.items):
                return False
            self._journal.delivered(batch)
            more = True
            if batch.is_replay:
                self._stopping.wait(REPLAY_PAUSE_S)
        if not self._flushing:
            more = self._adopt() or more
        return more

    def _adopt(self) -> bool:
        """Send one batch that a dead process has left."""
        for orphan in self._orphans(self._signal):
            if self._claims is not None and not orphan.settle(self._claims):
                self._failed(0.0)
                return False
            stored = orphan.next_batch(self._signal)[: self._limit]
            if stored:
                if not self._send([one.item for one in stored]):
                    return False
                orphan.delivered(self._signal, len(stored))
                self._replayed += len(stored)
            else:
                if self._signal == "traces" and not self._end_open_spans(orphan):
                    return False
                self._say_replayed(orphan)
                orphan.finish(self._signal)
            self._stopping.wait(REPLAY_PAUSE_S)
            return True
        return False

    def _end_open_spans(self, orphan: Orphan) -> bool:
        spans = orphan.open_spans()
        ended = [encode_whole(span) for span in spans]
        for begin in range(0, len(spans), BATCH):
            if not self._send(ended[begin : begin + BATCH]):
                return False
        if spans:
            _logger.warning(
                "a process died with open spans: they are ended as incomplete",
                extra={
                    "owner": orphan.stem,
                    "spans": len(spans),
                    "names": [span.name for span in spans[:10]],
                },
            )
        return True

    def _say_replayed(self, orphan: Orphan) -> None:
        if self._replayed:
            _logger.info(
                "sent what a process had left in the spool",
                extra={"owner": orphan.stem, "signal": self._signal, "count": self._replayed},
            )
        self._replayed = 0

    def _send(self, items: Sequence[Encoded]) -> bool:
        """Send one batch; whether it is done with, because it was taken or never will be."""
        if self._exporter is None:
            exporter = self._create_exporter()
            self._answers = _listen(exporter)
            self._exporter = EncodedExporter(self._signal, exporter)
        answers = self._answers
        if answers is not None:
            answers.status = None
        if self._claims is not None:
            items = self._claims.settle(items)
            if not items:
                return True
        with suppress_instrumentation():
            is_taken = self._exporter.export(items)
        self._attempts += 1
        status = None if answers is None else answers.status
        if is_taken:
            self._failures = 0
            self._retry_at = 0.0
            self._limit = min(BATCH, self._limit * 2)
            return True
        if status == _TOO_LARGE and len(items) > 1:
            self._limit = max(1, len(items) // 2)
            return False
        if status in _REFUSALS:
            drops.record_drop(self._signal, drops.REJECTED, len(items))
            return True
        self._failed(0.0 if answers is None else answers.retry_after_s)
        return False

    def _failed(self, retry_after_s: float) -> None:
        self._failures += 1
        wait = min(MAX_WAIT_S, 2.0 ** min(self._failures, 10) * random.uniform(0.4, 0.6))  # noqa: S311
        wait = max(wait, min(retry_after_s, _MAX_RETRY_AFTER_S))
        self._retry_at = time.monotonic() + wait

    def force_flush(self, timeout_s: float) -> bool:
        """Send what is waiting, at the first attempt; whether the backend has all of it."""
        target = self._journal.end
        attempts = self._attempts
        failures = self._failures

        def is_over() -> bool:
            done = self._journal.cursor >= target and not self._unspooled
            failed = self._attempts > attempts and self._failures > failures
            return done or failed or self._stopping.is_set()

        with self._progress:
            self._flushing = True
            self._wake.set()
            self._progress.wait_for(is_over, timeout_s)
            self._flushing = False
        return self._journal.cursor >= target and not self._unspooled

    def shutdown(self, timeout_s: float = 4.0) -> None:
        """Try once more to send what is left, and stop."""
        if self._stopping.is_set():
            return
        self.force_flush(timeout_s)
        self._stopping.set()
        self._wake.set()
        if self._exporter is not None:
            self._exporter.shutdown()
        self._thread.join(1.0)
        self._journal.close()
        drops.record_drop(self._signal, drops.DISK_FULL, len(self._unspooled))


def kind_of(signal: Signal) -> int:
    """Return the kind of record that holds what is finished of a signal."""
    return spool_format.SPAN if signal == "traces" else spool_format.LOG
