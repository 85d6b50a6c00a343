"""The short way to the decision that nearly every span inherits."""

from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import Link, SpanKind, TraceFlags, TraceState, get_current_span
from opentelemetry.util.types import Attributes

_SAMPLED: Final = TraceFlags.SAMPLED


class InheritingSampler(Sampler):
    """Samples the child of a sampled span of this process, and asks `inner` about all others.

    The SDK's `ParentBased` looks the parent up twice for that, and calls a second sampler.
    """

    def __init__(self, inner: ParentBased) -> None:
        self._inner = inner

    @classmethod
    def before(cls, sampler: Sampler) -> Sampler:
        """Return one that decides as this sampler does, or the sampler itself."""
        inherits = getattr(sampler, "_local_parent_sampled", None) is ALWAYS_ON
        return cls(sampler) if isinstance(sampler, ParentBased) and inherits else sampler

    def should_sample(  # noqa: PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about a span that begins."""
        parent = get_current_span(parent_context).get_span_context()
        if parent.trace_flags & _SAMPLED and parent.is_valid and not parent.is_remote:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, parent.trace_state)
        return self._inner.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        """What `inner` says of itself."""
        return str(self._inner.get_description())  # type: ignore[no-untyped-call]
