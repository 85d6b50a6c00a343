"""What tracing costs the whole service in instructions, counted by valgrind in its three processes.

    python bench/tracing_overhead.py --service --instructions

A busy machine changes CPU time by a third, and this count by little. Under valgrind a request takes
a hundred times as long, so whatever happens once a second is stretched as much: exports, heartbeats
and looks at open spans come about as often a request as without.
"""

import contextlib
import ctypes
import gc
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from overhead import throughput
from overhead.instructions import NEEDED, build_requests, read_counts
from overhead.service_stack import ServiceStack, otlp_sink
from spanloom.telemetry import inflight, settings

_STRETCH = 100
_WARM_UP = 8
_REQUESTS = 12
_SETTLED_S = 5.0
_DEADLINE_S = 900


class Counted(NamedTuple):
    """Millions of instructions a request, by process, and of how many exports."""

    retrieval: float
    model: float
    api: float
    exports: float

    @property
    def total(self) -> float:
        """All three processes."""
        return self.retrieval + self.model + self.api


def count() -> dict[str, Counted]:
    """Count telemetry on, by hand and off; SystemExit where valgrind is not installed."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise SystemExit(f"to count instructions install {' and '.join(missing)}")
    return {name: _count(name) for name in (throughput.ON, throughput.BY_HAND, throughput.OFF)}


def _count(name: str) -> Counted:
    defaults = settings.TelemetrySettings()
    telemetry = {
        "OTEL_BSP_SCHEDULE_DELAY": str(int(defaults.span_batch_delay_ms * _STRETCH)),
        "OTEL_BLRP_SCHEDULE_DELAY": str(int(defaults.log_batch_delay_ms * _STRETCH)),
        "OTEL_METRIC_EXPORT_INTERVAL": str(int(defaults.metric_interval_ms * _STRETCH)),
        "SPANLOOM_INFLIGHT_AFTER": str(defaults.inflight_after_s * _STRETCH),
    }
    if name == throughput.OFF:
        telemetry["OTEL_SDK_DISABLED"] = "true"
    with tempfile.TemporaryDirectory() as created, contextlib.ExitStack() as stack:
        folder = Path(created)
        sink = stack.enter_context(otlp_sink())
        service = ServiceStack(
            folder / "service",
            stack,
            by_hand=name == throughput.BY_HAND,
            command=[
                *("valgrind", "--tool=callgrind", "--instr-atstart=no", "-q"),
                f"--callgrind-out-file={folder}/{{name}}.counts",
                *(sys.executable, "-m", "overhead.service_instructions"),
                str(build_requests(folder)),
            ],
            PYTHONHASHSEED="0",
            AGENT_DEADLINE_S=str(_DEADLINE_S),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            **telemetry,
        )
        service.batch(_WARM_UP, parallel=1)
        service.signal(signal.SIGUSR1)
        time.sleep(_SETTLED_S)
        exports = sink.taken
        service.batch(_REQUESTS, parallel=1)
        service.signal(signal.SIGUSR2)
        time.sleep(_SETTLED_S)
        counts = (
            sum(read_counts(folder, f"{process}.counts*").values()) / _REQUESTS / 1e6
            for process in ("retrieval_listening", "offline_llm_ready", "api_listening")
        )
        return Counted(*counts, exports=(sink.taken - exports) / _REQUESTS)


def main() -> None:
    """Run a module of the service in this process, which runs under valgrind."""
    requests = ctypes.CDLL(sys.argv[1])

    def begin(*_: object) -> None:
        gc.collect()
        requests.begin()

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, lambda *_: requests.end(b"requests"))
    inflight.HEARTBEAT_S *= _STRETCH  # type: ignore[misc]
    inflight.LOOK_S *= _STRETCH  # type: ignore[misc]
    sys.argv = sys.argv[2:]
    os.environ.pop("LD_PRELOAD", None)  # valgrind's, not for what the service starts
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
