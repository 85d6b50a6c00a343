"""Interrupt and resume are one story: a resumed run links to the run it goes on from.

Each checkpoint notes which run wrote it, in its metadata beside LangGraph's own `source` and
`step`, so the link holds in another process and after days. The application's state is not
touched. What is read back is validated: a checkpoint store is shared, and may be written by others.
"""

import functools
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry.trace import Span, SpanContext, TraceFlags, Tracer

from spanloom import semconv
from spanloom.telemetry.langgraph.context import Frame, Guard
from spanloom.telemetry.usage import UsageScope, current_scope

METADATA_KEY: Final = "spanloom_run"
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_RESUMING: Final = "__pregel_resuming"
"""`langgraph._internal._constants.CONFIG_KEY_RESUMING`"""

_NOTING: Final = Guard("a checkpoint cannot name its run")
_LINKING: Final = Guard("a resumed run cannot be linked")


def run_frame() -> Frame | None:
    """Return the frame of the graph run that is executing here."""
    scope: UsageScope | None = current_scope()
    while scope is not None and not (isinstance(scope, Frame) and scope.run_span is not None):
        scope = scope.parent
    return scope


def traceparent(span: Span) -> str | None:
    """Name a span as W3C Trace Context does; None for one that is not kept anyway."""
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parse(value: object) -> SpanContext | None:
    """Read back what `traceparent` wrote; None for anything else."""
    match = _TRACEPARENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


def milliseconds_since(timestamp: object) -> int | None:
    """Age of what LangGraph writes as a checkpoint's `ts`; None for what is not in the past."""
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(str(timestamp))
    except (TypeError, ValueError):  # of another form, or without a zone
        return None
    return milliseconds if (milliseconds := round(age.total_seconds() * 1000)) >= 0 else None


def trace_put_checkpoint(_tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `PregelLoop._put_checkpoint`."""

    @functools.wraps(original)
    def _put_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _NOTING:
            if self.checkpointer is not None:
                metadata = args[0] if args else kwargs["metadata"]
                frame = run_frame()
                if frame is not None and frame.run_span is not None:
                    name = traceparent(frame.run_span)
                    if name is not None:
                        metadata[METADATA_KEY] = name
        return original(self, *args, **kwargs)

    return _put_checkpoint


def trace_first(_tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `PregelLoop._first`, which finds out whether a run is a resumed one."""

    @functools.wraps(original)
    def _first(self: Any, *args: Any, **kwargs: Any) -> Any:
        earlier: SpanContext | None = None
        waited: int | None = None
        with _LINKING:  # before the call, which may write a checkpoint of this run
            earlier = parse((self.checkpoint_metadata or {}).get(METADATA_KEY))
            if earlier is not None:
                waited = milliseconds_since(self.checkpoint.get("ts"))
        result = original(self, *args, **kwargs)
        if earlier is not None:
            with _LINKING:
                frame = run_frame()
                resuming = (self.config.get("configurable") or {}).get(_RESUMING)
                if resuming and frame is not None and frame.run_span is not None:
                    kind = {semconv.SPANLOOM_LINK_KIND: semconv.LINK_RESUMED_FROM}
                    frame.run_span.add_link(earlier, kind)
                    if waited is not None:
                        frame.run_span.set_attribute(semconv.SPANLOOM_RESUME_WAITED_MS, waited)
        return result

    return _first
