"""Runs one scenario and notes everything that a judge may ask for.

The spans are taken from a provider of the card's own, which the tracer is given; HTTP requests are
traced by OpenTelemetry's instrumentation of httpx, as in any application.
"""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    LogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from scoring.inside.server import Server
from scoring.record import HARNESS_SCOPE, HTTP_SCOPE, MODEL

GRACE_S = 10.0
"""Spans may end so much later than the work they stand for."""
OPEN_S = 12.0
"""How long a tool hangs where nobody shows it."""
_REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")


class ApplicationChangedError(Exception):
    """The application did something else than it does without a tracer."""


class NotPossibleError(Exception):
    """This release of LangGraph cannot do what the scenario does."""


def http_library() -> ModuleType:
    """The HTTP library that the model's SDK uses: httpx2 in newer releases."""
    try:
        return import_module("httpx2")
    except ImportError:
        return import_module("httpx")


class Recorder(SpanProcessor):
    """Every span that began, and the texts of those that ended, as an exporter gets them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.arrived: list[str] = []
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        del parent_context
        with self._lock:
            self.spans.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        with self._lock:
            self.arrived.append(f"{span.name} {dict(span.attributes or {})}")

    def clear(self) -> None:
        with self._lock:
            self.spans = []
            self.arrived = []


class LogSink(LogRecordExporter):
    """What the tracer exports as logs; beside spans, the other way to tell of open work."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        for one in batch:
            record = one.log_record
            self._recorder.arrived.append(f"{record.body} {dict(record.attributes or {})}")
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing is held."""
        del timeout_millis
        return True


class _Complaints(logging.Handler):
    """What OpenTelemetry says of contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Bench:
    """The application's surroundings: server spans, another service, and somebody who notes."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self.recorder)
        self.log_sink = LogSink(self.recorder)
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.log_sink))
        self.server = Server()
        self.switch_off: Callable[[], None] | None = None
        self.callbacks: Callable[[], list[Any]] | None = None
        """Makes the handlers of a run, for a tracer that has to be handed to each."""
        self._tracer = self.provider.get_tracer(HARNESS_SCOPE)
        self._httpx = http_library()
        self._client = self._httpx.Client(timeout=60, trust_env=False)
        self._async_client: Any = None
        self._complaints = _Complaints()
        logging.getLogger("opentelemetry.context").addHandler(self._complaints)
        self._numbers = itertools.count()
        self._reset()

    def _reset(self) -> None:
        self.recorder.clear()
        self.server.headers.clear()
        self.server.model_headers.clear()
        self._complaints.lines.clear()
        self._marks: list[tuple[str, str, str, str]] = []
        self._requests: list[str] = []
        self._server_spans: set[int] = set()
        self._leaks: list[str] = []
        self._arrived: list[str] = []
        self._failure: str | None = None
        self.after_off = 0

    # --- for the application ------------------------------------------------------------------

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Stand in the server span of a request that comes with a traceparent."""
        ids = self.provider.id_generator
        caller = SpanContext(
            ids.generate_trace_id(), ids.generate_span_id(), True, TraceFlags(TraceFlags.SAMPLED)
        )
        context = trace.set_span_in_context(NonRecordingSpan(caller), Context())
        with self._tracer.start_as_current_span(
            "POST /chat",
            context=context,
            kind=SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._server_spans.add(span.get_span_context().span_id)
            request = f"{caller.trace_id:032x}"
            self._requests.append(request)
            token = _REQUEST.set(request)
            try:
                yield
            finally:
                self.at_home("after the run")
                _REQUEST.reset(token)

    def at_home(self, when: str = "between two items") -> None:
        """Note it if the caller's current span is not its own any more."""
        context = trace.get_current_span().get_span_context()
        if (
            f"{context.trace_id:032x}" != _REQUEST.get()
            or context.span_id not in self._server_spans
        ):
            name = getattr(trace.get_current_span(), "name", "none")
            self._leaks.append(f"{when} the current span of the caller was {name!r}")

    def _mark(self, unit: str) -> str:
        context: SpanContext = trace.get_current_span().get_span_context()
        number = str(next(self._numbers))
        self._marks.append((unit, _REQUEST.get(), f"{context.span_id:016x}", number))
        return number

    def work(self, unit: str) -> str:
        """What a sync body does: it notes where it is, and calls another service."""
        self._client.get(f"{self.server.url}/{self._mark(unit)}")
        return unit

    async def awork(self, unit: str) -> str:
        """The same of an async body."""
        number = self._mark(unit)
        await self._async_client.get(f"{self.server.url}/{number}")
        return unit

    def config(self, **configurable: Any) -> Any:
        """The configuration of a run."""
        handlers = {} if self.callbacks is None else {"callbacks": self.callbacks()}
        return {"configurable": configurable, **handlers}

    def expect(self, found: Any, wanted: Any) -> None:
        """What the application has to come to, under every tracer."""
        if found != wanted:
            raise ApplicationChangedError(f"the result is {found!r:.200}, not {wanted!r:.200}")

    def spans_of_tracer(self) -> int:
        """How many spans began that neither the card nor the HTTP client made."""
        scopes = [span.instrumentation_scope for span in list(self.recorder.spans)]
        return sum(one is None or one.name not in {HARNESS_SCOPE, HTTP_SCOPE} for one in scopes)

    async def hang(self, unit: str) -> None:
        """Hang until somebody could see it, or long enough for it; and note what was exported."""
        until = time.monotonic() + OPEN_S
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
            if any(unit in one for one in list(self.recorder.arrived)):
                break
        self._arrived = list(self.recorder.arrived)

    # --- around it ------------------------------------------------------------------------------

    def run(self, name: str, body: Callable[["Bench"], Awaitable[None] | None]) -> dict[str, Any]:
        """Run a scenario in a context of its own, and say what came of it."""
        self._reset()
        skipped = None
        try:
            contextvars.Context().run(self._run, body)
        except NotPossibleError as exc:
            skipped = str(exc)
        except ApplicationChangedError as exc:
            self._failure = str(exc)
        except Exception as exc:  # noqa: BLE001 - whatever a tracer lets through is a finding
            self._failure = f"{type(exc).__name__}: {exc}"[:300]
        self._wait_for_ends()
        return {
            "scenario": name,
            "spans": [_plain(span) for span in list(self.recorder.spans)],
            "marks": [
                {
                    "unit": unit,
                    "request": request,
                    "current": current,
                    "header": self.server.headers.get(number, ""),
                }
                for unit, request, current, number in self._marks
            ]
            + [
                {
                    "unit": MODEL,
                    "request": self._requests[0] if self._requests else "",
                    "current": None,
                    "header": header,
                }
                for header in self.server.model_headers
            ],
            "requests": self._requests,
            "leaks": self._leaks,
            "complaints": list(self._complaints.lines),
            "arrived": self._arrived,
            "after_off": self.after_off,
            "failure": self._failure,
            "skipped": skipped,
        }

    def _run(self, body: Callable[["Bench"], Awaitable[None] | None]) -> None:
        if not inspect.iscoroutinefunction(body):
            body(self)
            return

        async def with_client() -> None:
            # a client belongs to the event loop that it was first used in
            async with self._httpx.AsyncClient(timeout=60, trust_env=False) as self._async_client:
                await body(self)

        asyncio.run(with_client())

    def _wait_for_ends(self) -> None:
        until = time.monotonic() + GRACE_S
        while time.monotonic() < until:
            gc.collect()
            if all(span.end_time is not None for span in list(self.recorder.spans)):
                return
            time.sleep(0.05)


def _plain(span: Span) -> dict[str, Any]:
    scope = span.instrumentation_scope
    return {
        "name": span.name,
        "scope": scope.name if scope else "",
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "start": span.start_time or 0,
        "end": span.end_time,
        "status": span.status.status_code.name,
        "attributes": {
            key: value
            for key, value in dict(span.attributes or {}).items()
            if isinstance(value, str | int | float | bool)
        },
        "links": [f"{link.context.trace_id:032x}" for link in span.links],
    }
