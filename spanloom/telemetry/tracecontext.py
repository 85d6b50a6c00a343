"""W3C Trace Context Level 2: the `traceparent` and `tracestate` headers.

OpenTelemetry's own propagator takes the first of several `traceparent` headers and reads
`tracestate` by the grammar of Level 1, which refuses keys that are legal now; one such key costs
the whole list. This one follows https://www.w3.org/TR/trace-context-2/.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

MAX_TRACEPARENT_LENGTH: Final = 256
"""Longest `traceparent` that is read, in characters; version 00 has 55."""
MAX_RECEIVED_TRACESTATE_LENGTH: Final = 20_480
"""Longest `tracestate` that is read, all lines together; 32 members of full length have 16,447."""
MAX_TRACESTATE_LENGTH: Final = 4_096
"""Longest `tracestate` that is carried on; the standard asks for 512 at least. Every span of a
trace is exported with it."""
MAX_MEMBERS: Final = 32
_LARGE_MEMBER: Final = 128  # longer members go first when a list has to be cut

OWS: Final = " \t"
"""HTTP's optional white space (RFC 9110, 5.6.3)."""
_SENT_FLAGS: Final = TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID

# A later version may append fields. A comma in them would be the sign of two header lines that
# something on the way has joined.
_TRACEPARENT: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x2b\x2d-\x7e]*)?"
)
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}")
_VALUE: Final = re.compile(
    r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"  # no "," and no "="
)


def header_lines(getter: Getter[CarrierT], carrier: CarrierT, name: str) -> list[str]:
    """All values of a header, in order; what is no text counts as an empty line.

    Getters may raise: that of the ASGI instrumentation does, on bytes it cannot decode.
    """
    try:
        values: Iterable[Any] = getter.get(carrier, name) or ()
        return [value if isinstance(value, str) else "" for value in values]
    except Exception:  # noqa: BLE001 - a broken header is no header
        return []


class StrictTraceState(TraceState):
    """A `tracestate` by the grammar of Level 2: `@` is a character like any other in a key.

    Immutable like its base, and ordered: the left-most member is the most recent.
    """

    def __init__(self, entries: Sequence[tuple[str, str]] | None = None) -> None:
        super().__init__()
        entries = entries or ()
        if len(entries) <= MAX_MEMBERS:
            for key, value in entries:
                if _is_member(key, value):
                    self._dict.setdefault(key, value)

    @classmethod
    def from_header(cls, header_list: list[str]) -> "StrictTraceState":
        """Read the lines of a `tracestate` header, which are one list in their order.

        A member that breaks the grammar, or a 33rd one, discards the list. Of members with the
        same key the left-most is kept. Empty members are legal.
        """
        if sum(map(len, header_list)) + len(header_list) > MAX_RECEIVED_TRACESTATE_LENGTH:
            return cls()
        texts = [text.strip(OWS) for line in header_list for text in line.split(",")]
        members = [text.partition("=") for text in texts if text]
        if len(members) > MAX_MEMBERS:
            return cls()
        if not all(_is_member(key, value) for key, _, value in members):
            return cls()
        state = cls()
        for key, _, value in members:
            state._dict.setdefault(key, value)
        return state

    def add(self, key: str, value: str) -> "StrictTraceState":
        """Return this state with a new left-most member; unchanged if it has the key already."""
        return self if key in self else self.update(key, value)

    def update(self, key: str, value: str) -> "StrictTraceState":
        """Return this state with the member set and moved to the left.

        A 33rd member makes the right-most one fall out. A key or value that breaks the grammar
        changes nothing.
        """
        if not _is_member(key, value):
            return self
        others = [item for item in self.items() if item[0] != key]
        return type(self)([(key, value), *others[: MAX_MEMBERS - 1]])

    def delete(self, key: str) -> "StrictTraceState":
        """Return this state without the key."""
        return type(self)([item for item in self.items() if item[0] != key])

    def within(self, length: int) -> "StrictTraceState":
        """Return as many whole members as fit into a header of `length` characters.

        In the standard's order: members of more than 128 characters fall out first, then the
        right-most ones.
        """
        excess = sum(_size(item) for item in self.items()) - 1 - length
        if excess <= 0:
            return self
        kept = list(self.items())
        for threshold in (_LARGE_MEMBER, 0):
            for item in reversed(tuple(kept)):
                if excess > 0 and _size(item) - 1 > threshold:
                    kept.remove(item)
                    excess -= _size(item)
        return type(self)(kept)


def _size(member: tuple[str, str]) -> int:
    return len(member[0]) + len(member[1]) + 2  # with "=" and the comma


def _is_member(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, str)
        and _KEY.fullmatch(key) is not None
        and _VALUE.fullmatch(value) is not None
    )


class TraceContextPropagator(TextMapPropagator):
    """Reads and writes `traceparent` and `tracestate`; never raises for what a header holds."""

    @property
    def fields(self) -> set[str]:
        """The two header names."""
        return {TRACEPARENT, TRACESTATE}

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Read the caller's span context; `context` as it is when there is no valid one.

        `tracestate` is not looked at without a valid `traceparent`, and never invalidates it.
        """
        context = Context() if context is None else context
        lines = header_lines(getter, carrier, TRACEPARENT)
        if len(lines) != 1:  # two parents are none, even if they agree
            return context
        parent = _parse(lines[0])
        if parent is None:
            return context
        trace_id, span_id, flags = parent
        state = StrictTraceState.from_header(header_lines(getter, carrier, TRACESTATE))
        remote = SpanContext(
            trace_id,
            span_id,
            is_remote=True,
            trace_flags=flags,
            trace_state=state.within(MAX_TRACESTATE_LENGTH),
        )
        return trace.set_span_in_context(NonRecordingSpan(remote), context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the current span's context, as version 00 whatever came in."""
        span = trace.get_current_span(context).get_span_context()
        if not span.is_valid:
            return
        flags = span.trace_flags & _SENT_FLAGS
        setter.set(carrier, TRACEPARENT, f"00-{span.trace_id:032x}-{span.span_id:016x}-{flags:02x}")
        if header := _sendable(span.trace_state):
            setter.set(carrier, TRACESTATE, header)


def _parse(text: str) -> tuple[int, int, TraceFlags] | None:
    text = text.strip(OWS)
    if len(text) > MAX_TRACEPARENT_LENGTH:
        return None
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    ids = int(trace_id, 16), int(span_id, 16)
    if not all(ids):
        return None
    # Flags that are not defined yet have to be sent as 0.
    return *ids, TraceFlags(int(flags, 16) & _SENT_FLAGS)


def _sendable(state: Mapping[str, str]) -> str:
    if not state:
        return ""
    if not isinstance(state, StrictTraceState):  # made by a sampler, say: it may hold anything
        state = StrictTraceState(list(state.items())[:MAX_MEMBERS])
    return state.within(MAX_TRACESTATE_LENGTH).to_header()
