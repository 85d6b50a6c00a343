"""What one scenario left behind, as it comes from the process that ran it: plain data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

HARNESS_SCOPE: Final = "scorecard"
"""Instrumentation scope of the server spans, which the card makes itself."""
HTTP_SCOPE: Final = "opentelemetry.instrumentation.httpx"


@dataclass(frozen=True)
class Span:
    """A span that began. Ids are hexadecimal; times nanoseconds since the epoch."""

    name: str
    scope: str
    trace: str
    id: str
    parent: str | None
    start: int
    end: int | None
    """None: it had not ended some seconds after all work had."""
    status: str = "UNSET"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    """Trace ids that the span links to."""

    @property
    def is_tracers(self) -> bool:
        """Whether the tracer made it: not the server span, not the span of a HTTP request."""
        return self.scope not in {HARNESS_SCOPE, HTTP_SCOPE}


@dataclass(frozen=True)
class Mark:
    """What a body saw while it ran."""

    unit: str
    """Node or tool that it is the body of; MODEL where the model's endpoint was asked."""
    request: str
    """Trace id of the request that it works for."""
    current: str | None
    """Id of the span that was current in the body; None where nothing could be asked."""
    header: str
    """The `traceparent` that the loopback server got from it."""


MODEL: Final = "(model)"


@dataclass(frozen=True)
class Recording:
    """Everything that is known of one scenario under one tracer."""

    scenario: str
    spans: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()
    requests: tuple[str, ...] = ()
    """Trace ids of the server spans, one for each run of a graph, in order."""
    leaks: tuple[str, ...] = ()
    """Where the caller found another current span than its own."""
    complaints: tuple[str, ...] = ()
    """What OpenTelemetry logged of contexts that could not be detached."""
    arrived: tuple[str, ...] = ()
    """Texts of the spans and log records that were exported while the work was still going on."""
    after_off: int = 0
    """Spans that began after the tracer had been switched off."""
    failure: str | None = None
    """How the application came out otherwise than it does without a tracer."""
    skipped: str | None = None
    """Why it was not run: this LangGraph cannot do that."""

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Recording":
        """Read what the other process wrote as JSON."""
        lists = ("requests", "leaks", "complaints", "arrived")
        return Recording(
            scenario=data["scenario"],
            spans=tuple(Span(**{**one, "links": tuple(one["links"])}) for one in data["spans"]),
            marks=tuple(Mark(**one) for one in data["marks"]),
            **{name: tuple(data[name]) for name in lists},
            after_off=data["after_off"],
            failure=data["failure"],
            skipped=data["skipped"],
        )

    def above(self, span_id: str) -> Iterator[Span]:
        """Walk from a span to the root, the span itself first."""
        seen: set[str] = set()
        here: str | None = span_id
        while here is not None and here in self._by_id and here not in seen:
            seen.add(here)
            yield self._by_id[here]
            here = self._by_id[here].parent

    @cached_property
    def _by_id(self) -> dict[str, Span]:
        return {span.id: span for span in self.spans}
