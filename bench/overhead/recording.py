"""Where spans end up while tracing is measured: nowhere, or in memory to be looked at.

The environments of other tracers read this module: it needs the SDK and nothing more.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

QUEUE = 65_536
"""Spans that wait at most, so that no tracer is measured while it drops what it makes."""


class NullExporter(SpanExporter):
    """Counts what it is given, and keeps it only while asked to."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[ReadableSpan] | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        if self.kept is not None:
            self.kept.extend(spans)
        return SpanExportResult.SUCCESS


def null_provider(*, with_processor: bool = True) -> tuple[TracerProvider, NullExporter]:
    """Make a provider as an application would, with a batch processor before the exporter."""
    exporter = NullExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    if with_processor:
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
    return provider, exporter


def attribute_bytes(spans: Iterable[ReadableSpan]) -> tuple[int, int]:
    """Bytes of the attributes' values, and of keys and values; UTF-8, 8 for a number."""
    values = keys = 0
    for span in spans:
        for attributes in (span.attributes, *(event.attributes for event in span.events)):
            for key, value in (attributes or {}).items():
                keys += len(key.encode())
                values += _size(value)
    return values, keys + values


def _size(value: Any) -> int:
    if isinstance(value, bool):
        return 1
    if isinstance(value, int | float):
        return 8
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return sum(_size(one) for one in value)


def shape(spans: Sequence[ReadableSpan]) -> list[tuple[Any, ...]]:
    """What has to be the same in two traces: names, kinds, parents, attributes but for ids."""
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    return sorted(
        (
            span.name,
            span.kind.name,
            "" if span.parent is None else names[span.parent.span_id],
            tuple(
                (key, "…" if key == "langgraph.checkpoint_ns" else repr(value))
                for key, value in sorted((span.attributes or {}).items())
            ),
        )
        for span in spans
    )
