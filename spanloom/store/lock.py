"""One writer per store, across processes."""

import fcntl
import os
from pathlib import Path

from spanloom.errors import StoreLockedError


class StoreLock:
    """An exclusive flock on `<store>.lock`, which names its holder's pid.

    The kernel drops the lock with its process, however that ends, so a left-over file never
    locks anybody out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.lock")
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            self.release()
            raise StoreLockedError(
                f"{path} is in use by process {holder or 'unknown'}; stop that process "
                "or choose another data directory."
            ) from error
        except OSError:  # a file system without locks
            self.release()
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let the next one in. The file stays: removing it would let two holders in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
