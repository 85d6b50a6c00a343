"""Reads segments back, in batches of what the backend does not have yet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from spanloom.telemetry import spool_format
from spanloom.telemetry.otlp_encoding import Encoded, Origin
from spanloom.telemetry.otlp_export import BATCH_BYTES
from spanloom.telemetry.spool_codec import decode_origin

BATCH: Final = 512


class Stored(NamedTuple):
    """A record read back, with what it belongs to."""

    record: spool_format.Record
    origin: Origin

    @property
    def item(self) -> Encoded:
        """Return what was written."""
        return Encoded(self.record.body, self.origin, self.record.span_id)


class Reader:
    """Reads a segment in batches; a batch comes again until it is `done`."""

    def __init__(self, path: Path, end: int | None = None) -> None:
        self._segment = spool_format.Segment(path)
        self._stored = stored_records(self._segment, end)
        self._batch: list[Stored] = []

    @property
    def is_damaged(self) -> bool:
        """Whether records were met that nobody can read; those behind them are lost as well."""
        return self._segment.is_damaged

    def batch(self) -> list[Stored]:
        """Return undelivered spans or log records, at most 512 and 2 MiB (but one at least)."""
        size = sum(len(stored.record.body) for stored in self._batch)
        while len(self._batch) < BATCH and size < BATCH_BYTES:
            stored = next(self._stored, None)
            if stored is None:
                break
            if stored.record.kind in {spool_format.SPAN, spool_format.LOG} and (
                stored.record.start >= self._segment.delivered
            ):
                self._batch.append(stored)
                size += len(stored.record.body)
        return self._batch

    def done(self, count: int, *, mark: bool = False) -> None:
        """Take the first `count` off the batch; `mark` notes it in the file."""
        if mark and count:
            self._segment.mark_delivered(self._batch[count - 1].record.end)
        del self._batch[:count]

    def close(self) -> None:
        """Close the file."""
        self._segment.close()


def stored_records(segment: spool_format.Segment, end: int | None = None) -> Iterator[Stored]:
    """Read the records of a segment together with their contexts."""
    origins: dict[int, Origin] = {}
    for record in segment.records(end):
        if record.kind == spool_format.CONTEXT:
            origins[record.context] = decode_origin(record.body)
        elif record.context in origins:
            yield Stored(record, origins[record.context])
