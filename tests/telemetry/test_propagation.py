import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import INVALID_SPAN
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spanloom.telemetry import step
from spanloom.telemetry.propagation import GuardedPropagator, HttpxHooks, PropagationPolicy
from spanloom.telemetry.settings import TelemetrySettings
from spanloom.telemetry.testing import capture_spans

HEADERS = ("traceparent", "tracestate", "baggage")


def policy(text: str = "") -> PropagationPolicy:
    return PropagationPolicy(
        TelemetrySettings.from_env({"SPANLOOM_PROPAGATE_TO": text}).propagate_to
    )


def guarded() -> GuardedPropagator:
    return GuardedPropagator(
        CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    )


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:8001/search", True),
        ("http://127.3.4.5/", True),
        ("http://[::1]:8001/", True),
        ("http://[::ffff:127.0.0.1]/", True),
        ("http://localhost:8002/v1", True),
        ("http://LOCALHOST./", True),
        ("http://api.localhost/", True),
        ("https://api.openai.com/v1/chat/completions", False),
        ("http://10.0.0.5/", False),
        ("http://127.0.0.1@evil.example/", False),
        ("http://localhost.evil.example/", False),
        ("http://evil.example/?x=http://127.0.0.1/", False),
        ("not a url", False),
        ("http://[broken/", False),
        ("", False),
    ],
)
def test_only_loopback_gets_our_context_by_default(url: str, allowed: bool) -> None:
    """Names and addresses of this machine, judged on the host and nothing else in the URL."""
    assert policy().allows(url) is allowed


def test_listed_hosts_come_on_top() -> None:
    """Names, suffixes and networks are added to loopback."""
    listed = policy("retrieval.internal,*.svc.cluster.local,10.0.0.0/8")

    assert listed.allows("http://retrieval.internal:8001/")
    assert listed.allows("http://Retrieval.Internal/")
    assert listed.allows("http://a.b.svc.cluster.local/")
    assert listed.allows("http://10.9.9.9/")
    assert listed.allows("http://127.0.0.1/")
    assert not listed.allows("http://svc.cluster.local.evil.example/")
    assert not listed.allows("http://xretrieval.internal/")
    assert not listed.allows("http://11.0.0.1/")


def test_all_and_none() -> None:
    """Both ends of the scale."""
    assert policy("all").allows("https://api.openai.com/")
    assert not policy("none").allows("http://127.0.0.1/")


def test_a_note_holds_for_one_request_only() -> None:
    """After a withheld injection the next one is free again."""
    hooks = HttpxHooks(policy(), HEADERS)
    propagator = guarded()
    with capture_spans(), step("request"):
        carrier: dict[str, str] = {}
        hooks.request(INVALID_SPAN, httpx2.Request("GET", "http://foreign.example/"))
        propagator.inject(carrier)
        assert carrier == {}
        propagator.inject(carrier)
        assert "traceparent" in carrier


def test_headers_that_are_there_already_are_taken_off() -> None:
    """After a redirect, or written by an SDK, they do not reach a foreign host either."""
    hooks = HttpxHooks(policy(), HEADERS)
    old = {"traceparent": "00-1", "TraceState": "a=b", "baggage": "x=y", "Accept": "*/*"}
    foreign = httpx2.Request("GET", "http://foreign.example/", headers=old)
    local = httpx2.Request("GET", "http://127.0.0.1/", headers=old)
    hooks.request(INVALID_SPAN, foreign)
    hooks.request(INVALID_SPAN, local)

    assert not set(HEADERS) & {name.lower() for name in foreign.headers}
    assert foreign.headers["accept"] == "*/*"
    assert set(HEADERS) <= {name.lower() for name in local.headers}


@settings(max_examples=200, deadline=None)
@given(
    traceparent=st.text(max_size=80),
    tracestate=st.text(max_size=80),
    baggage=st.text(max_size=80),
)
def test_garbage_never_raises(traceparent: str, tracestate: str, baggage: str) -> None:
    """Whatever a caller sends, extraction gives a context."""
    carrier = {"traceparent": traceparent, "tracestate": tracestate, "baggage": baggage}

    assert isinstance(guarded().extract(carrier), Context)


def test_a_propagator_that_raises_gives_a_new_trace() -> None:
    """A third-party propagator with a bug does not break the request."""

    class Broken(TextMapPropagator):
        def extract(self, *_: object, **__: object) -> Context:
            raise ValueError

        def inject(self, *_: object, **__: object) -> None:
            raise ValueError

        @property
        def fields(self) -> set[str]:
            return {"x-broken"}

    GuardedPropagator(Broken()).inject({})
    context = GuardedPropagator(Broken()).extract({"x-broken": "1"})

    assert not trace.get_current_span(context).get_span_context().is_valid
