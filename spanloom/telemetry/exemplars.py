"""The newest exemplar of each series and bucket, in a file that outlives its process.

prometheus_client keeps the numbers of a worker process in memory-mapped files, and drops its
exemplars. This is the file for them:

    magic 8 B │ bytes used 8 B │ record │ record │ …
    record:  key length 4 B │ key │ padding to 8 B │ body 256 B, written anew for each exemplar
    body:    crc32 4 B │ length of labels 2 B │ 2 B │ value 8 B │ unix time 8 B │ labels

A key is prometheus_client's own: the JSON list of metric, sample, labels and help. The checksum
covers key and body, so a body that was cut by a kill, or is read while it is written, is skipped.
"""

import contextlib
import json
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from prometheus_client import Metric
from prometheus_client.samples import Exemplar

MAX_FILE_BYTES: Final = 4 << 20
"""Series that come after the file is this long have no exemplars."""
MAX_CHARACTERS: Final = 128
"""Most that OpenMetrics allows an exemplar's label names and values together."""

_MAGIC: Final = b"SLEXEMP1"
_HEADER: Final = struct.Struct("<8sQ")
_KEY_LENGTH: Final = struct.Struct("<I")
_CHECKSUM: Final = struct.Struct("<I")
_REST: Final = struct.Struct("<Hxxdd")
_BODY_BYTES: Final = 256
_MAX_LABELS: Final = _BODY_BYTES - _CHECKSUM.size - _REST.size
_GROWTH: Final = 64 << 10


class _Slot(NamedTuple):
    position: int
    """Where the body is."""
    key_checksum: int


