"""What telemetry costs the whole service: POST /chat with it on and off, in alternating batches.

Two stacks of real processes (retrieval, offline model, API) run side by side: one with
telemetry as it comes, exporting to an OTLP sink on loopback that takes all and does nothing; one
with OTEL_SDK_DISABLED=true. Only one of them has requests at a time.
"""

import contextlib
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from overhead.service_stack import ServiceStack, otlp_sink

_BATCH = 40
_WARM_UP = 20
_LEAST_ROUNDS = 4


@dataclass(frozen=True)
class Throughput:
    """Requests a second and CPU milliseconds a request, one value a round."""

    on: list[float]
    off: list[float]
    cpu_on: list[float]
    cpu_off: list[float]

    @property
    def ratio(self) -> float:
        """Median of on / off, round by round."""
        return median(on / off for on, off in zip(self.on, self.off, strict=True))

    @property
    def cpu_ratio(self) -> float:
        return median(on / off for on, off in zip(self.cpu_on, self.cpu_off, strict=True))


def measure(seconds: float) -> Throughput:
    """Alternate batches, in shuffled order, until the time is over."""
    found = Throughput([], [], [], [])
    chance = random.Random(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        otlp_sink() as sink,
        contextlib.ExitStack() as stack,
    ):
        on = ServiceStack(Path(folder) / "on", stack, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
        off = ServiceStack(Path(folder) / "off", stack, OTEL_SDK_DISABLED="true")
        for one in (on, off):
            one.batch(_WARM_UP)
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(found.on) < _LEAST_ROUNDS:
            order = [(on, found.on, found.cpu_on), (off, found.off, found.cpu_off)]
            chance.shuffle(order)
            for one, rates, cpu in order:
                rate, milliseconds = one.batch(_BATCH)
                rates.append(rate)
                cpu.append(milliseconds)
        if not sink.taken:
            raise SystemExit("telemetry was on, and nothing came to the sink")
    return found
