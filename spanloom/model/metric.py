"""Metric data points, flattened: one value carries its metric's identity (metrics.proto)."""

from dataclasses import dataclass, field
from enum import StrEnum

from spanloom.model.attributes import Attributes, Resource, Scope


class MetricKind(StrEnum):
    """The OTLP data kinds."""

    GAUGE = "gauge"
    SUM = "sum"
    HISTOGRAM = "histogram"
    EXPONENTIAL_HISTOGRAM = "exponential_histogram"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A measured value that names the span it was measured in."""

    time_unix_nano: int
    value: int | float
    trace_id: str = ""
    span_id: str = ""
    filtered_attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Explicit bounds and bucket counts, len(counts) == len(bounds) + 1.

    An exponential histogram keeps `scale`, `zero_count`, `zero_threshold` and both bucket
    ranges; a summary keeps `quantiles` as (quantile, value).
    """

    count: int
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    scale: int = 0
    zero_count: int = 0
    zero_threshold: float = 0.0
    positive_offset: int = 0
    positive_counts: tuple[int, ...] = ()
    negative_offset: int = 0
    negative_counts: tuple[int, ...] = ()
    quantiles: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One data point, with either `value` or `histogram`, or neither if `flags` say "no value"."""

    name: str
    kind: MetricKind
    time_unix_nano: int
    start_time_unix_nano: int = 0
    value: int | float | None = None
    histogram: Histogram | None = None
    unit: str = ""
    description: str = ""
    temporality: int = 0
    """AggregationTemporality as on the wire: 0 unspecified, 1 delta, 2 cumulative."""
    is_monotonic: bool = False
    attributes: Attributes = field(default_factory=dict)
    metadata: Attributes = field(default_factory=dict)
    exemplars: tuple[Exemplar, ...] = ()
    flags: int = 0
    resource: Resource = field(default_factory=Resource)
    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True, slots=True)
class MetricQuery:
    """Points of one metric with `start_ns` <= time < `end_ns`, oldest first."""

    name: str
    service: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    limit: int = 1000
