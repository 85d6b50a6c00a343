"""The crash-safe spool: what has ended is on disk before the application goes on.

    on_end ─▶ journal, one write(2) ─▶ sender thread ─▶ exporter ─▶ confirmed: segment deleted
                    │
                    └─ the process dies ─▶ the next one finds the lock free, and sends the rest

It replaces the batch processors: the journal is the queue. Format and guarantees:
docs/adr/, "The spool".
"""

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from spanloom.telemetry import drops
from spanloom.telemetry.after_fork import call_in_child
from spanloom.telemetry.cleaning import clean_span
from spanloom.telemetry.otlp_encoding import (
    encode_log,
    encode_log_quickly,
    encode_span,
    encode_whole,
)
from spanloom.telemetry.otlp_export import readable
from spanloom.telemetry.reaped import Claims
from spanloom.telemetry.settings import Signal
from spanloom.telemetry.spool_journal import Journal
from spanloom.telemetry.spool_orphans import LOCK, Orphan, claim, segment_path
from spanloom.telemetry.spool_sender import Sender, kind_of

_logger: Final = logging.getLogger(__name__)

_SEARCH_S: Final = 5.0
"""Time between two searches for dead processes."""
_SHARES: Final[dict[Signal, float]] = {"traces": 0.75, "logs": 0.25}


class Spool:
    """This process's part of a folder that many processes may share.

    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, fsync: bool = False, claims: Claims | None = None
    ) -> None:
        self._folder = _private_folder(folder)
        self._max_bytes = max_bytes
        self._fsync = fsync
        self._claims = claims
        self._makers: dict[Signal, tuple[Callable[[], Any], float]] = {}
        self._begin()
        call_in_child(self._begin_in_child)

    def _begin(self) -> None:
        self.senders: dict[Signal, Sender] = {}
        self._journals: dict[Signal, Journal] = {}
        self._stem = f"{os.getpid()}-{time.time_ns()}-{secrets.token_hex(4)}"
        self._lock_descriptor = -1
        self._owner_lock = threading.Lock()
        self._orphans: list[Orphan] = []
        self._searched_at = float("-inf")
        self._orphans_lock = threading.Lock()

    def _begin_in_child(self) -> None:
        # The parent's files and locks stay its own: closing a copy does not unlock.
        for journal in self._journals.values():
            journal.abandon()
        for orphan in self._orphans:
            orphan.release()
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
        was_shut_down = not self.senders
        self._begin()
        if not was_shut_down:
            for signal in self._makers:
                self._start(signal)

    def open(self, signal: Signal, create_exporter: Callable[[], Any], delay_s: float) -> None:
        """Begin to keep and send a signal; `delay_s` is the longest time an item waits."""
        self._makers[signal] = (create_exporter, delay_s)
        self._start(signal)

    def span_processor(self) -> SpanProcessor:
        """Make what hands ended spans to this spool."""
        return SpoolSpanProcessor(self)

    def log_processor(self) -> LogRecordProcessor:
        """Make what hands log records to this spool."""
        return SpoolLogProcessor(self)

    def _start(self, signal: Signal) -> None:
        create_exporter, delay_s = self._makers[signal]
        journal: Journal = Journal(
            partial(segment_path, self._folder, self._stem, signal),
            max_bytes=int(self._max_bytes * _SHARES[signal]),
            fsync=self._fsync,
            before_first=self._own,
            on_lost=partial(drops.record_drop, signal, drops.SPOOL_FULL),
            on_damaged=partial(drops.record_drop, signal, drops.DAMAGED),
        )
        self._journals[signal] = journal
        self.senders[signal] = Sender(
            signal,
            journal,
            create_exporter,
            delay_s=delay_s,
            orphans=self._orphans_with,
            claims=self._claims if signal == "traces" else None,
        )

    def _own(self) -> None:
        """Take the lock that says we live, before the first segment is there."""
        with self._owner_lock:
            if self._lock_descriptor >= 0:
                return
            # Renamed when it is locked: nobody may find it free in between.
            partial_path = self._folder / f"{self._stem}.new"
            descriptor = os.open(
                partial_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial_path.rename(self._folder / f"{self._stem}{LOCK}")
            except OSError:
                os.close(descriptor)
                partial_path.unlink(missing_ok=True)
                raise
            self._lock_descriptor = descriptor

    def _orphans_with(self, signal: Signal) -> list[Orphan]:
        """Dead processes that left something of a signal; looks for new ones every 5 s."""
        with self._orphans_lock:
            now = time.monotonic()
            if now - self._searched_at >= _SEARCH_S:
                self._searched_at = now
                found = claim(self._folder, self._stem, self.senders)
                room = self._max_bytes - sum(one.size() for one in self._orphans)
                for orphan in found:
                    room -= orphan.size()
                    if room >= 0:
                        self._orphans.append(orphan)
                    else:  # a service that dies again and again must not fill the disk
                        orphan.drop()
            return [orphan for orphan in self._orphans if orphan.has(signal)]

    def opened(self, span: ReadableSpan) -> None:
        """Note a span that has not ended: `inflight.Journal`."""
        journal = self._journals.get("traces")
        if journal is None or span.context is None:
            return
        try:
            item = encode_whole(clean_span(_frozen(span)))
            journal.opened(item, lambda: span.end_time is None)
        except Exception as exc:  # noqa: BLE001 - a full disk, or a span that cannot be encoded
            _logger.debug("an open span was not journaled: %s", exc)

    def is_alive(self, now: int) -> None:
        """Note that the process lives: `inflight.Journal`."""
        journal = self._journals.get("traces")
        if journal is not None:
            journal.is_alive(now)

    def shutdown(self, signal: Signal) -> None:
        """Send what is left of a signal and stop; what remains is for the next process."""
        sender = self.senders.get(signal)
        if sender is None:
            return
        sender.shutdown()
        with self._owner_lock:
            self.senders.pop(signal, None)
            if self.senders or self._lock_descriptor < 0:
                return
            if not any(self._folder.glob(f"{self._stem}.*.spool")):
                (self._folder / f"{self._stem}{LOCK}").unlink(missing_ok=True)
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1
            for orphan in self._orphans:
                orphan.release()


def _frozen(span: ReadableSpan) -> ReadableSpan:
    """Copy what its owner may be changing."""
    attributes: Any = span.attributes
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=None if attributes is None else attributes.copy(),
        events=list(span.events),
        links=list(span.links),
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _private_folder(folder: Path) -> Path:
    """Make the folder 0700, or a private one inside a folder that others may enter."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_private(folder):
        return folder
    inside = folder / f"spanloom-{os.getuid()}"
    inside.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(inside):
        raise PermissionError(f"{inside} must be a folder of this user that nobody else may enter")
    return inside


