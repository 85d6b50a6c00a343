"""Ends the processes `spanloom up` started, should `up` itself be killed.

Run as a script with the read end of a pipe on stdin, whose write end only `up` keeps. One line per
change: `+PGID` from a new process itself, before its exec, and `-PGID` from `up` when it has ended;
`+pPID` and `-pPID` for a process without a group of its own.
When `up` ends in whatever way, kill -9 included, the kernel closes the pipe; what is still listed
then gets SIGTERM, and SIGKILL after five seconds. No polling, nothing specific to one system.

Standard library only and nothing of ours: it starts in a few hundredths of a second.
"""

import contextlib
import os
import signal
import sys
import time

_GRACE_S = 5.0
_POLL_S = 0.05


def main() -> None:
    """Follow the pipe to its end, then end what is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    targets: dict[str, None] = {}  # in order of start
    for line in sys.stdin:
        change, target = line[:1], line[1:].strip()
        if change == "+":
            targets[target] = None
        else:
            targets.pop(target, None)
    left = list(reversed(targets))
    for target in left:
        _send(target, signal.SIGTERM)
    until = time.monotonic() + _GRACE_S
    while any(_send(target, 0) for target in left) and time.monotonic() < until:
        time.sleep(_POLL_S)
    for target in left:
        _send(target, signal.SIGKILL)


def _send(target: str, number: int) -> bool:
    """Signal a group or process; False where it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if target.startswith("p"):
            os.kill(int(target[1:]), number)
        else:
            os.killpg(int(target), number)
        return True
    return False


if __name__ == "__main__":
    main()
