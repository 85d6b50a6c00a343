import asyncio
import concurrent.futures
import pickle
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.types import Command
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from spanloom import semconv
from spanloom.telemetry import deadline, step
from spanloom.telemetry.endings import classify, raised_in
from spanloom.telemetry.testing import Captured, capture_spans


@pytest.fixture
def captured() -> Iterator[Captured]:
    with capture_spans() as captured:
        yield captured


def outcome(span: ReadableSpan) -> tuple[object, object, StatusCode, int]:
    found = span.attributes or {}
    return (
        found.get(semconv.SPANLOOM_OUTCOME),
        found.get(semconv.ERROR_TYPE),
        span.status.status_code,
        len(span.events),
    )


class APITimeoutError(Exception):
    """Named as in the OpenAI and Anthropic SDKs."""


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (None, ("ok", None)),
        (ValueError("x"), ("error", "ValueError")),
        (httpx2.ConnectError("x"), ("error", "httpx2.ConnectError")),
        (TimeoutError(), ("timeout", "timeout")),
        (httpx2.ReadTimeout("x"), ("timeout", "timeout")),
        (APITimeoutError(), ("timeout", "timeout")),
        (asyncio.CancelledError(), ("cancelled", "cancelled")),
        (concurrent.futures.CancelledError(), ("cancelled", "cancelled")),
        (KeyboardInterrupt(), ("cancelled", "cancelled")),
        (GeneratorExit(), ("abandoned_stream", None)),
        (GraphInterrupt(()), ("interrupted", None)),
        (GraphBubbleUp(), ("interrupted", None)),
        (ParentCommand(Command(goto="other")), ("handoff", None)),
    ],
)
def test_endings_follow_the_exception(
    exc: BaseException | None, expected: tuple[str, str | None]
) -> None:
    """Each kind of exception has its one outcome, and only failures an error type."""
    ending = classify(exc)

    assert (ending.outcome, ending.error_type) == expected


def test_control_flow_leaves_the_status_unset(captured: Captured) -> None:
    """An interrupt passes through spans without marking them as failed."""
    with pytest.raises(GraphInterrupt), step("outer"), step("inner"):
        raise GraphInterrupt(())

    for span in captured.spans:
        assert outcome(span) == ("interrupted", None, StatusCode.UNSET, 0)


def test_an_exception_is_one_event_on_the_innermost_span(captured: Captured) -> None:
    """Outer spans get status and error type; the event stays where it happened."""
    with pytest.raises(ValueError, match="知识"), step("outer"), step("inner"):
        raise ValueError("知识库 sk-abcdefghijklmnop")

    assert outcome(captured.one("inner")) == ("error", "ValueError", StatusCode.ERROR, 1)
    assert outcome(captured.one("outer")) == ("error", "ValueError", StatusCode.ERROR, 0)
    assert captured.one("outer").status.description == "知识库 [REDACTED]"
    event = captured.one("inner").events[0].attributes or {}
    assert event["exception.message"] == "知识库 [REDACTED]"
    assert "test_endings.py" in str(event["exception.stacktrace"])
    assert "sk-abc" not in str(event)


def test_the_same_exception_in_another_trace_is_an_event_again(captured: Captured) -> None:
    """An exception object that a cache hands out twice is recorded in both traces."""
    shared = ValueError("shared")
    for name in ("first", "second"):
        with pytest.raises(ValueError, match="shared"), step(name):
            raise shared

    assert [len(span.events) for span in captured.spans] == [1, 1]


def test_an_exception_keeps_where_it_was_raised(captured: Captured) -> None:
    """Outside of all spans the exception still names its span, and can be pickled."""
    with pytest.raises(ValueError, match="x") as raised, step("outer"), step("inner"):
        raise ValueError("x")

    context = raised_in(raised.value)
    assert context is not None
    assert context.span_id == captured.one("inner").context.span_id
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), ValueError)


def test_texts_are_capped(captured: Captured) -> None:
    """A message of a megabyte and a deep stack do not reach the exporter whole."""

    def deep(levels: int) -> None:
        if levels == 0:
            raise ValueError("x" * 1_000_000)
        deep(levels - 1)

    with pytest.raises(ValueError, match="x"), step("inner"):
        deep(300)

    event = captured.one("inner").events[0].attributes or {}
    assert len(str(event["exception.message"])) <= 4096
    assert len(str(event["exception.stacktrace"])) <= 16_384
    assert len(captured.one("inner").status.description or "") <= 4096


def test_an_exception_that_cannot_be_printed_still_ends_its_span(captured: Captured) -> None:
    """A broken __str__ costs the message, not the ending."""

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(BrokenError), step("inner"):
        raise BrokenError

    assert captured.one("inner").status.status_code is StatusCode.ERROR


async def test_a_deadline_cuts_tasks_started_inside(captured: Captured) -> None:
    """Every span that the deadline cuts is a timeout, in child tasks too, and names it."""

    async def work(name: str) -> None:
        with step(name):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError), step("request"):
        async with deadline(0.02):
            await asyncio.gather(work("one"), work("two"))

    assert set(captured.names()) == {"one", "two", "request"}
    for span in captured.spans:
        assert (span.attributes or {})[semconv.SPANLOOM_DEADLINE_MS] == 20
        assert outcome(span)[:3] == ("timeout", "timeout", StatusCode.ERROR)
    assert len(captured.one("request").events) == 1
    assert len(captured.one("one").events) == 0


async def test_a_cancellation_before_the_deadline_stays_one(captured: Captured) -> None:
    """A client that goes away is `cancelled`, whatever time was left."""

    async def request() -> None:
        async with deadline(30):
            with step("work"):
                await asyncio.sleep(30)

    task = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert outcome(captured.one("work")) == ("cancelled", "cancelled", StatusCode.ERROR, 0)
    assert (captured.one("work").attributes or {})[semconv.SPANLOOM_DEADLINE_MS] == 30_000


async def test_the_outer_of_two_deadlines_counts_too(captured: Captured) -> None:
    """Work inside a long deadline that a short one around it cuts is a timeout."""

    async def request() -> None:
        async with deadline(0.02), deadline(30):
            with step("work"):
                await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        await request()

    work = captured.one("work").attributes or {}
    assert work[semconv.SPANLOOM_OUTCOME] == "timeout"
    assert work[semconv.SPANLOOM_DEADLINE_MS] == 20


async def test_a_reader_that_leaves_a_stream_is_no_error(captured: Captured) -> None:
    """Closing an async generator early ends its span as an abandoned stream."""

    async def stream() -> AsyncIterator[int]:
        with step("stream"):
            yield 1
            yield 2

    reading = stream()
    assert await anext(reading) == 1
    await reading.aclose()  # type: ignore[attr-defined]  # an async generator has it

    assert outcome(captured.one("stream")) == ("abandoned_stream", None, StatusCode.UNSET, 0)
