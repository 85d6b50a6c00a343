"""What telemetry costs the whole service: POST /chat with it on and off, in alternating batches.

Three stacks of real processes (retrieval, offline model, API) run side by side: one with telemetry
as it comes, one with the same spans written by hand with the bare SDK (`service_by_hand`), both
exporting to an OTLP sink on loopback that takes all and does nothing; and one with
OTEL_SDK_DISABLED=true. Only one of them has requests at a time.

With a model that answers at once the cores are never idle, so each millisecond of telemetry is one
less for requests. A model that writes its tokens one by one, as real ones do, leaves them idle.
"""

import contextlib
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from overhead.service_stack import ServiceStack, otlp_sink

ON, BY_HAND, OFF = "on", "by hand", "off"
SATURATED, PACED = "at once", "paced"
TOKENS_PER_S = 100
_PARALLEL = {SATURATED: 4, PACED: 12}
_BATCH = {SATURATED: 40, PACED: 48}
_WARM_UP = 20
_LEAST_ROUNDS = 4
_COMPARED = 8
_EXPORTED_S = 3.0


@dataclass(frozen=True)
class Batches:
    """Requests a second and CPU milliseconds a request of one stack, one value a round."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def rate_ratio(self, other: "Batches") -> float:
        """Median of this / other, round by round."""
        return median(mine / its for mine, its in zip(self.rates, other.rates, strict=True))

    def cpu_ratio(self, other: "Batches") -> float:
        return median(mine / its for mine, its in zip(self.cpu, other.cpu, strict=True))


def measure(seconds: float, model: str) -> dict[str, Batches]:
    """Alternate batches, in shuffled order, until the time is over; `model` answers so."""
    pace = TOKENS_PER_S if model == PACED else 0
    batch, parallel = _BATCH[model], _PARALLEL[model]
    chance = random.Random(1)
    stacks: dict[str, ServiceStack] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        _compare_spans(Path(folder))
        for name in (ON, BY_HAND, OFF):
            sink = stack.enter_context(otlp_sink())
            settings = {"OTEL_SDK_DISABLED": "true"} if name == OFF else {}
            stacks[name] = ServiceStack(
                Path(folder) / name,
                stack,
                by_hand=name == BY_HAND,
                OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
                AGENT_OFFLINE_LLM_TOKENS_PER_S=str(pace),
                **settings,
            )
            stacks[name].batch(_WARM_UP)
            time.sleep(1)
            if (sink.taken > 0) is (name == OFF):
                raise SystemExit(f"telemetry {name}: {sink.taken} exports came")
        found = {name: Batches() for name in stacks}
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(found[ON].rates) < _LEAST_ROUNDS:
            for name in chance.sample(list(stacks), len(stacks)):
                rate, milliseconds = stacks[name].batch(batch, parallel)
                found[name].rates.append(rate)
                found[name].cpu.append(milliseconds)
    return found


def _compare_spans(folder: Path) -> None:
    """Stop unless both ways give the same spans: names and kinds, and 5 % of the attributes."""
    spans: dict[bool, Counter[tuple[str, int]]] = {}
    attributes: dict[bool, int] = {}
    for by_hand in (False, True):
        with otlp_sink(keep=True) as sink, contextlib.ExitStack() as stack:
            one = ServiceStack(
                folder / f"compared-{by_hand}",
                stack,
                by_hand=by_hand,
                OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            )
            one.batch(_COMPARED)
            time.sleep(_EXPORTED_S)
            bodies = [body for path, _, body in sink.kept or () if path.endswith("/traces")]
        found = [
            span
            for body in bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        spans[by_hand] = Counter((span.name, span.kind) for span in found)
        attributes[by_hand] = sum(len(span.attributes) for span in found)
    if spans[False] != spans[True]:
        raise SystemExit(
            f"the spans by hand are others: {spans[False] - spans[True]} are missing, "
            f"{spans[True] - spans[False]} too many"
        )
    if not 0.95 < attributes[True] / attributes[False] < 1.05:
        raise SystemExit(f"attributes: {attributes[False]} of ours, {attributes[True]} by hand")
