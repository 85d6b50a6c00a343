"""What one process has written to the spool for one signal, and how much of it was delivered.

    append ──▶ │ segment 3 │ segment 4 │ segment 5 … ◀── end
                     ▲ cursor: all before it is delivered; a segment before it is deleted

The newest items are kept in memory as well, so that a healthy backend never has them read back.
One lock guards everything here; nothing else is locked while it is held, and no log is written.
"""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from spanloom.telemetry import spool_format
from spanloom.telemetry.otlp_encoding import Encoded, Origin
from spanloom.telemetry.otlp_export import BATCH_BYTES
from spanloom.telemetry.spool_codec import encode_origin
from spanloom.telemetry.spool_reader import BATCH, Reader, Stored

_RECENT: Final = 2_048
_MAX_CONTEXTS: Final = 256
_SEGMENTS: Final = 8


class Position(NamedTuple):
    """A place in the journal; places compare in the order of writing."""

    segment: int
    offset: int


class Batch(NamedTuple):
    """What may be sent next; each of `ends` is where the journal is delivered up to afterwards."""

    items: list[Encoded]
    ends: list[Position]
    is_replay: bool = False

    def first(self, count: int) -> "Batch":
        """Return a batch of at most `count` items."""
        return Batch(self.items[:count], self.ends[:count], self.is_replay)


@dataclass(slots=True)
class _Part:
    number: int
    path: Path
    size: int
    count: int = 0
    delivered: int = 0


class _Recent(NamedTuple):
    start: Position
    end: Position
    item: Encoded


@dataclass(slots=True)
class _Open:
    body: bytes
    origin: Origin
    at: Position