class ExemplarFile:
    """One process's exemplars. Safe to use from several threads."""

    def __init__(self, descriptor: int) -> None:
        """Continue the file behind this descriptor, or begin it; OSError if the disk is full."""
        self._descriptor = descriptor
        self._lock = threading.Lock()
        data = os.pread(descriptor, MAX_FILE_BYTES + _BODY_BYTES, 0)
        self._slots = {key: slot for key, slot, _ in _records(data)}
        self._used = max(
            (slot.position + _BODY_BYTES for slot in self._slots.values()), default=_HEADER.size
        )
        self._capacity = 0
        self._map = self._grow(self._used)
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, self._used)

    def put(self, key: str, exemplar: Exemplar) -> None:
        """Make this the newest exemplar of a series; one too long for the file is left out."""
        labels = "\0".join([text for item in exemplar.labels.items() for text in item]).encode()
        if len(labels) > _MAX_LABELS:
            return
        rest = _REST.pack(len(labels), exemplar.value, _time(exemplar)) + labels
        with self._lock:
            slot = self._slots.get(key) or self._add(key)
            if slot is None:
                return
            position, key_checksum = slot
            self._map[position : position + _CHECKSUM.size + len(rest)] = (
                _CHECKSUM.pack(crc32(rest, key_checksum)) + rest
            )

    def close(self) -> None:
        """Let the file go, and with it the lock that its holder may have on it."""
        self._map.close()
        os.close(self._descriptor)

    def _add(self, key: str) -> _Slot | None:
        encoded = key.encode()
        padded = encoded + b"\0" * (-(_KEY_LENGTH.size + len(encoded)) % 8)
        position = self._used + _KEY_LENGTH.size + len(padded)
        end = position + _BODY_BYTES
        if end > MAX_FILE_BYTES:
            return None
        if end > self._capacity:
            self._map = self._grow(end)
        self._map[self._used : position] = _KEY_LENGTH.pack(len(encoded)) + padded
        self._used = end
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, end)  # only now is the record there
        slot = self._slots[key] = _Slot(position, crc32(encoded))
        return slot

    def _grow(self, needed: int) -> mmap.mmap:
        capacity = -(-needed // _GROWTH) * _GROWTH
        # A write into a hole of a mapped file on a full disk is a SIGBUS: take the blocks now.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, 0, capacity)
        else:  # macOS
            os.ftruncate(self._descriptor, capacity)
        self._capacity = capacity
        return mmap.mmap(self._descriptor, capacity)


def _records(data: bytes) -> Iterator[tuple[str, _Slot, bytes]]:
    """Key, slot and body of each whole record."""
    if len(data) < _HEADER.size:
        return
    magic, used = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return
    used = min(used, len(data))
    start = _HEADER.size
    while start + _KEY_LENGTH.size + _BODY_BYTES <= used:
        (length,) = _KEY_LENGTH.unpack_from(data, start)
        start += _KEY_LENGTH.size
        position = start + length + -(_KEY_LENGTH.size + length) % 8
        if position + _BODY_BYTES > used:
            return
        encoded = data[start : start + length]
        start = position + _BODY_BYTES
        with contextlib.suppress(UnicodeDecodeError):
            yield encoded.decode(), _Slot(position, crc32(encoded)), data[position:start]


def read_exemplars(path: Path) -> dict[str, Exemplar]:
    """Every whole exemplar of a file by its key; FileNotFoundError if there is none."""
    found: dict[str, Exemplar] = {}
    for key, slot, body in _records(path.read_bytes()):
        (checksum,) = _CHECKSUM.unpack_from(body)
        length, value, timestamp = _REST.unpack_from(body, _CHECKSUM.size)
        rest = body[_CHECKSUM.size : _CHECKSUM.size + _REST.size + length]
        if not length or crc32(rest, slot.key_checksum) != checksum:
            continue
        texts = rest[_REST.size :].decode().split("\0")
        if len(texts) % 2 == 0 and sum(map(len, texts)) <= MAX_CHARACTERS:
            labels = dict(zip(texts[::2], texts[1::2], strict=True))
            found[key] = Exemplar(labels, value, timestamp)
    return found


def keep_newest(found: dict[str, Exemplar], more: Mapping[str, Exemplar]) -> None:
    """Add to `found` what is newer in `more`."""
    for key, exemplar in more.items():
        if key not in found or _time(exemplar) > _time(found[key]):
            found[key] = exemplar


def _time(exemplar: Exemplar) -> float:
    return float(exemplar.timestamp or 0)


def write_exemplars(path: Path, exemplars: Mapping[str, Exemplar]) -> None:
    """Replace a file by one with these exemplars, at once for whoever reads it."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    file = ExemplarFile(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    try:
        newest = sorted(exemplars.items(), key=lambda item: _time(item[1]), reverse=True)
        for key, exemplar in newest:
            file.put(key, exemplar)
    finally:
        file.close()
    partial.replace(path)


def attach_exemplars(metrics: Iterable[Metric], exemplars: Mapping[str, Exemplar]) -> None:
    """Put exemplars on the samples they belong to, where OpenMetrics allows one."""
    by_sample: dict[tuple[str, frozenset[tuple[str, str]]], Exemplar] = {}
    for key, exemplar in exemplars.items():
        with contextlib.suppress(ValueError, AttributeError):  # not a key of prometheus_client
            _, name, labels, _ = json.loads(key)
            by_sample[name, frozenset(labels.items())] = exemplar
    for metric in metrics:
        if metric.type == "counter":
            suffix, bounds = "_total", []
        elif metric.type == "histogram":
            suffix = "_bucket"
            bounds = sorted({float(s.labels["le"]) for s in metric.samples if "le" in s.labels})
        else:
            continue
        for index, sample in enumerate(metric.samples):
            found = by_sample.get((sample.name, frozenset(sample.labels.items())))
            if found is None or not sample.name.endswith(suffix):
                continue
            if bounds and not _is_within(found.value, float(sample.labels["le"]), bounds):
                continue
            metric.samples[index] = sample._replace(exemplar=found)


def _is_within(value: float, bound: float, bounds: list[float]) -> bool:
    below = bounds[: bounds.index(bound)]
    return value <= bound and (not below or value > below[-1])
