"""Nothing is lost between model and wire."""

import json
import math
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloom import otlp
from spanloom.model import Span
from tests import strategies
from tests.builders import log, point, resource, span

PROTOBUF = "application/x-protobuf"
JSON = "application/json; charset=utf-8"


def _by_resource(items: list[Any]) -> list[Any]:
    # Encoding groups by resource and scope; within a group the order stays.
    return sorted(items, key=lambda item: (repr(item.resource), repr(item.scope)))


@settings(deadline=None, max_examples=40)
@given(st.lists(strategies.spans, max_size=3))
def test_spans_survive_protobuf_and_json(spans: list[Span]) -> None:
    """Any span comes back equal from protobuf and from JSON."""
    wire = otlp.traces_to_message(spans).SerializeToString()
    text = orjson.dumps(otlp.traces_to_json(spans))

    for decoded in (otlp.decode_traces(wire, PROTOBUF), otlp.decode_traces(text, JSON)):
        assert decoded.rejected == 0
        assert _by_resource(spans) == _by_resource(list(decoded.items))


@settings(deadline=None, max_examples=40)
@given(st.lists(strategies.logs(), max_size=3))
def test_logs_survive_protobuf_and_json(events: list[Any]) -> None:
    """Any log record comes back equal from protobuf and from JSON."""
    wire = otlp.logs_to_message(events).SerializeToString()
    text = orjson.dumps(otlp.logs_to_json(events))

    assert _by_resource(events) == _by_resource(list(otlp.decode_logs(wire, PROTOBUF).items))
    assert _by_resource(events) == _by_resource(list(otlp.decode_logs(text, JSON).items))


@settings(deadline=None, max_examples=40)
@given(st.lists(strategies.points(), max_size=3))
def test_metric_points_survive_protobuf_and_json(points: list[Any]) -> None:
    """A data point of any kind comes back equal from protobuf and from JSON."""
    wire = otlp.metrics_to_message(points).SerializeToString()
    text = orjson.dumps(otlp.metrics_to_json(points))

    assert _by_resource(points) == _by_resource(list(otlp.decode_metrics(wire, PROTOBUF).items))
    assert _by_resource(points) == _by_resource(list(otlp.decode_metrics(text, JSON).items))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.0])
def test_special_doubles_survive(number: float) -> None:
    """NaN, infinities and whole numbers stay the doubles they are."""
    sent = [span(attributes={"x": number})]
    text = orjson.dumps(otlp.traces_to_json(sent))
    (received,) = otlp.decode_traces(text, JSON).items
    value = received.attributes["x"]

    assert isinstance(value, float)
    assert repr(number) == repr(value)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63)])
def test_large_integers_are_text_in_json(number: int) -> None:
    """An int64 beyond a double's precision is exact, because JSON carries it as text."""
    document = otlp.traces_to_json([span(attributes={"x": number})])
    (pair,) = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"]

    assert {"key": "x", "value": {"intValue": str(number)}} == pair


def test_integers_over_64_bits_become_text() -> None:
    """What no OTLP integer can hold is kept readable instead of failing the batch."""
    (received,) = otlp.traces_from_message(
        otlp.traces_to_message([span(attributes={"x": 2**80})])
    ).items

    assert {"x": str(2**80)} == received.attributes


def test_lone_surrogates_become_replacement_characters() -> None:
    """Text that UTF-8 cannot carry is mended everywhere it can occur; pairs are joined."""
    broken = span(
        "\ud800name",
        attributes={"\udfffkey": "\ud83d\ude00 ok \ud83d"},
        error="\udc00",
        resource=resource("服务\ud800"),
    )
    document = otlp.traces_to_json([broken])
    (received,) = otlp.decode_traces(orjson.dumps(document), JSON).items

    assert received.name == "\ufffdname"
    assert received.attributes == {"\ufffdkey": "😀 ok \ufffd"}
    assert received.status.message == "\ufffd"
    assert received.service_name == "服务\ufffd"


def test_surrogate_escapes_in_json_are_mended() -> None:
    """A JSON body with an escaped lone surrogate is taken, although strict parsers refuse it."""
    document = otlp.traces_to_json([span("NAME")])
    body = json.dumps(document).replace("NAME", "\\ud800 名").encode()
    (received,) = otlp.decode_traces(body, JSON).items

    assert received.name == "\ufffd 名"


@pytest.mark.parametrize(
    ("to_json", "decode", "item"),
    [
        (otlp.traces_to_json, otlp.decode_traces, span),
        (otlp.logs_to_json, otlp.decode_logs, log),
        (otlp.metrics_to_json, otlp.decode_metrics, point),
    ],
)
def test_equal_resources_share_a_group(
    to_json: Callable[[Any], dict[str, Any]],
    decode: Callable[[bytes, str], otlp.Decoded[Any]],
    item: Callable[..., Any],
) -> None:
    """Items of one resource stand in one group, whether or not they share the object."""
    items = [item(service="a"), item(service="b"), item(service="a", attributes={"n": 2})]
    document = to_json(items)
    (groups,) = document.values()

    assert len(groups) == 2
    assert [items[0], items[2], items[1]] == list(decode(orjson.dumps(document), JSON).items)
