"""No tracing, by hand and ours, alternating in one process."""

import asyncio
import contextlib
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from overhead.by_hand import ByHand
from overhead.recording import NullExporter, attribute_bytes, null_provider, shape
from overhead.sending import Nowhere, NullOtlpExporter, sending_provider
from overhead.statistics_of_pairs import Rounds
from overhead.workload import Agent, Workload
from spanloom.telemetry import endings, genai_metrics, logs, metrics
from spanloom.telemetry.inflight import InFlight
from spanloom.telemetry.langgraph import LangGraphInstrumentor
from spanloom.telemetry.otlp_export import EncodingLogProcessor, EncodingSpanProcessor
from spanloom.telemetry.spool import Spool

RUNS_PER_BATCH = {10: 20, 100: 3, 1000: 1}
WARM_UP = {10: 60, 100: 7, 1000: 1}
"""Runs after each switch that are not measured. To instrument changes classes, and Python then has
to find out anew what it had cached of them, which takes it about 60 passes of the same code; a
process is instrumented once, so that is no part of what a run costs."""
ROUNDS_BETWEEN_SWITCHES = 6
LEAST_ROUNDS = 5
SPOOL_BYTES = 64 * 1024 * 1024

Extras = frozenset[str]
"""What runs besides spans; without `counters` nothing is measured for Prometheus either, and but
for `sent` and `spool` nothing is encoded. `sent` holds for the spans by hand as well."""
EVERYTHING: Extras = frozenset({"counters", "metrics", "in-flight", "spool", "log lines"})


class Case(NamedTuple):
    """A size of run, a size of state, and what telemetry does besides spans."""

    spans: int
    state_bytes: int
    extras: Extras = frozenset()

    def __str__(self) -> str:
        """The case as an argument of another process, for `parse`."""
        return f"{self.spans}:{self.state_bytes}:{','.join(sorted(self.extras))}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        spans, state_bytes, extras = text.split(":")
        return cls(int(spans), int(state_bytes), frozenset(filter(None, extras.split(","))))


VARIANTS = ("nothing", "by_hand", "ours")
_MEASUREMENTS = ("record_llm", "record_tool", "record_workflow", "record_agent")


class _NoLogs(LogRecordExporter):
    """Takes log records and keeps none."""

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        del batch
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        del timeout_millis
        return True


def _measure_nothing(**_: object) -> None:
    """Stand in for what feeds the counters."""


RecordingExporter = NullExporter | NullOtlpExporter


def provider_by_hand(extras: Extras) -> tuple[TracerProvider, RecordingExporter]:
    """Build what spans by hand go to: what the SDK has, and never more than spans."""
    return sending_provider(BatchSpanProcessor) if "sent" in extras else null_provider()


@contextlib.contextmanager
def our_provider(extras: Extras) -> Iterator[tuple[TracerProvider, RecordingExporter]]:
    """Build what `setup` would build around the spans, each exporter replaced by a null one."""
    with contextlib.ExitStack() as stack:
        if "spool" in extras:
            exporter: RecordingExporter = NullOtlpExporter()
            provider = TracerProvider(shutdown_on_exit=False)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            spool = Spool(Path(folder), max_bytes=SPOOL_BYTES)
            spool.open("traces", lambda: exporter, 1.0)
            provider.add_span_processor(spool.span_processor())
        else:
            provider, exporter = (
                sending_provider(EncodingSpanProcessor) if "sent" in extras else null_provider()
            )
        if "in-flight" in extras:
            provider.add_span_processor(InFlight(_NoLogs, lambda: provider.resource))
        stack.callback(provider.shutdown)
        if "counters" not in extras:
            for name in _MEASUREMENTS:
                stack.enter_context(mock.patch.object(metrics, name, _measure_nothing))
        if "metrics" in extras:
            meters = MeterProvider(
                [InMemoryMetricReader()],
                exemplar_filter=TraceBasedExemplarFilter(),
                shutdown_on_exit=False,
            )
            genai_metrics.use_meter_provider(meters)
            stack.callback(meters.shutdown)
            stack.callback(genai_metrics.use_meter_provider, None)
        if "log lines" in extras:
            stack.enter_context(_step_lines())
        yield provider, exporter


