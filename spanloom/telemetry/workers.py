"""The numbers of several worker processes that share a folder (PROMETHEUS_MULTIPROC_DIR).

    counter_17.db  histogram_17.db  gauge_livesum_17.db   prometheus_client's, one set a process
    worker_17.exemplars                                   ours, locked as long as process 17 lives
    counter_merged.db  histogram_merged.db  merged.exemplars   what dead processes left

A dead worker's gauges are removed; its counters and exemplars are added to the merged files and
its own removed, so that restarts do not fill the folder. Readers take no lock. A merged file names
the files it includes until they are gone, and is replaced by rename: whenever somebody reads or is
killed, each file counts once. One process merges at a time, under `spanloom.lock`.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.samples import Exemplar

from spanloom.telemetry.exemplars import (
    ExemplarFile,
    attach_exemplars,
    keep_newest,
    read_exemplars,
    write_exemplars,
)

_logger: Final = logging.getLogger(__name__)

_MERGED_TYPES: Final = ("counter", "histogram", "summary")
_FILE_OF_PROCESS: Final = re.compile(
    r"(?:counter|histogram|summary|gauge_live[a-z]*)_(\d+)\.db|worker_(\d+)\.exemplars"
)
_TRAILER: Final = struct.Struct("<I8s")
_TRAILER_MAGIC: Final = b"SLMERGED"
_ATTEMPTS: Final = 50


class SharedMetrics:
    """What the workers of one folder measured together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exemplars: ExemplarFile | None = None
        self._is_unwritable = False
        self._opening = threading.Lock()
        os.register_at_fork(after_in_child=self._forget_parent)

    def join(self) -> None:
        """Make this process one of the workers, before its first metric is made.

        Values of metrics made from now on keep their exemplars.
        """
        with contextlib.suppress(OSError):
            # A killed worker that had our process id: what was merged of it must not be read as
            # ours, and ours must not be taken for merged.
            if any(f"_{os.getpid()}.db" in name for name in self._included()):
                with self._lock():
                    self._finish_merge()
        self._own_exemplars()

        def set_exemplar(value: Any, exemplar: Exemplar) -> None:
            try:
                file = self._exemplars or self._own_exemplars()
                if file is not None:
                    file.put(value._key, exemplar)  # noqa: SLF001 - how upstream's files name it
            except Exception:  # telemetry never breaks the application
                _logger.debug("an exemplar was not kept", exc_info=True)

        values.ValueClass = type(
            "ValueWithExemplar", (values.ValueClass,), {"set_exemplar": set_exemplar}
        )

    def leave(self) -> None:
        """Take this worker's gauges out of the sum, at its end."""
        mark_process_dead(os.getpid(), str(self._folder))  # type: ignore[no-untyped-call]

    def collect(self) -> list[Metric]:
        """Add up the workers; OSError if the folder cannot be read."""
        self._merge_dead()
        for _ in range(_ATTEMPTS):
            before = self._merged_identity()
            with contextlib.suppress(FileNotFoundError):  # merged while we read
                metrics = self._sum()
                exemplars = self._all_exemplars()
                if self._merged_identity() == before:
                    attach_exemplars(metrics, exemplars)
                    return metrics
            time.sleep(0.002)
        raise OSError(f"the metrics in {self._folder} change too fast to be read")

    def registry(self) -> CollectorRegistry:
        """A registry whose only content is the workers' sum as of now."""
        registry = CollectorRegistry()
        registry.register(_Collected(self.collect()))
        return registry

    # This worker's own file

    def _own_exemplars(self) -> ExemplarFile | None:
        """Open this process's file and lock it for life; None where that cannot be done."""
        with self._opening:
            if self._exemplars is None and not self._is_unwritable:
                path = self._folder / f"worker_{os.getpid()}.exemplars"
                try:
                    self._exemplars = ExemplarFile(_open_locked(path))
                except OSError as exc:
                    self._is_unwritable = True
                    _logger.warning("metrics have no exemplars: %s: %s", path, exc)
            return self._exemplars

    def _forget_parent(self) -> None:
        self._opening = threading.Lock()
        # The parent's lock ends with it only if no copy of the descriptor is open elsewhere.
        if self._exemplars is not None:
            self._exemplars.close()
            self._exemplars = None

    # Reading

    def _sum(self) -> list[Metric]:
        included = self._included()
        files = sorted(str(path) for path in self._folder.glob("*.db") if path.name not in included)
        try:
            return _merge(files)
        except FileNotFoundError:
            raise
        except Exception:  # noqa: BLE001 - a process killed while it made a file
            return _merge([file for file in files if _is_sound(file)])

    def _all_exemplars(self) -> dict[str, Exemplar]:
        found: dict[str, Exemplar] = {}
        for path in self._folder.glob("*.exemplars"):
            keep_newest(found, read_exemplars(path))
        return found

    def _merged_paths(self) -> list[Path]:
        return [self._folder / f"{kind}_merged.db" for kind in _MERGED_TYPES]

    def _merged_identity(self) -> list[tuple[int, int, int]]:
        found = []
        for path in (*self._merged_paths(), self._folder / "merged.exemplars"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found

    def _included(self) -> set[str]:
        """Names of files that are in a merged file already."""
        return {name for path in self._merged_paths() for name in _trailer(path)[0]}

    # Merging

    def _merge_dead(self) -> None:
        """Merge what dead workers left; whoever cannot do it now leaves it to the next reader."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            ids = {
                int(match[1] or match[2])
                for name in os.listdir(self._folder)  # noqa: PTH208 - names are what is needed
                if (match := _FILE_OF_PROCESS.fullmatch(name))
            }
            ids.discard(os.getpid())
            dead = [pid for pid in ids if self._is_dead(pid, held)]
            if dead or self._included():
                held.enter_context(self._lock())
                self._finish_merge()
                self._merge(dead)

    def _merge(self, dead: list[int]) -> None:
        for pid in dead:
            mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
        workers = [self._folder / f"worker_{pid}.exemplars" for pid in dead]
        exemplars: dict[str, Exemplar] = {}
        for path in (self._folder / "merged.exemplars", *workers):
            with contextlib.suppress(FileNotFoundError):
                keep_newest(exemplars, read_exemplars(path))
        if exemplars:
            write_exemplars(self._folder / "merged.exemplars", exemplars)
        for kind, merged in zip(_MERGED_TYPES, self._merged_paths(), strict=True):
            files = [self._folder / f"{kind}_{pid}.db" for pid in dead]
            if files := [path for path in files if path.exists()]:
                _write_merged(merged, files)
        self._finish_merge()
        for path in workers:
            path.unlink(missing_ok=True)

    def _finish_merge(self) -> None:
        """Remove what is merged, and only then stop naming it."""
        for path in self._merged_paths():
            names, size = _trailer(path)
            if names:
                for name in names:
                    (self._folder / name).unlink(missing_ok=True)
                os.truncate(path, size)

    def _is_dead(self, pid: int, held: contextlib.ExitStack) -> bool:
        """Whether nobody uses that process's files; if so, nobody begins to until `held` ends."""
        with contextlib.suppress(FileNotFoundError):
            path = self._folder / f"worker_{pid}.exemplars"
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                _logger.debug("%s cannot be locked", path)
        return not _is_alive(pid) or not _uses(pid, self._folder)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Be the only one that merges; BlockingIOError if somebody else is."""
        path = self._folder / "spanloom.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


class _Collected:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _open_locked(path: Path) -> int:
    """Descriptor of a file that nobody else uses; OSError if it stays in use."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # a killed worker had this process id, and is being merged just now
        except OSError:
            return descriptor  # a file system without locks
        os.close(descriptor)
        time.sleep(0.02)
    raise BlockingIOError(errno.EAGAIN, "is locked by somebody else")


def _merge(files: list[str]) -> list[Metric]:
    metrics = list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
    for metric in metrics:
        if metric.type == "histogram":
            _leave_out_unfinished(metric)
    return [metric for metric in metrics if metric.samples]


def _leave_out_unfinished(histogram: Metric) -> None:
    """Take out each series of which a worker has just begun to write the buckets, or was killed.

    A series is written value by value, +Inf last, and has counted nothing before; readers refuse
    the whole answer because of one without +Inf (OpenMetrics 1.0, section "Histogram").
    """
    finished = {
        frozenset(sample.labels.items() - {("le", "+Inf")})
        for sample in histogram.samples
        if sample.labels.get("le") == "+Inf"
    }
    histogram.samples = [
        sample
        for sample in histogram.samples
        if frozenset(pair for pair in sample.labels.items() if pair[0] != "le") in finished
    ]


def _is_sound(file: str) -> bool:
    try:
        _merge([file])
    except FileNotFoundError:
        raise
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the others are shown
        _logger.debug("%s is incomplete and left out", file)
        return False
    return True


def _write_merged(path: Path, files: list[Path]) -> None:
    """Replace a merged file by its sum with `files`, which it names from now on."""
    totals: dict[str, float] = {}
    sources = [*files, path] if path.exists() else files
    for source in sources:
        with contextlib.suppress(RuntimeError, ValueError, struct.error):  # cut by a kill
            entries = MmapedDict.read_all_values_from_file(source)  # type: ignore[no-untyped-call]
            for key, value, _, _ in entries:
                totals[key] = totals.get(key, 0.0) + value
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    file = MmapedDict(str(partial))  # type: ignore[no-untyped-call]
    for key in sorted(totals):
        file.write_value(key, totals[key], 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
    names = json.dumps([source.name for source in files]).encode()
    with partial.open("ab") as end:
        end.write(names + _TRAILER.pack(len(names), _TRAILER_MAGIC))
    partial.replace(path)


def _trailer(path: Path) -> tuple[list[str], int]:
    """Names of the files a merged file includes, and its size without them."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _TRAILER.size
            file.seek(max(end, 0))
            length, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            if magic != _TRAILER_MAGIC:
                return [], end + _TRAILER.size
            file.seek(end - length)
            return json.loads(file.read(length)), end - length
    except (FileNotFoundError, struct.error, ValueError):  # or cut off just now: they are gone
        return [], 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _uses(pid: int, folder: Path) -> bool:
    """Whether a process has files of the folder open: its id may be that of a dead worker."""
    inside = f"{folder.resolve()}{os.sep}"
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it closed that one just now
                if str(link.readlink()).startswith(inside):
                    return True
    except OSError:  # not Linux, or not our process; or it ended just now, as the next look shows
        return True
    return False
