"""Hypothesis strategies: any telemetry OTLP can carry."""

from typing import Any

from hypothesis import strategies as st

from spanloom.model import (
    EntityRef,
    Exemplar,
    Histogram,
    LogEvent,
    MetricKind,
    MetricPoint,
    Resource,
    Scope,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)

# Any Unicode text, Chinese and NUL included; surrogates are no text (see test_values).
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.just("检索 🔎")
int64 = st.integers(-(2**63), 2**63 - 1)
uint64 = st.integers(0, 2**64 - 1)
uint32 = st.integers(0, 2**32 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
double = st.floats(allow_nan=False)  # NaN differs from itself; it has its own test
values = st.recursive(
    st.none() | text | st.booleans() | int64 | double | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
attributes = st.dictionaries(text, values, max_size=4)
texts = st.lists(text, max_size=2).map(tuple)


def ids(size: int) -> st.SearchStrategy[str]:
    """Valid ids of so many bytes."""
    return st.binary(min_size=size, max_size=size).filter(any).map(bytes.hex)


resources = st.builds(
    Resource,
    attributes=attributes,
    dropped_attributes_count=uint32,
    entity_refs=st.lists(
        st.builds(EntityRef, type=text, id_keys=texts, description_keys=texts, schema_url=text),
        max_size=2,
    ).map(tuple),
    schema_url=text,
)
scopes = st.builds(
    Scope,
    name=text,
    version=text,
    attributes=attributes,
    dropped_attributes_count=uint32,
    schema_url=text,
)
events = st.builds(
    SpanEvent,
    time_unix_nano=uint64,
    name=text,
    attributes=attributes,
    dropped_attributes_count=uint32,
)
links = st.builds(
    SpanLink,
    trace_id=ids(16),
    span_id=ids(8),
    trace_state=text,
    attributes=attributes,
    dropped_attributes_count=uint32,
    flags=uint32,
)
spans = st.builds(
    Span,
    trace_id=ids(16),
    span_id=ids(8),
    name=text,
    start_time_unix_nano=uint64,
    end_time_unix_nano=uint64,
    parent_span_id=st.just("") | ids(8),
    trace_state=text,
    flags=uint32,
    kind=st.sampled_from(SpanKind),
    attributes=attributes,
    dropped_attributes_count=uint32,
    events=st.lists(events, max_size=2).map(tuple),
    dropped_events_count=uint32,
    links=st.lists(links, max_size=2).map(tuple),
    dropped_links_count=uint32,
    status=st.builds(Status, code=st.sampled_from(StatusCode), message=text),
    resource=resources,
    scope=scopes,
)


@st.composite
def logs(draw: st.DrawFn) -> LogEvent:
    """Log records, in and outside of spans."""
    trace_id = draw(st.just("") | ids(16))
    return draw(
        st.builds(
            LogEvent,
            time_unix_nano=uint64,
            observed_time_unix_nano=uint64,
            severity_number=st.integers(0, 24),
            severity_text=text,
            body=values,
            attributes=attributes,
            dropped_attributes_count=uint32,
            flags=uint32,
            trace_id=st.just(trace_id),
            span_id=(st.just("") | ids(8)) if trace_id else st.just(""),
            event_name=text,
            resource=resources,
            scope=scopes,
        )
    )


counts = st.lists(uint64, max_size=3).map(tuple)
_exemplars = st.lists(
    st.builds(
        Exemplar,
        time_unix_nano=uint64,
        value=double | int64,
        trace_id=st.just("") | ids(16),
        span_id=st.just("") | ids(8),
        filtered_attributes=attributes,
    ),
    max_size=2,
).map(tuple)


@st.composite
def points(draw: st.DrawFn) -> MetricPoint:
    """Data points of every kind."""
    kind = draw(st.sampled_from(MetricKind))
    fields: dict[str, Any] = {}
    if kind in {MetricKind.GAUGE, MetricKind.SUM}:
        fields["value"] = draw(st.none() | double | int64)
    else:
        fields["histogram"] = draw(_histograms(kind))
    if kind not in {MetricKind.GAUGE, MetricKind.SUMMARY}:
        fields["temporality"] = draw(st.integers(0, 2))
    if kind is MetricKind.SUM:
        fields["is_monotonic"] = draw(st.booleans())
    if kind is not MetricKind.SUMMARY:
        fields["exemplars"] = draw(_exemplars)
    return MetricPoint(
        name=draw(text.filter(bool)),
        kind=kind,
        time_unix_nano=draw(uint64),
        start_time_unix_nano=draw(uint64),
        unit=draw(text),
        description=draw(text),
        attributes=draw(attributes),
        metadata=draw(attributes),
        flags=draw(uint32),
        resource=draw(resources),
        scope=draw(scopes),
        **fields,
    )


@st.composite
def _histograms(draw: st.DrawFn, kind: MetricKind) -> Histogram:
    count = draw(uint64)
    optional = st.none() | double
    if kind is MetricKind.SUMMARY:
        quantiles = st.lists(st.tuples(double, double), max_size=2).map(tuple)
        return Histogram(count=count, sum=draw(double), quantiles=draw(quantiles))
    shared = {"count": count, "sum": draw(optional), "min": draw(optional), "max": draw(optional)}
    if kind is MetricKind.HISTOGRAM:
        bounds = tuple(draw(st.lists(double, max_size=2)))
        size = len(bounds) + 1
        full = st.lists(uint64, min_size=size, max_size=size).map(tuple)
        return Histogram(**shared, bounds=bounds, counts=draw(full))
    return Histogram(
        **shared,
        scale=draw(int32),
        zero_count=draw(uint64),
        zero_threshold=draw(double),
        positive_offset=draw(int32),
        positive_counts=draw(counts),
        negative_offset=draw(int32),
        negative_counts=draw(counts),
    )
