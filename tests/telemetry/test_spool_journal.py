import subprocess
import sys
from pathlib import Path

from opentelemetry.sdk.resources import Resource

from spanloom.telemetry import spool_format
from spanloom.telemetry.otlp_encoding import Encoded, Origin
from spanloom.telemetry.spool_journal import Journal


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
