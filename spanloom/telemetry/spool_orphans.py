"""What processes left behind in a spool's folder when they died.

A process holds a flock on its `.lock` file for as long as it lives, so a free lock means a dead
owner. Whoever gets the lock sends what is left, ends the spans that were open, and deletes it all.
Should the finder die too, the next one does the same again: what the segments say decides, so the
ended spans come out the same.
"""

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status, StatusCode

from spanloom import semconv
from spanloom.telemetry import drops, spool_format
from spanloom.telemetry.reaped import Claims
from spanloom.telemetry.settings import Signal
from spanloom.telemetry.spool_codec import decode_span
from spanloom.telemetry.spool_reader import Reader, Stored, stored_records

_logger: Final = logging.getLogger("spanloom.telemetry")

LOCK: Final = ".lock"
DIED: Final = "the process died while this span was open; the end is its last sign of life"
_KINDS: Final[dict[Signal, int]] = {"traces": spool_format.SPAN, "logs": spool_format.LOG}


def segment_path(folder: Path, stem: str, signal: Signal, number: int) -> Path:
    """Where a process keeps a segment; `stem` is its pid, time of start and a random part."""
    return folder / f"{stem}.{signal}.{number:06d}.spool"


class Orphan:
    """One dead process's part of the spool, locked by us."""

    def __init__(self, folder: Path, stem: str, descriptor: int) -> None:
        self.stem = stem
        self._folder = folder
        self._descriptor = descriptor
        self._readers: dict[Signal, Reader] = {}
        self._lock = threading.Lock()
        self._damaged: set[Path] = set()
        self._left: Left | None = None
        self._is_settled = False
        self._signals = {signal for signal in _KINDS if self.paths(signal)}

    def paths(self, signal: Signal) -> list[Path]:
        """Segments of one signal, oldest first."""
        return sorted(self._folder.glob(f"{self.stem}.{signal}.*.spool"))

    def size(self) -> int:
        """Bytes on disk; another thread may be sending and deleting meanwhile."""
        size = 0
        for signal in _KINDS:
            for path in self.paths(signal):
                with contextlib.suppress(FileNotFoundError):
                    size += path.stat().st_size
        return size

    def has(self, signal: Signal) -> bool:
        """Whether something of a signal is left."""
        return signal in self._signals

    def next_batch(self, signal: Signal) -> list[Stored]:
        """Return the next undelivered records; empty when there are no more."""
        if signal == "traces":
            self.open_spans()  # before the first segment is deleted
        paths = self.paths(signal)
        for path in paths:
            reader = self._readers.get(signal)
            try:
                if reader is None:
                    reader = self._readers[signal] = Reader(path)
                if batch := reader.batch():
                    return batch
            except OSError as exc:
                if spool_format.is_passing(exc):
                    raise
                self._is_damaged(signal, path)
            if reader is not None:
                if reader.is_damaged:
                    self._is_damaged(signal, path)
                reader.close()
                self._readers.pop(signal, None)
            # The last segment knows which spans were open: it goes when those are ended.
            if path != paths[-1]:
                path.unlink(missing_ok=True)
        return []

    def _is_damaged(self, signal: Signal, path: Path) -> None:
        """Count a segment, once, as one lost item: how many are behind the damage is not known."""
        if path not in self._damaged:
            self._damaged.add(path)
            drops.record_drop(signal, drops.DAMAGED)

    def delivered(self, signal: Signal, count: int) -> None:
        """Note that the backend has the first of the batch, or will never take them."""
        with contextlib.suppress(OSError):
            self._readers[signal].done(count, mark=True)

    def open_spans(self) -> list[ReadableSpan]:
        """End the spans that were open when the process died, by the journal alone."""
        return self._what_is_left().open_spans

    def _what_is_left(self) -> "Left":
        if self._left is None:
            self._left = read_journal(self.paths("traces"))
        return self._left

    def settle(self, claims: Claims) -> bool:
        """Find out who ends the open spans, the reaper or we; False: not yet.

        Found late, they are the reaper's. What had ended is sent in any case: its process said so
        to the reaper, but for what ended in its very last moment.
        """
        if self._is_settled:
            return True
        left = self._what_is_left()
        ours = claims.takes_over(left.announced, left.alive)
        if ours is None:
            return False
        if not ours:
            theirs = [span.context for span in left.open_spans if span.context is not None]
            if not claims.leaves({one.span_id: one.trace_id for one in theirs}):
                return False
            self._left = left._replace(open_spans=[])
            if theirs:
                _logger.warning(
                    "a process died with open spans, which are left to the reaper",
                    extra={"owner": self.stem, "spans": len(theirs)},
                )
        self._is_settled = True
        return True

    def finish(self, signal: Signal) -> None:
        """Delete one signal's segments, and the lock with the last."""
        with self._lock:
            reader = self._readers.pop(signal, None)
            if reader is not None:
                reader.close()
            for path in self.paths(signal):
                path.unlink(missing_ok=True)
            self._signals.discard(signal)
            if not self._signals:
                (self._folder / f"{self.stem}{LOCK}").unlink(missing_ok=True)
                self.release()

    def drop(self) -> None:
        """Delete everything undelivered, and count it."""
        for signal, kind in _KINDS.items():
            lost = 0
            for path in self.paths(signal):
                with contextlib.suppress(OSError):
                    segment = spool_format.Segment(path)
                    lost += sum(
                        record.kind == kind and record.start >= segment.delivered
                        for record in segment.records()
                    )
                    segment.close()
            drops.record_drop(signal, drops.SPOOL_FULL, lost)
            self.finish(signal)

    def release(self) -> None:
        """Let go of the lock by closing it (LOCK_UN would take it from a forked parent as well)."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def claim(folder: Path, mine: str, wanted: Iterable[Signal]) -> list[Orphan]:
    """Lock what dead processes left, newest first; what holds nothing any more is deleted."""
    found: list[Orphan] = []
    signals = set(wanted)
    for path in folder.glob(f"*{LOCK}"):
        stem = path.name.removesuffix(LOCK)
        descriptor = None if stem == mine else _try_lock(path)
        if descriptor is None:
            continue
        orphan = Orphan(folder, stem, descriptor)
        present = [signal for signal in _KINDS if orphan.has(signal)]
        if not present:
            orphan.finish("traces")
        elif signals.isdisjoint(present):
            orphan.release()
        else:
            found.append(orphan)
    return sorted(found, key=lambda orphan: orphan.stem.split("-")[1:2], reverse=True)


def _try_lock(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before us may have finished, and deleted it.
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


class Left(NamedTuple):
    """What a dead process's journal says of its open spans."""

    open_spans: list[ReadableSpan]
    """Final ones, ERROR, incomplete, that end at the owner's last sign of life."""
    announced: dict[int, int]
    """Trace ids, by span id, of all that were announced and may have ended since."""
    alive: int
    """The last sign of life, its heartbeat or the end of its last span; ns since the epoch."""


