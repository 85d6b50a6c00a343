"""For tests of code that is traced: spans and logs in memory, with ids and times that repeat.

    from inspect import cleandoc

    from spanloom.telemetry.testing import capture

    with capture() as captured:
        graph.invoke({"question": "…"})
    assert captured.tree() == cleandoc('''
        invoke_workflow rag
          invoke_node retrieve
            retrieval documents
          invoke_node generate
            chat small
    ''')

Nothing global is needed and nothing stays: inside the block LangGraph, the context managers of
`spanloom.telemetry` and the loggers write to memory, afterwards all is as before. In pytest the
fixture `spanloom_spans` is such a block, and a test that fails shows the trace.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any, Final
from unittest import mock

from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler

from spanloom.telemetry import operation
from spanloom.telemetry.log_capture import logs_sent_to
from spanloom.telemetry.pictures import draw_picture, draw_tree

_FIRST_TRACE_ID: Final = 0x10000000000000000000000000000000
_FIRST_SPAN_ID: Final = 0x1000000000000000


class CountingIdGenerator(IdGenerator):
    """Hands out trace and span ids one after the other."""

    def __init__(self) -> None:
        self._traces = itertools.count(_FIRST_TRACE_ID + 1)
        self._spans = itertools.count(_FIRST_SPAN_ID + 1)

    def generate_trace_id(self) -> int:
        """Return the next trace id."""
        return next(self._traces)

    def generate_span_id(self) -> int:
        """Return the next span id."""
        return next(self._spans)


class SteppedClock:
    """A clock that goes on by one step each time it is read: durations repeat exactly."""

    def __init__(self, *, start_ns: int = 1_767_225_600_000_000_000, step_ms: float = 1.0) -> None:
        """Begin at `start_ns`, Unix time in nanoseconds (2026-01-01)."""
        self._now = start_ns
        self._step = round(step_ms * 1e6)
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """Return the time in nanoseconds, and go on by one step."""
        with self._lock:
            now = self._now
            self._now += self._step
            return now

    def advance(self, seconds: float) -> None:
        """Let time pass, as a slow call would."""
        with self._lock:
            self._now += round(seconds * 1e9)


class _Recorder(SpanProcessor):
    """Keeps sampled spans: those that ended, in order of their end, and those that did not."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []
        self.open: dict[int, Span] = {}
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note that a span began."""
        del parent_context
        if span.context.trace_flags.sampled:
            with self._lock:
                self.open[span.context.span_id] = span

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span that ended."""
        with self._lock:
            if self.open.pop(span.context.span_id, None) is not None:
                self.ended.append(span)


class Captured:
    """What was recorded so far; can be asked inside the block and after it."""

    def __init__(self, provider: TracerProvider, recorder: _Recorder) -> None:
        self.provider = provider
        """Give this to other instrumentations whose spans the test should see."""
        self._recorder = recorder
        self._logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]

    @property
    def spans(self) -> list[ReadableSpan]:
        """All ended spans, in order of their end."""
        return list(self._recorder.ended)

    @property
    def open_spans(self) -> list[ReadableSpan]:
        """Spans that began and did not end yet."""
        return list(self._recorder.open.values())

    @property
    def logs(self) -> list[ReadableLogRecord]:
        """All log records (`capture` only), in order."""
        return list(self._logs.get_finished_logs())

    def names(self) -> list[str]:
        """Names of all ended spans."""
        return [span.name for span in self.spans]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of this name; AssertionError if there is none or more."""
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} spans named {name!r} among {self.names()}")
        return found[0]

    def attributes(self, name: str) -> dict[str, Any]:
        """Attributes of the only span of this name."""
        return dict(self.one(name).attributes or {})

    def children_of(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Return the spans right below this one."""
        parent_id = parent.context.span_id
        return [
            span
            for span in self.spans
            if span.parent is not None and span.parent.span_id == parent_id
        ]

    def logs_of(self, span: ReadableSpan) -> list[ReadableLogRecord]:
        """Return the log records written while this span was current."""
        return [one for one in self.logs if one.log_record.span_id == span.context.span_id]

    def tree(self, *attributes: str) -> str:
        """Draw the spans as an indented tree, roots and siblings in order of their start.

        A span that is not simply ok says so: `chat small [error: RateLimitError]`. Attributes
        named here are added where they are set: `chat small {gen_ai.usage.input_tokens=7}`.
        """
        return draw_tree(self.spans + self.open_spans, attributes)

    def picture(self) -> str:
        """Draw for people: as `tree`, with durations, tokens, exceptions and log lines."""
        return draw_picture(self.spans + self.open_spans, self.logs)

    def clear(self) -> None:
        """Forget the spans and logs so far."""
        self._recorder.ended.clear()
        self._recorder.open.clear()
        self._logs.clear()

    def logger_provider(self) -> LoggerProvider:
        """Make a provider whose records are found in `logs`."""
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        return provider


@contextlib.contextmanager
def capture_spans(
    sampler: Sampler | None = None, *, clock: SteppedClock | None = None
) -> Iterator[Captured]:
    """Let the context managers of this library write to memory inside the block.

    With a `clock` every SDK span of the process takes its times from it.
    """
    recorder = _Recorder()
    provider = TracerProvider(
        sampler=sampler, id_generator=CountingIdGenerator(), shutdown_on_exit=False
    )
    provider.add_span_processor(recorder)
    with contextlib.ExitStack() as stack:
        if clock is not None:
            stack.enter_context(mock.patch.object(sdk_trace, "time_ns", clock))
        before = operation.swap_tracer(provider.get_tracer("spanloom.telemetry"))
        stack.callback(operation.swap_tracer, before)
        yield Captured(provider, recorder)


@contextlib.contextmanager
def capture(
    sampler: Sampler | None = None, *, clock: SteppedClock | None = None
) -> Iterator[Captured]:
    """Let graphs, context managers and loggers write to memory inside the block.

    LangGraph is traced whether or not it was instrumented before; other instrumentations write
    here if they are given `provider`.
    """
    from spanloom.telemetry.langgraph.instrument import PATCHER  # noqa: PLC0415 - not for spans alone

    with (
        capture_spans(sampler, clock=clock) as captured,
        PATCHER.traced_by(captured.provider),
        logs_sent_to(captured.logger_provider()),
    ):
        yield captured
