"""A writer to be killed: stores traces for ever and prints each acknowledged trace's number.

Usage: python writer_process.py DATABASE DURABILITY
"""

import sys
from pathlib import Path

from spanloom.contract import Batch
from spanloom.store import open_store
from tests.builders import log, point, span


def main() -> None:
    database, durability = sys.argv[1:]
    assert durability in ("process", "full")
    store = open_store(Path(database), durability=durability)
    number = 0
    while True:
        waiting = []
        for _ in range(4):
            number += 1
            batch = Batch(
                spans=[span(f"s{n}", n + 1, trace=number) for n in range(5)],
                logs=[log(f"line {number}", trace=number)],
                metrics=[point("m", number, at_ms=number)],
            )
            waiting.append((number, store.submit(batch)))
        for each, future in waiting:
            future.result(30)
            sys.stdout.write(f"{each}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
