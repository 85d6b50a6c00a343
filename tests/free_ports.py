"""Ports for what a test starts later, or ends and starts again."""

import os
import random
import socket

# Below what the kernel gives outgoing connections, and what `spanloom up --ports auto` takes:
# nothing takes a port while its program is down. Of the processes of one parallel run each takes
# its own, so neither does another's program.
PORTS = range(10_000, 13_000)[
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) :: int(
        os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    )
]

_taken: set[int] = set()


def free_port() -> int:
    """A loopback port nobody listens on, never given out twice by this process."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port in _taken or probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _taken.add(port)
        return port
