"""Metric data points between model and OTLP message (metrics.proto).

OTLP nests points in a metric; the model keeps one value per point with the metric's identity.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final

from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from spanloom.model import Exemplar, Histogram, MetricKind, MetricPoint, Resource, Scope
from spanloom.otlp.values import clean, read_attributes, write_attributes

_WITH_TEMPORALITY: Final = frozenset(
    {MetricKind.SUM, MetricKind.HISTOGRAM, MetricKind.EXPONENTIAL_HISTOGRAM}
)


def read_points(
    metric: pb.Metric, resource: Resource, scope: Scope, refused: Counter[str] | None = None
) -> Iterator[MetricPoint]:
    """Every point of a metric; the reason for each one left out is counted in `refused`."""
    refused = Counter() if refused is None else refused
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    data = getattr(metric, kind)
    build = partial(
        MetricPoint,
        name=metric.name,
        kind=MetricKind(kind),
        unit=metric.unit,
        description=metric.description,
        temporality=getattr(data, "aggregation_temporality", 0),
        is_monotonic=getattr(data, "is_monotonic", False),
        metadata=read_attributes(metric.metadata),
        resource=resource,
        scope=scope,
    )
    for point in data.data_points:
        fault = _fault(metric.name, point)
        if fault:
            refused[fault] += 1
            continue
        number = isinstance(point, pb.NumberDataPoint)
        which = point.WhichOneof("value") if number else None
        yield build(
            time_unix_nano=point.time_unix_nano,
            start_time_unix_nano=point.start_time_unix_nano,
            value=getattr(point, which) if which else None,
            histogram=None if number else _read_histogram(point),
            attributes=read_attributes(point.attributes),
            exemplars=tuple(_read_exemplar(item) for item in getattr(point, "exemplars", ())),
            flags=point.flags,
        )


def _fault(name: str, point: Any) -> str:
    if not name:
        return "a metric needs a name"
    if isinstance(point, pb.HistogramDataPoint):
        counts, bounds = len(point.bucket_counts), len(point.explicit_bounds)
        if counts != bounds + 1 and (counts or bounds):
            return "a histogram needs one bucket count more than it has bounds"
    return ""


def _read_histogram(point: Any) -> Histogram:
    if isinstance(point, pb.SummaryDataPoint):
        return Histogram(
            count=point.count,
            sum=point.sum,
            quantiles=tuple((item.quantile, item.value) for item in point.quantile_values),
        )
    total = point.sum if point.HasField("sum") else None
    low = point.min if point.HasField("min") else None
    high = point.max if point.HasField("max") else None
    if isinstance(point, pb.HistogramDataPoint):
        return Histogram(
            count=point.count,
            sum=total,
            min=low,
            max=high,
            bounds=tuple(point.explicit_bounds),
            counts=tuple(point.bucket_counts),
        )
    return Histogram(
        count=point.count,
        sum=total,
        min=low,
        max=high,
        scale=point.scale,
        zero_count=point.zero_count,
        zero_threshold=point.zero_threshold,
        positive_offset=point.positive.offset,
        positive_counts=tuple(point.positive.bucket_counts),
        negative_offset=point.negative.offset,
        negative_counts=tuple(point.negative.bucket_counts),
    )


def _read_exemplar(exemplar: pb.Exemplar) -> Exemplar:
    which = exemplar.WhichOneof("value")
    return Exemplar(
        time_unix_nano=exemplar.time_unix_nano,
        value=getattr(exemplar, which) if which else 0.0,
        trace_id=exemplar.trace_id.hex(),
        span_id=exemplar.span_id.hex(),
        filtered_attributes=read_attributes(exemplar.filtered_attributes),
    )


def write_metric_identity(target: pb.Metric, point: MetricPoint) -> None:
    """Fill an empty Metric with everything but its points."""
    target.name = clean(point.name)
    target.description = clean(point.description)
    target.unit = clean(point.unit)
    write_attributes(target.metadata, point.metadata)
    data = getattr(target, point.kind.value)
    data.SetInParent()
    if point.kind in _WITH_TEMPORALITY:
        data.aggregation_temporality = point.temporality
    if point.kind is MetricKind.SUM:
        data.is_monotonic = point.is_monotonic


def write_point(target: pb.Metric, point: MetricPoint) -> None:
    """Append one data point to a Metric of the point's kind."""
    message: Any = getattr(target, point.kind.value).data_points.add()
    message.time_unix_nano = point.time_unix_nano
    message.start_time_unix_nano = point.start_time_unix_nano
    message.flags = point.flags
    write_attributes(message.attributes, point.attributes)
    if point.kind is not MetricKind.SUMMARY:
        _write_exemplars(message, point.exemplars)
    if point.histogram is not None:
        _write_histogram(message, point.histogram)
    elif isinstance(point.value, int):
        message.as_int = point.value
    elif point.value is not None:
        message.as_double = point.value


def _write_histogram(message: Any, histogram: Histogram) -> None:
    message.count = histogram.count
    if histogram.sum is not None:
        message.sum = histogram.sum
    if isinstance(message, pb.SummaryDataPoint):
        for quantile, value in histogram.quantiles:
            message.quantile_values.add(quantile=quantile, value=value)
        return
    if histogram.min is not None:
        message.min = histogram.min
    if histogram.max is not None:
        message.max = histogram.max
    if isinstance(message, pb.HistogramDataPoint):
        message.explicit_bounds.extend(histogram.bounds)
        message.bucket_counts.extend(histogram.counts)
        return
    message.scale = histogram.scale
    message.zero_count = histogram.zero_count
    message.zero_threshold = histogram.zero_threshold
    message.positive.offset = histogram.positive_offset
    message.positive.bucket_counts.extend(histogram.positive_counts)
    message.negative.offset = histogram.negative_offset
    message.negative.bucket_counts.extend(histogram.negative_counts)


def _write_exemplars(message: Any, exemplars: Iterable[Exemplar]) -> None:
    for exemplar in exemplars:
        item = message.exemplars.add(
            time_unix_nano=exemplar.time_unix_nano,
            trace_id=bytes.fromhex(exemplar.trace_id),
            span_id=bytes.fromhex(exemplar.span_id),
        )
        write_attributes(item.filtered_attributes, exemplar.filtered_attributes)
        if isinstance(exemplar.value, int):
            item.as_int = exemplar.value
        else:
            item.as_double = exemplar.value


def metric_key(point: MetricPoint) -> bytes:
    """What the points of one metric share, as the bytes of a Metric without points."""
    identity = pb.Metric()
    write_metric_identity(identity, point)
    return identity.SerializeToString()
