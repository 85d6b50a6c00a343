import itertools

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from spanloom.telemetry.sampling import InheritingSampler
from spanloom.telemetry.tracecontext import StrictTraceState

STATE = StrictTraceState([("vendor", "1")])
PARENTS = [
    None,
    SpanContext(0, 0, is_remote=False),
    *(
        SpanContext(7, 8, remote, TraceFlags(flags), STATE)
        for remote, flags in itertools.product((False, True), (0, 1, 2, 3))
    ),
]


@pytest.mark.parametrize(
    "sampler",
    [DEFAULT_ON, DEFAULT_OFF, ParentBasedTraceIdRatio(0.5), ParentBased(ALWAYS_ON, ALWAYS_OFF)],
)
def test_it_decides_as_the_sampler_inside(sampler: Sampler) -> None:
    """For every parent there can be: decision, attributes and trace state are the same."""
    ours = InheritingSampler.before(sampler)
    assert isinstance(ours, InheritingSampler)
    assert ours.get_description() == sampler.get_description()  # type: ignore[no-untyped-call]
    for parent, trace_id in itertools.product(PARENTS, (1, 2**127 + 5, (1 << 64) - 1)):
        context = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
        expected = sampler.should_sample(context, trace_id, "name", attributes={"a": 1})
        found = ours.should_sample(context, trace_id, "name", attributes={"a": 1})
        assert found.decision is expected.decision, parent
        assert dict(found.attributes or {}) == dict(expected.attributes or {})
        assert found.trace_state == expected.trace_state


@pytest.mark.parametrize(
    "sampler",
    [
        ALWAYS_ON,
        ALWAYS_OFF,
        TraceIdRatioBased(0.5),
        ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF),
    ],
)
def test_samplers_that_do_not_inherit_stay(sampler: Sampler) -> None:
    """Where a child may be decided differently from its parent, the sampler itself decides."""
    assert InheritingSampler.before(sampler) is sampler
