"""Any telemetry at all comes back from the store as it went in."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanloom.contract import Batch
from spanloom.model import LogEvent, MetricPoint, MetricQuery, Span, TraceQuery
from spanloom.store import SqliteStore, open_store
from tests import strategies
from tests.builders import span, trace_of

TIMEOUT_S = 30.0
_many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    opened = open_store(tmp_path_factory.mktemp("store") / "spanloom.db")
    yield opened
    opened.close()


@_many
@given(sent=strategies.spans)
def test_spans(store: SqliteStore, sent: Span) -> None:
    """A span is equal in everything, and its trace is found by its own name."""
    store.submit(Batch(spans=[sent])).result(TIMEOUT_S)
    trace = store.get_trace(sent.trace_id)
    query = TraceQuery(service=sent.service_name, operation=sent.name, limit=10_000)

    assert trace is not None
    assert sent in trace.spans
    if len(trace.spans) == 1:
        assert trace == trace_of(sent)
    assert sent.trace_id in [line.trace_id for line in store.find_summaries(query)]


@_many
@given(sent=strategies.logs(), trace_id=strategies.ids(16))
def test_logs(store: SqliteStore, sent: LogEvent, trace_id: str) -> None:
    """A log record is equal in everything."""
    sent = replace(sent, trace_id=trace_id, event_name=sent.event_name.replace("spanloom.", ""))
    store.submit(Batch(logs=[sent])).result(TIMEOUT_S)

    assert sent in store.trace_logs(trace_id)


@_many
@given(sent=strategies.points())
def test_metric_points(store: SqliteStore, sent: MetricPoint) -> None:
    """A data point of any kind is equal in everything."""
    store.submit(Batch(metrics=[sent])).result(TIMEOUT_S)
    query = MetricQuery(sent.name, service=sent.resource.service_name, limit=10_000)

    assert sent in store.metric_points(query)


@_many
@given(key=strategies.text, value=strategies.values, other=st.integers(1, 3))
def test_every_attribute_is_found_by_its_text(
    store: SqliteStore, key: str, value: object, other: int
) -> None:
    """Whatever a scalar attribute holds, looking for its plain text finds its span."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str | int):
        text = str(value)
    elif isinstance(value, float):
        text = repr(value)
    else:
        return
    sent = span(trace=other, attributes={key: value})
    store.submit(Batch(spans=[sent])).result(TIMEOUT_S)
    found = store.find_summaries(TraceQuery(tags={key: text}, limit=10_000))

    assert sent.trace_id in [line.trace_id for line in found]


def test_lone_surrogates_do_not_cost_a_batch(store: SqliteStore) -> None:
    """Values of our own that UTF-8 cannot carry are mended on the way in, and still found."""
    broken = span("\ud800", trace=77, attributes={"k\ud800": "v\udfff"}, error="\ud800")
    store.submit(Batch(spans=[broken])).result(TIMEOUT_S)
    trace = store.get_trace(broken.trace_id)

    assert trace is not None
    assert trace.spans[0].name == "\ufffd"
    assert trace.spans[0].attributes == {"k\ufffd": "v\ufffd"}
    (summary,) = store.find_summaries(TraceQuery(tags={"k\ufffd": "v\ufffd"}))
    assert summary.trace_id == broken.trace_id


def test_special_numbers(store: SqliteStore) -> None:
    """NaN and infinities are stored as they are."""
    numbers = (float("nan"), float("inf"), float("-inf"), -0.0, 2**63 - 1, -(2**63))
    store.submit(Batch(spans=[span(trace=78, attributes={"n": numbers})])).result(TIMEOUT_S)
    trace = store.get_trace(span(trace=78).trace_id)

    assert trace is not None
    assert repr(trace.spans[0].attributes["n"]) == repr(numbers)