@contextlib.contextmanager
def _step_lines() -> Iterator[None]:
    """Write one line a span to stdout, which is nowhere for now, and send a copy over OTLP."""
    provider = LoggerProvider(shutdown_on_exit=False)
    exporter = OTLPLogExporter(_transport=Nowhere())
    provider.add_log_record_processor(EncodingLogProcessor(exporter))
    sys.stdout.flush()
    terminal = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    logs.configure(service_name="bench", provider=provider)
    endings.set_step_listener(logs.log_step)
    try:
        yield
    finally:
        endings.set_step_listener(None)
        logs.stop_exporting()
        provider.shutdown()
        sys.stdout.flush()
        os.dup2(terminal, 1)
        os.close(terminal)


@contextlib.contextmanager
def instrumented(provider: TracerProvider) -> Iterator[None]:
    """Let LangGraph write spans to this provider inside the block."""
    LangGraphInstrumentor().instrument(tracer_provider=provider)
    try:
        yield
    finally:
        LangGraphInstrumentor().uninstrument()


class Bench:
    """One run size and one state size, in the three ways."""

    def __init__(self, *, spans: int, state_bytes: int, extras: Extras, seconds: float) -> None:
        self._spans = spans
        self._seconds = seconds
        self._runs = RUNS_PER_BATCH[spans]
        self._warm_up = WARM_UP[spans]
        self._extras = extras
        self._hand_provider, self._hand_exporter = provider_by_hand(extras)
        tracer = self._hand_provider.get_tracer("by hand")
        self._plain = Workload(Agent(), spans=spans, state_bytes=state_bytes)
        self._by_hand = Workload(ByHand(tracer, spans=spans), spans=spans, state_bytes=state_bytes)

    def measure(self) -> Rounds:
        """Alternate shuffled batches, with and without our instrumentation, until time is over."""
        with our_provider(self._extras) as (ours, exporter), asyncio.Runner() as runner:
            self._same_spans(runner, ours, exporter)

            def no_tracing(runs: int) -> None:
                runner.run(self._plain.run(runs))

            def by_hand(runs: int) -> None:
                runner.run(self._by_hand.run(runs))
                self._hand_provider.force_flush()

            def spanloom(runs: int) -> None:
                runner.run(self._plain.run(runs))
                ours.force_flush()

            found: dict[str, list[float]] = {"nothing": [], "by_hand": [], "ours": []}
            chance = random.Random(1)
            without = [("nothing", no_tracing), ("by_hand", by_hand)]
            halves = [without, [("ours", spanloom)]]
            end = time.monotonic() + self._seconds
            while time.monotonic() < end or len(found["ours"]) < LEAST_ROUNDS:
                chance.shuffle(halves)
                for half in halves:
                    with instrumented(ours) if half is not without else contextlib.nullcontext():
                        for _, batch in half:
                            batch(self._warm_up)
                        for _ in range(ROUNDS_BETWEEN_SWITCHES):
                            chance.shuffle(half)
                            for name, batch in half:
                                found[name].append(_cpu(batch, self._runs))
        self._hand_provider.shutdown()
        return Rounds(**found)

    def _same_spans(
        self, runner: asyncio.Runner, ours: TracerProvider, exporter: RecordingExporter
    ) -> None:
        """Warm up, and make sure that both ways write the very same."""
        runner.run(self._plain.run())
        by_hand = _record(runner, self._by_hand, self._hand_provider, self._hand_exporter)
        with instrumented(ours):
            mine = _record(runner, self._plain, ours, exporter)
        if len(mine) != self._spans or shape(mine) != shape(by_hand):
            different = set(shape(mine)) ^ set(shape(by_hand))
            raise SystemExit(f"spans by hand are not the same as ours: {sorted(different)}")


def bytes_per_run(*, spans: int, state_bytes: int) -> tuple[int, int]:
    """Attribute bytes of one of our runs: values, and keys with values."""
    plain = Workload(Agent(), spans=spans, state_bytes=state_bytes)
    with (
        our_provider(frozenset()) as (ours, exporter),
        asyncio.Runner() as runner,
        instrumented(ours),
    ):
        return attribute_bytes(_record(runner, plain, ours, exporter))


def _record(
    runner: asyncio.Runner,
    workload: Workload,
    provider: TracerProvider,
    exporter: RecordingExporter,
) -> list[ReadableSpan]:
    kept: list[ReadableSpan] = []
    exporter.kept = kept
    runner.run(workload.run())
    provider.force_flush()
    exporter.kept = None
    return kept


def _cpu(batch: Callable[[int], None], runs: int) -> float:
    """Microseconds of CPU a run, of all threads."""
    gc.collect()
    start = time.process_time()
    batch(runs)
    return (time.process_time() - start) * 1e6 / runs
