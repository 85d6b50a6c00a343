"""The spool's file format: segments of records that a torn end or a flipped bit cannot confuse.

A segment begins with a header of 24 bytes, little endian:

    8 bytes  magic, "SPLSPOL1"
    u64      delivered: offset up to which the backend has confirmed everything
    u64      alive: the last sign of life of the owner, nanoseconds since the epoch

The two numbers are overwritten in place, which works on a full disk too. Then follow records:

    u32  length of the body        ┐
    u32  CRC-32 of what follows    │
    u8   kind                      ├ 22 bytes
    u8   void: 1 takes it back     │ (overwritten in place; not covered by the CRC)
    u64  span id, 0 if there is none
    u32  context: number of the context record the body belongs to
    body, OTLP protobuf

A CONTEXT record holds resource and instrumentation scope, once a segment; SPAN and LOG records hold
one finished span or log record each; an OPEN record holds a span that has not ended. A record that
is cut short or whose CRC is wrong ends its segment: nothing behind it is read.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

MAGIC: Final = b"SPLSPOL1"
HEADER: Final = struct.Struct("<8sQQ")
DELIVERED_AT: Final = 8
ALIVE_AT: Final = 16
RECORD: Final = struct.Struct("<IIBBQI")
VOID_AT: Final = 9
_CHECKED: Final = struct.Struct("<BQI")
_U64: Final = struct.Struct("<Q")

CONTEXT: Final = 0
SPAN: Final = 1
LOG: Final = 2
OPEN: Final = 3

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})


def is_passing(error: OSError) -> bool:
    """Whether a file may be readable in a moment: just now a descriptor or memory is missing."""
    return error.errno in _PASSING


class Record(NamedTuple):
    """One record as read: `start` and `end` are offsets in the segment."""

    kind: int
    is_void: bool
    span_id: int
    context: int
    body: bytes
    start: int
    end: int


def header(delivered: int = HEADER.size, alive: int = 0) -> bytes:
    """Encode a segment's header."""
    return HEADER.pack(MAGIC, delivered, alive)


def frame(kind: int, span_id: int, context: int, body: bytes) -> bytes:
    """Encode one record."""
    crc = zlib.crc32(body, zlib.crc32(_CHECKED.pack(kind, span_id, context)))
    return RECORD.pack(len(body), crc, kind, 0, span_id, context) + body


class Segment:
    """An existing segment, read from another place than it is written.

    Raises:
        OSError: the file is gone or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        head = os.pread(self._descriptor, HEADER.size, 0)
        self.is_valid = len(head) == HEADER.size and head.startswith(MAGIC)
        self.is_damaged = bool(head) and not self.is_valid
        """Whether something was there that nobody can read; a torn end was never finished."""
        self.delivered, self.alive = HEADER.size, 0
        if self.is_valid:
            _, self.delivered, self.alive = HEADER.unpack(head)

    def records(self, end: int | None = None) -> Iterator[Record]:
        """Read all sound records up to the offset `end`, or to the end of the file."""
        if not self.is_valid:
            return
        limit = os.fstat(self._descriptor).st_size if end is None else end
        offset = HEADER.size
        while offset + RECORD.size <= limit:
            head = os.pread(self._descriptor, RECORD.size, offset)
            if len(head) < RECORD.size:
                return
            length, crc, kind, void, span_id, context = RECORD.unpack(head)
            after = offset + RECORD.size + length
            if after > limit:
                return
            body = os.pread(self._descriptor, length, offset + RECORD.size)
            if zlib.crc32(body, zlib.crc32(_CHECKED.pack(kind, span_id, context))) != crc:
                self.is_damaged = True
                return
            yield Record(kind, bool(void), span_id, context, body, offset, after)
            offset = after

    def mark_delivered(self, offset: int) -> None:
        """Note that the backend has everything before `offset`."""
        self.delivered = offset
        write_number(self._descriptor, DELIVERED_AT, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def write_number(descriptor: int, offset: int, number: int) -> None:
    """Overwrite a number of the header; the descriptor must not be O_APPEND, which moves writes."""
    os.pwrite(descriptor, _U64.pack(number), offset)


def void(descriptor: int, offset: int) -> None:
    """Take the record at `offset` back."""
    os.pwrite(descriptor, b"\x01", offset + VOID_AT)
