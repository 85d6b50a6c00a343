"""What telemetry loses: counted for Prometheus, and said in one log line a minute."""

import logging
import os
import threading
import time
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import Counter

from spanloom import semconv
from spanloom.telemetry.settings import Signal

_logger: Final = logging.getLogger("spanloom.telemetry")

QUEUE_FULL: Final = "queue_full"
"""More was waiting in memory than its queue holds."""
EXPORT_FAILED: Final = "export_failed"
"""The backend did not take it, and there is no spool to keep it."""
REJECTED: Final = "rejected"
"""The backend says that it will never take it."""
SPOOL_FULL: Final = "spool_full"
"""The spool reached its size; the oldest was dropped."""
DISK_FULL: Final = "disk_full"
"""The spool could not be written, and the queue in memory was full."""
DAMAGED: Final = "damaged"
"""What a spool holds could not be read."""
INVALID: Final = "invalid"
"""OTLP cannot carry it: a time that is no integer, a name that is no text."""
REAPED: Final = "reaped"
"""The process was suspended for so long that its reaper ends what was open, or has."""

_PERIOD_S: Final = 60.0
_dropped: Final = Counter(
    semconv.PROM_TELEMETRY_DROPPED,
    "Spans and log records lost on the way to the backend.",
    ["signal", "reason"],
)
_REASONS: Final = (
    *(QUEUE_FULL, EXPORT_FAILED, REJECTED, SPOOL_FULL, DISK_FULL, DAMAGED, INVALID, REAPED),
)
_lock = threading.Lock()
_unsaid: dict[str, int] = {}
_last_said = float("-inf")


def begin_at_zero() -> None:
    """Show every reason as 0: a series that begins with a loss has not increased, to Prometheus."""
    for signal in ("traces", "logs"):
        for reason in _REASONS:
            _dropped.labels(signal=signal, reason=reason)


def record_drop(signal: Signal, reason: str, count: int = 1) -> None:
    """Count what was lost; never raises. Call it without holding a lock: it may write a log."""
    global _last_said  # noqa: PLW0603 - one process, one line a minute
    if count <= 0:
        return
    try:
        _dropped.labels(signal=signal, reason=reason).inc(count)
        now = time.monotonic()
        with _lock:
            topic = f"{signal}/{reason}"
            _unsaid[topic] = _unsaid.get(topic, 0) + count
            if now - _last_said < _PERIOD_S:
                return
            _last_said = now
            said = dict(_unsaid)
            _unsaid.clear()
        # Not over OTLP: the record could be the next to be dropped.
        with suppress_instrumentation():
            _logger.warning("telemetry was dropped", extra={"dropped": said})
    except Exception:  # telemetry never breaks the application
        _logger.debug("a drop was not counted", exc_info=True)


def _renew_lock() -> None:
    """In a forked child, a thread that is not there may hold it."""
    global _lock  # noqa: PLW0603 - one process, one lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class CountingSpanProcessor(BatchSpanProcessor):
    """The SDK's batch processor, which also counts the spans it pushes out of a full queue."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue one ended span."""
        if span.context and span.context.trace_flags.sampled:
            self.count_if_full()
        super().on_end(span)

    def count_if_full(self) -> None:
        """Count the span that the next one pushes out."""
        if _is_full(self):
            record_drop("traces", QUEUE_FULL)


class CountingLogProcessor(BatchLogRecordProcessor):
    """The SDK's batch processor, which also counts the records it pushes out of a full queue."""

    def on_emit(self, log_record: Any) -> None:
        """Queue one record."""
        self.count_if_full()
        super().on_emit(log_record)

    def count_if_full(self) -> None:
        """Count the record that the next one pushes out."""
        if _is_full(self):
            record_drop("logs", QUEUE_FULL)


def _is_full(processor: Any) -> bool:
    # The SDK reports this to its own metrics only, which are off by default. Should its
    # internals change, the drops stay uncounted and nothing else happens.
    queue = getattr(getattr(processor, "_batch_processor", None), "_queue", None)
    return queue is not None and len(queue) == queue.maxlen