def read_journal(paths: list[Path]) -> Left:
    """Find the spans that were open."""
    still_open: dict[int, Stored] = {}
    announced: dict[int, Stored] = {}
    alive = 0
    last: Stored | None = None
    for path in paths:
        try:
            segment = spool_format.Segment(path)
        except OSError as exc:
            if spool_format.is_passing(exc):
                raise
            continue
        alive = max(alive, segment.alive)
        for stored in stored_records(segment):
            record = stored.record
            if record.kind == spool_format.OPEN and not record.is_void:
                still_open[record.span_id] = announced[record.span_id] = stored
            elif record.kind in {spool_format.OPEN, spool_format.SPAN}:
                still_open.pop(record.span_id, None)
            if record.kind == spool_format.SPAN:
                last = stored
        segment.close()
    if last is not None:
        alive = max(alive, decode_span(last.record.body, last.origin).end_time or 0)
    contexts = [decode_span(one.record.body, one.origin).context for one in announced.values()]
    return Left(
        [_ended(decode_span(one.record.body, one.origin), alive) for one in still_open.values()],
        {one.span_id: one.trace_id for one in contexts if one is not None},
        alive,
    )


def _ended(span: ReadableSpan, end: int) -> ReadableSpan:
    attributes: dict[str, Any] = {
        **(span.attributes or {}),
        semconv.SPANLOOM_INCOMPLETE: True,
        semconv.SPANLOOM_OUTCOME: semconv.OUTCOME_ERROR,
        semconv.ERROR_TYPE: semconv.ERROR_TYPE_PROCESS_DIED,
    }
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=Status(StatusCode.ERROR, DIED),
        start_time=span.start_time,
        end_time=max(end, span.start_time or 0),
        instrumentation_scope=span.instrumentation_scope,
    )
