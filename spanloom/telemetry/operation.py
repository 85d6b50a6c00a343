"""A span that is current inside its `with` block, whoever opens and closes the block."""

import logging
import time
from contextvars import Token
from types import TracebackType
from typing import Final, Self

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from spanloom import __version__, semconv
from spanloom.telemetry import endings

_logger: Final = logging.getLogger(__name__)

_tracer: Tracer | None = None


def use_tracer_provider(provider: TracerProvider | None) -> Tracer:
    """Start spans on this provider (None: the global one) from now on."""
    global _tracer  # noqa: PLW0603 - one process, one tracer
    _tracer = trace.get_tracer(
        "spanloom.telemetry", __version__, provider, schema_url=semconv.SCHEMA_URL
    )
    return _tracer


def swap_tracer(tracer: Tracer | None) -> Tracer | None:
    """Start spans on this tracer from now on; returns the one before, to put it back."""
    global _tracer
    before, _tracer = _tracer, tracer
    return before


def _current_tracer() -> Tracer:
    return _tracer or use_tracer_provider(None)


class Operation:
    """A span that is current inside its `with` block and ends by the rules of `endings`."""

    __slots__ = ("_attributes", "_before", "_kind", "_name", "_started", "_token", "ending", "span")

    def __init__(self, name: str, kind: SpanKind, attributes: dict[str, AttributeValue]) -> None:
        self._name = name
        self._kind = kind
        self._attributes = attributes
        self._token: Token[Context] | None = None
        self._before: Context | None = None
        self._started = 0.0
        self.span: Span = INVALID_SPAN
        self.ending: endings.Ending | None = None

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        try:
            self.span = _current_tracer().start_span(
                self._name, kind=self._kind, attributes=self._attributes
            )
            self._before = otel_context.get_current()
            self._token = otel_context.attach(trace.set_span_in_context(self.span, self._before))
        except Exception:  # telemetry never breaks the application
            _logger.debug("could not start span %s", self._name, exc_info=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._started
        try:
            self._finish(endings.classify(exc), seconds)
        except Exception:
            _logger.debug("could not describe span %s", self._name, exc_info=True)
        self._leave()
        self.ending = endings.end_span(self.span, exc)

    def _finish(self, ending: endings.Ending, seconds: float) -> None:
        """Write what is known at the end, and record metrics while the span is current."""

    def _leave(self) -> None:
        """Make the span before current again."""
        if self._token is None:
            return
        try:
            self._token.var.reset(self._token)
        except ValueError:
            # Left in another context than entered, as happens to an async generator that is
            # closed late or by another task. There is something to undo only if a copy of our
            # context is current there.
            if trace.get_current_span() is self.span and self._before is not None:
                otel_context.attach(self._before)
        self._token = None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute on the span."""
        self.span.set_attribute(key, value)
