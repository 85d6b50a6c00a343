"""For tests of code that uses `spanloom.telemetry`: spans in memory, with counting ids.

with capture_spans() as captured:
with tool("calculator"):
...
assert captured.names() == ["execute_tool calculator"]
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler

from spanloom.telemetry import operation

_FIRST_TRACE_ID: Final = 0x10000000000000000000000000000000
_FIRST_SPAN_ID: Final = 0x1000000000000000


class CountingIdGenerator(IdGenerator):
    """Hands out trace and span ids one after the other."""

    def __init__(self) -> None:
        self._traces = _FIRST_TRACE_ID
        self._spans = _FIRST_SPAN_ID

    def generate_trace_id(self) -> int:
        """Return the next trace id."""
        self._traces += 1
        return self._traces

    def generate_span_id(self) -> int:
        """Return the next span id."""
        self._spans += 1
        return self._spans


class CapturedSpans:
    """The spans that ended so far, in order of their end."""

    def __init__(self, provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
        self.provider = provider
        """Give this to other instrumentations whose spans the test should see."""
        self._exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        """All ended spans."""
        return list(self._exporter.get_finished_spans())

    def names(self) -> list[str]:
        """Names of all ended spans."""
        return [span.name for span in self.spans]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of this name; AssertionError if there is none or more."""
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} spans named {name!r} among {self.names()}")
        return found[0]

    def children_of(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Return the spans right below this one."""
        parent_id = parent.context.span_id
        return [
            span
            for span in self.spans
            if span.parent is not None and span.parent.span_id == parent_id
        ]

    def tree(self) -> str:
        """Draw the spans as an indented tree, roots and siblings in order of their start."""
        spans = sorted(self.spans, key=lambda span: (span.start_time or 0, span.context.span_id))
        known = {span.context.span_id for span in spans}

        def draw(parent_id: int | None, depth: int) -> list[str]:
            lines: list[str] = []
            for span in spans:
                above = (
                    span.parent.span_id if span.parent and span.parent.span_id in known else None
                )
                if above == parent_id:
                    lines.append("  " * depth + span.name)
                    lines += draw(span.context.span_id, depth + 1)
            return lines

        return "\n".join(draw(None, 0))

    def clear(self) -> None:
        """Forget the spans so far."""
        self._exporter.clear()


@contextlib.contextmanager
def capture_spans(sampler: Sampler | None = None) -> Iterator[CapturedSpans]:
    """Let the context managers of this library write to memory inside the block."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler=sampler, id_generator=CountingIdGenerator(), shutdown_on_exit=False
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = operation.swap_tracer(provider.get_tracer("spanloom.telemetry"))
    try:
        yield CapturedSpans(provider, exporter)
    finally:
        operation.swap_tracer(before)
        provider.shutdown()
