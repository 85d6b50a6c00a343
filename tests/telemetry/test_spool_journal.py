import os
import subprocess
import sys
import threading
from pathlib import Path

from opentelemetry.sdk.resources import Resource

from spanloom.telemetry import spool_format
from spanloom.telemetry.otlp_encoding import Encoded, Origin
from spanloom.telemetry.spool_journal import Journal
from spanloom.telemetry.spool_orphans import LOCK, Orphan, segment_path


def test_without_a_free_descriptor_what_is_on_disk_waits(tmp_path: Path) -> None:
    """A segment that cannot be opened just now is read later, and not taken for deleted."""
    script = """
import os, resource, sys
from pathlib import Path
from opentelemetry.sdk.resources import Resource
from spanloom.telemetry import spool_format
from spanloom.telemetry.otlp_encoding import Encoded, Origin
from spanloom.telemetry.spool_journal import Journal
folder, lost = Path(sys.argv[1]), []
journal = Journal(
    lambda number: folder / f"{number}.spool", max_bytes=2**20, fsync=False,
    before_first=lambda: None, on_lost=lost.append, on_damaged=lost.append,
)
origin = Origin(Resource.get_empty(), None)
for number in range(3000):  # more than are kept in memory
    journal.append(spool_format.SPAN, Encoded(b"%d" % number, origin, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    journal.next_batch()
    said = "passed over"
except OSError:
    said = "waits"
for descriptor in taken:
    os.close(descriptor)
print(said, journal.next_batch().items[0].body.decode(), lost)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["waits", "0", "[]"]


def test_a_segment_that_is_gone_is_counted(tmp_path: Path) -> None:
    """What only a deleted segment had is counted, and what comes after it arrives."""
    lost: list[int] = []
    journal = Journal(
        lambda number: tmp_path / f"{number}.spool",
        max_bytes=1_048_576,
        fsync=False,
        before_first=lambda: None,
        on_lost=lost.append,
        on_damaged=lost.append,
    )
    origin = Origin(Resource.get_empty(), None)
    for number in range(3000):
        text = b"%d" % number
        journal.append(spool_format.SPAN, Encoded(text + b" " * 30, origin, 0))
    (tmp_path / "1.spool").unlink()
    arrived: list[bytes] = []
    while journal.cursor < journal.end:
        batch = journal.next_batch()
        if batch is not None:  # passing over is a step of its own
            arrived += [item.body.strip() for item in batch.items]
            journal.delivered(batch)
    journal.close()

    assert arrived == [b"%d" % number for number in range(sum(lost), 3000)]
    assert 0 < sum(lost) < 3000


def test_an_orphan_is_measured_while_its_segments_are_sent_and_deleted(tmp_path: Path) -> None:
    """Else an orphan found in this moment stays locked, and nobody sends it."""
    staying = segment_path(tmp_path, "1-1-a", "logs", 1)
    staying.write_bytes(b"x" * 100)
    going = segment_path(tmp_path, "1-1-a", "traces", 1)
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            going.write_bytes(spool_format.header())
            going.unlink()

    lock = os.open(tmp_path / f"1-1-a{LOCK}", os.O_RDWR | os.O_CREAT)
    orphan = Orphan(tmp_path, "1-1-a", lock)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        sizes = {orphan.size() for _ in range(3000)}
    finally:
        ended.set()
        sender.join()
        os.close(lock)
    assert min(sizes) == 100
    assert max(sizes) <= 100 + len(spool_format.header())