class Journal:
    """Numbered segments of one process and one signal.

    `path_of` names a segment; `before_first` is called before the first is made. Without the lock
    are called: `on_lost` with the number of undelivered items in a segment that had to go, and
    `on_damaged` with that of items which cannot be read any more.
    """

    def __init__(
        self,
        path_of: Callable[[int], Path],
        *,
        max_bytes: int,
        fsync: bool,
        before_first: Callable[[], None],
        on_lost: Callable[[int], None],
        on_damaged: Callable[[int], None],
    ) -> None:
        self._path_of = path_of
        self._segment_bytes = max_bytes // _SEGMENTS
        self._max_bytes = max_bytes
        self._fsync = fsync
        self._before_first = before_first
        self._on_lost = on_lost
        self._on_damaged = on_damaged
        self._lock = threading.Lock()
        self._parts: deque[_Part] = deque()
        self._appending = self._overwriting = -1
        self._contexts: dict[tuple[int, int], tuple[int, Origin]] = {}
        self._next_context = 0
        self._open: dict[int, _Open] = {}
        self._alive = 0
        self._lost = 0
        self._damaged = 0
        self._recent: deque[_Recent] = deque(maxlen=_RECENT)
        self._cursor = self._end = self._last = Position(1, spool_format.HEADER.size)
        self._reader: Reader | None = None
        self._reader_end = 0
        self._is_closed = False

    @property
    def end(self) -> Position:
        """Where the last span or log record ends."""
        return self._last

    @property
    def cursor(self) -> Position:
        """Up to where everything is delivered."""
        return self._cursor

    @property
    def waiting(self) -> int:
        """How many spans or log records are not delivered; a batch over two segments blurs it."""
        with self._lock:
            return sum(max(0, part.count - part.delivered) for part in self._parts)

    def append(self, kind: int, item: Encoded) -> None:
        """Write a finished span or a log record; it survives the process when this returns.

        Raises:
            OSError: it could not be written, and is not in the journal.
        """
        with self._lock:
            closed = self._open.pop(item.span_id, None) if item.span_id else None
            try:
                self._write(kind, item)
            except OSError:
                if closed is not None:
                    self._void(closed.at)
                raise
            lost, self._lost = self._lost, 0
            self._parts[-1].count += 1
            self._recent.append(_Recent(self._last, self._end, item))
            self._last = self._end
        if lost:
            self._on_lost(lost)

    def opened(self, item: Encoded, is_open: Callable[[], bool]) -> None:
        """Write a span that has not ended, unless it has by now.

        Raises:
            OSError: it could not be written.
        """
        with self._lock:
            if is_open():
                self._write(spool_format.OPEN, item)
                start = self._end.offset - spool_format.RECORD.size - len(item.body)
                self._open[item.span_id] = _Open(
                    item.body, item.origin, Position(self._end.segment, start)
                )

    def is_alive(self, now: int) -> None:
        """Note a sign of life, in nanoseconds since the epoch."""
        with self._lock:
            self._alive = now
            if self._overwriting >= 0:
                spool_format.write_number(self._overwriting, spool_format.ALIVE_AT, now)

    def _write(self, kind: int, item: Encoded) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, "the spool is closed")
        body, origin, span_id = item
        size = len(body) + spool_format.RECORD.size
        if size > self._segment_bytes:
            raise OSError(errno.EFBIG, "larger than a segment of the spool")
        if self._appending < 0 or self._parts[-1].size + size > self._segment_bytes:
            self._begin_part()
        context, data = self._context(origin)
        self._write_data(data + spool_format.frame(kind, span_id, context, body))
        self._remember_context(context, origin)

    def _write_data(self, data: bytes) -> None:
        part = self._parts[-1]
        written = -1
        try:
            written = os.write(self._appending, data)
            if self._fsync:
                os.fdatasync(self._appending)
        finally:
            if written != len(data) and written > 0:  # the disk became full in the middle
                self._cut(part)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part.size += written
        self._end = Position(part.number, part.size)

    def _cut(self, part: _Part) -> None:
        try:
            os.ftruncate(self._appending, part.size)
        except OSError:  # the segment ends with half a record; nothing may come behind it
            self._close_files()

    def _context(self, origin: Origin) -> tuple[int, bytes]:
        known = self._contexts.get((id(origin.resource), id(origin.scope)))
        if known is not None:
            return known[0], b""
        number = self._next_context
        return number, spool_format.frame(spool_format.CONTEXT, 0, number, encode_origin(origin))

    def _remember_context(self, number: int, origin: Origin) -> None:
        if number == self._next_context:
            if len(self._contexts) >= _MAX_CONTEXTS:
                self._contexts.clear()
            # Keeps the objects alive, so that their ids stay theirs.
            self._contexts[id(origin.resource), id(origin.scope)] = (number, origin)
            self._next_context += 1

    def _begin_part(self) -> None:
        """Begin a segment; the spans that are open are written into it, for those before may go."""
        if not self._parts:
            self._before_first()
        number = self._end.segment + 1 if self._parts else self._end.segment
        while self._parts and (
            sum(part.size for part in self._parts) + self._segment_bytes > self._max_bytes
        ):
            self._drop_oldest()
        path = self._path_of(number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        appending = os.open(path, flags | os.O_APPEND, 0o600)
        try:
            overwriting = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.close(appending)
            path.unlink(missing_ok=True)
            raise
        old = (self._appending, self._overwriting, self._contexts, self._next_context)
        self._appending, self._overwriting = appending, overwriting
        self._contexts, self._next_context = {}, 0
        part = _Part(number, path, 0)
        self._parts.append(part)
        was = self._end
        try:
            self._write_data(self._beginning(part))
        except OSError:
            self._parts.pop()
            self._close_files()
            self._appending, self._overwriting, self._contexts, self._next_context = old
            self._end = was
            path.unlink(missing_ok=True)
            raise
        for descriptor in old[:2]:
            if descriptor >= 0:
                os.close(descriptor)

    def _beginning(self, part: _Part) -> bytes:
        # Later than the end of every span in earlier segments, which may be deleted.
        self._alive = max(self._alive, time.time_ns())
        data = bytearray(spool_format.header(alive=self._alive))
        for span_id, one in self._open.items():
            number, context = self._context(one.origin)
            data += context
            self._remember_context(number, one.origin)
            one.at = Position(part.number, len(data))
            data += spool_format.frame(spool_format.OPEN, span_id, number, one.body)
        return bytes(data)

    def _drop_oldest(self) -> None:
        part = self._parts.popleft()
        self._lost += part.count - part.delivered
        part.path.unlink(missing_ok=True)
        self._cursor = max(self._cursor, Position(part.number + 1, spool_format.HEADER.size))
        self._forget_reader()

    def _void(self, at: Position) -> None:
        """Take an open span back: it has ended, though its end could not be written."""
        for part in self._parts:
            if part.number == at.segment:
                with contextlib.suppress(OSError):
                    descriptor = os.open(part.path, os.O_WRONLY | os.O_CLOEXEC)
                    try:
                        spool_format.void(descriptor, at.offset)
                    finally:
                        os.close(descriptor)

    def next_batch(self) -> Batch | None:
        """Return what comes after the cursor, from memory or else from disk; None for nothing.

        Raises:
            OSError: a segment cannot be read just now.
        """
        batch = self._next_batch()
        if self._damaged:  # changed by this thread alone
            damaged, self._damaged = self._damaged, 0
            self._on_damaged(damaged)
        return batch

    def _next_batch(self) -> Batch | None:
        with self._lock:
            while self._recent and self._recent[0].end <= self._cursor:
                self._recent.popleft()
            if self._recent and self._recent[0].start <= self._cursor:
                self._forget_reader()  # it would fall behind
                return self._from_memory()
            until = self._recent[0].start if self._recent else self._last
            return self._from_disk(until)

    def _from_memory(self) -> Batch:
        taken: list[_Recent] = []
        for entry in self._recent:
            if taken and (
                len(taken) >= BATCH
                or entry.end.segment != taken[0].end.segment
                or entry.end.offset - taken[0].end.offset > BATCH_BYTES
            ):
                break
            taken.append(entry)
        return Batch([entry.item for entry in taken], [entry.end for entry in taken])

    def _from_disk(self, until: Position) -> Batch | None:
        while self._cursor < until and self._parts:
            part = self._parts[0]
            if part.number < until.segment and self._cursor.offset >= part.size:
                self._move(Position(part.number + 1, spool_format.HEADER.size), 0)
                continue
            end = until.offset if part.number == until.segment else part.size
            stored: list[Stored] = []
            try:
                if self._reader is None:
                    self._reader, self._reader_end = Reader(part.path, end), end
                stored = self._reader.batch()
            except OSError as exc:
                if spool_format.is_passing(exc):
                    raise
            if stored:
                items = [one.item for one in stored]
                ends = [Position(part.number, one.record.end) for one in stored]
                return Batch(items, ends, is_replay=True)
            if self._reader is None or self._reader.is_damaged:  # deleted by somebody, or broken
                self._damaged += self._undelivered_before_recent(part)
            reached = end if self._reader is None else self._reader_end
            self._forget_reader()
            self._move(Position(part.number, reached), 0)
        return None

    def _undelivered_before_recent(self, part: _Part) -> int:
        """How many items of a segment are on disk only, and wait; one at least."""
        recent = sum(entry.end.segment == part.number for entry in self._recent)
        return max(1, part.count - part.delivered - recent)

    def delivered(self, batch: Batch) -> None:
        """Note that the backend has a batch, or will never take it."""
        with self._lock:
            if batch.ends[-1] > self._cursor:
                self._move(batch.ends[-1], len(batch.items))
            if self._reader is not None and batch.is_replay:
                self._reader.done(len(batch.items))

    def _move(self, cursor: Position, count: int) -> None:
        self._cursor = cursor
        while self._parts and self._parts[0].number < cursor.segment:
            self._parts.popleft().path.unlink(missing_ok=True)
            self._forget_reader()
        if not self._parts or self._parts[0].number != cursor.segment:
            return
        part = self._parts[0]
        part.delivered += count
        with contextlib.suppress(OSError):  # it will be sent twice, should the process die
            if len(self._parts) == 1 and self._overwriting >= 0:
                spool_format.write_number(
                    self._overwriting, spool_format.DELIVERED_AT, cursor.offset
                )
            else:
                descriptor = os.open(part.path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    spool_format.write_number(descriptor, spool_format.DELIVERED_AT, cursor.offset)
                finally:
                    os.close(descriptor)

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_files(self) -> None:
        for descriptor in (self._appending, self._overwriting):
            if descriptor >= 0:
                os.close(descriptor)
        self._appending = self._overwriting = -1

    def abandon(self) -> None:
        """Close the files and leave them: in a forked child they are the parent's."""
        self._close_files()
        self._forget_reader()

    def close(self) -> None:
        """Close the files, and delete them if nothing in them is wanted any more."""
        with self._lock:
            self._is_closed = True
            self._close_files()
            self._forget_reader()
            if self._cursor >= self._last and not self._open:
                while self._parts:
                    self._parts.popleft().path.unlink(missing_ok=True)
