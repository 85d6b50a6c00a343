"""Every field of OTLP has a place in the store.

Each test sets one leaf of a request, sends it the whole way, wire → store → wire, and looks for
it at the other end. New fields of opentelemetry-proto are found by themselves.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

import orjson
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from spanloom import otlp
from spanloom.contract import Batch
from spanloom.model import MetricQuery
from spanloom.otlp import json_codec
from spanloom.store import SqliteStore, open_store
from tests.store.field_paths import Path, get_leaf, leaf_paths, sample, set_leaf

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_numbers = count(1)

LOST: Final = {
    "key_strindex": "index into the string table that only the profiles signal has",
    "string_value_strindex": "index into the string table that only the profiles signal has",
}
"""Leaves that are lost on purpose, and why."""


@pytest.fixture(params=["protobuf", "json"])
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """One store for all: each test has a trace, or a metric, of its own."""
    opened = open_store(tmp_path_factory.mktemp("store") / "spanloom.db")
    yield opened
    opened.close()


def _paths(message: type[Message]) -> list[Any]:
    return [
        pytest.param(path, id=".".join(path))
        for path in leaf_paths(message.DESCRIPTOR)
        if path[-1] not in LOST
    ]


def _new_trace_id() -> bytes:
    return next(_numbers).to_bytes(16, "big")


def _through_json(message: Message) -> bytes:
    return orjson.dumps(json_codec.to_json(message))


def _span_request(path: Path) -> TracesData:
    request = TracesData()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id = _new_trace_id(), bytes([1] * 8)
    set_leaf(request, path)
    return request


def _send_spans(store: SqliteStore, request: TracesData, encoding: str) -> TracesData:
    decoded = (
        otlp.decode_traces(request.SerializeToString(), PROTOBUF)
        if encoding == "protobuf"
        else otlp.decode_traces(_through_json(request), JSON)
    )
    store.submit(Batch(spans=decoded.items)).result(30)
    trace = store.get_trace(decoded.items[0].trace_id)
    assert trace is not None
    return otlp.traces_to_message(trace.spans)


@pytest.mark.parametrize("path", _paths(TracesData))
def test_span_fields(store: SqliteStore, path: Path, encoding: str) -> None:
    """No field of a span, its events, links, status, scope or resource is lost."""
    request = _span_request(path)
    stored = _send_spans(store, request, encoding)

    assert sample(request, path) == get_leaf(stored, path)


@pytest.mark.parametrize("path", _paths(LogsData))
def test_log_fields(store: SqliteStore, path: Path, encoding: str) -> None:
    """No field of a log record is lost."""
    request = LogsData()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.trace_id = _new_trace_id()
    set_leaf(request, path)
    decoded = (
        otlp.decode_logs(request.SerializeToString(), PROTOBUF)
        if encoding == "protobuf"
        else otlp.decode_logs(_through_json(request), JSON)
    )
    store.submit(Batch(logs=decoded.items)).result(30)
    stored = otlp.logs_to_message(store.trace_logs(record.trace_id.hex()))

    assert sample(request, path) == get_leaf(stored, path)


@pytest.mark.parametrize("path", _paths(MetricsData))
def test_metric_fields(store: SqliteStore, path: Path, encoding: str) -> None:
    """No field of a metric, of its points of every kind and of their exemplars is lost."""
    request = MetricsData()
    metric = (
        request.resource_metrics.add().scope_metrics.add().metrics.add(name=f"m{next(_numbers)}")
    )
    set_leaf(request, path)
    data = getattr(metric, metric.WhichOneof("data") or "gauge")
    if not len(data.data_points):
        data.data_points.add()
    if path[-1] == "explicit_bounds":  # bounds without their counts would be invalid
        data.data_points[0].bucket_counts.extend([1, 1])
    decoded = (
        otlp.decode_metrics(request.SerializeToString(), PROTOBUF)
        if encoding == "protobuf"
        else otlp.decode_metrics(_through_json(request), JSON)
    )
    store.submit(Batch(metrics=decoded.items)).result(30)
    stored = otlp.metrics_to_message(store.metric_points(MetricQuery(metric.name)))

    assert sample(request, path) == get_leaf(stored, path)


@pytest.mark.parametrize("name", LOST)
def test_declared_losses_still_occur(store: SqliteStore, name: str) -> None:
    """A field that is declared lost and no longer is must leave the list."""
    path = next(path for path in leaf_paths(TracesData.DESCRIPTOR) if path[-1] == name)
    stored = _send_spans(store, _span_request(path), "protobuf")

    assert get_leaf(stored, path) in (None, 0)
