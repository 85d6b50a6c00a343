"""Ports: is one taken, by whom, and which are free."""

import random
import socket
from dataclasses import dataclass
from pathlib import Path

from spanloom.cli.safe_text import clean
from spanloom.errors import ConfigurationError

_LISTEN = "0A"  # state column of /proc/net/tcp
_CONNECT_TIMEOUT_S = 0.5
# Below Linux's default ephemeral range (32768 up): nobody's outgoing connection takes a port
# between our choosing it and the process's binding it.
_FREE_RANGE = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port."""

    pid: int
    command: str


def is_taken(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could not listen there now."""
    with socket.socket() as attempt:
        # As servers do, so that connections in TIME_WAIT do not count.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
        except OSError:
            return True
    # Where SO_REUSEADDR lets 127.0.0.1 be bound beside a listener on 0.0.0.0 (macOS).
    with socket.socket() as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        return probe.connect_ex((host, port)) == 0


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nothing listens on now."""
    found: list[int] = []
    for port in random.sample(_FREE_RANGE, len(_FREE_RANGE)):
        if len(found) == count:
            return found
        if not is_taken(port, host):
            found.append(port)
    raise ConfigurationError(f"fewer than {count} free ports between 20000 and 32000")


def find_holder(port: int) -> Holder | None:
    """Who listens on a port; None where it cannot be seen (another user's, or not Linux)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    arguments = (process / "cmdline").read_bytes().split(b"\0")
                    command = " ".join(a.decode(errors="replace") for a in arguments if a)
                    return Holder(int(process.name), clean(command))
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            # sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …
            columns = row.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    return inodes
