"""What of a span is handed to an exporter when it cannot be redacted."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from spanloom.telemetry.cleaning import CleaningSpanExporter

SECRET = "sk-proj-abcdefghijklmnop"


class Unreadable(Mapping[str, Any]):
    """Attributes of another instrumentation whose values cannot be read to the end."""

    def __getitem__(self, key: str) -> Any:
        raise LookupError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["kept"])

    def __len__(self) -> int:
        return 1


def test_one_that_cannot_be_redacted_goes_on_without_a_word_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracer = TracerProvider().get_tracer("test")
    with (
        tracer.start_as_current_span("parent") as parent,
        tracer.start_as_current_span("x") as span,
    ):
        pass
    odd = ReadableSpan(
        name=SECRET,
        context=span.get_span_context(),
        parent=parent.get_span_context(),
        attributes=Unreadable(),
        events=[Event("exception", {"exception.message": SECRET}, 1)],
        links=[Link(SpanContext(7, 9, is_remote=True), {"note": SECRET})],
        status=Status(StatusCode.ERROR, SECRET),
        start_time=1,
        end_time=2,
    )
    memory = InMemorySpanExporter()

    CleaningSpanExporter(memory).export([odd, span])  # type: ignore[list-item]

    bare, other = memory.get_finished_spans()
    assert SECRET not in bare.to_json() + caplog.text
    assert bare.context == span.get_span_context()
    assert bare.parent == parent.get_span_context()
    assert (bare.start_time, bare.end_time) == (1, 2)
    assert bare.status.status_code is StatusCode.ERROR
    assert [link.context.span_id for link in bare.links] == [9]
    assert other.name == "x"