def _is_private(folder: Path) -> bool:
    stat = folder.lstat()
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and stat.st_uid == os.getuid()
        and not stat.st_mode & 0o077
    )


class SpoolSpanProcessor(SpanProcessor):
    """Keeps every ended span."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Write one span; when this returns it survives the process."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        try:
            item = encode_span(span)
        except Exception:
            _logger.debug("a span cannot be encoded", exc_info=True)
            drops.record_drop("traces", drops.INVALID)
            return
        try:
            self._spool.senders["traces"].put(kind_of("traces"), item)
        except Exception:  # telemetry never breaks the application
            _logger.debug("a span was not kept", exc_info=True)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is waiting."""
        sender = self._spool.senders.get("traces")
        return sender is None or sender.force_flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Send what is left and stop."""
        self._spool.shutdown("traces")


class SpoolLogProcessor(LogRecordProcessor):
    """Keeps every log record."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Write one record; when this returns it survives the process."""
        try:
            item = encode_log_quickly(log_record) or encode_log(readable(log_record))
        except Exception:
            _logger.debug("a log record cannot be encoded", exc_info=True)
            drops.record_drop("logs", drops.INVALID)
            return
        try:
            self._spool.senders["logs"].put(kind_of("logs"), item)
        except Exception:  # telemetry never breaks the application
            _logger.debug("a log record was not kept", exc_info=True)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is waiting."""
        sender = self._spool.senders.get("logs")
        return sender is None or sender.force_flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Send what is left and stop."""
        self._spool.shutdown("logs")
