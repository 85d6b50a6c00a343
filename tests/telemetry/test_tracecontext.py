import pickle
import string
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from spanloom.telemetry.testing import capture_spans
from spanloom.telemetry.tracecontext import (
    MAX_RECEIVED_TRACESTATE_LENGTH,
    MAX_TRACESTATE_LENGTH,
    StrictTraceState,
    TraceContextPropagator,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
PROPAGATOR = TraceContextPropagator()

KEYS = st.builds(
    str.__add__,
    st.sampled_from(string.ascii_lowercase + string.digits),
    st.text(string.ascii_lowercase + string.digits + "_-*/@", max_size=255),
)
PRINTABLE = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",="]
VALUES = st.text(PRINTABLE, min_size=1, max_size=256).filter(lambda text: text[-1] != " ")
MEMBERS = st.lists(st.tuples(KEYS, VALUES), max_size=32, unique_by=lambda member: member[0])


def extract(parent: object, *states: object) -> SpanContext:
    carrier = {"traceparent": parent, "tracestate": list(states)}
    context = PROPAGATOR.extract(carrier)
    return trace.get_current_span(context).get_span_context()


def inject(span: SpanContext) -> dict[str, str]:
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier, trace.set_span_in_context(NonRecordingSpan(span), Context()))
    return carrier


def span_context(state: TraceState, flags: int = 1) -> SpanContext:
    return SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(flags), trace_state=state)


def header(members: Sequence[tuple[str, str]]) -> str:
    return ",".join(f"{key}={value}" for key, value in members)


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        f" \t{PARENT}\t ",
        f"cc-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
        f"fe-{TRACE}-{SPAN}-01-{'x' * 200}",
    ],
)
def test_a_valid_parent_is_read(parent: str) -> None:
    """Version 00 exactly, later versions as far as this one knows them, white space around."""
    span = extract(parent)

    assert (f"{span.trace_id:032x}", f"{span.span_id:016x}") == (TRACE, SPAN)
    assert span.is_remote
    assert span.trace_flags == TraceFlags.SAMPLED
    assert inject(span) == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"{PARENT}-",
        f"{PARENT}-what-the-future-will-be-like",
        f"{PARENT}.",
        f"{PARENT}\n",
        f"{PARENT}\r\nx: y",
        f"\u00a0{PARENT}",
        f"\v{PARENT}",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.future",
        f"cc-{TRACE}-{SPAN}-0",
        f"cc-{TRACE}-{SPAN}-01-\r\nx: y",
        f"cc-{TRACE}-{SPAN}-01-é",
        f"fe-{TRACE}-{SPAN}-01-{'x' * 201}",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f".0-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"CC-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE[1:]}٣-{SPAN}-01",  # a digit to str.isdigit, not to the standard
        f"００-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        "00-" + "1" * 10_000_000,
        [],
        [PARENT, PARENT],
        [PARENT, f"00-{'1' * 32}-{SPAN}-01"],
        [PARENT, ""],
        f"{PARENT},{PARENT}",
        f"cc-{TRACE}-{SPAN}-01-x,{PARENT}",  # two lines, joined by a proxy
        PARENT.encode(),
        [PARENT.encode()],
        None,
        7,
        {"a": 1},
    ],
)
def test_an_invalid_parent_is_no_parent(parent: object) -> None:
    """One character off, two of them, or no text at all: the trace starts here, without state."""
    span = extract(parent, "foo=1")

    assert not span.is_valid
    assert not span.trace_state


def test_the_context_handed_in_is_kept() -> None:
    """What is in the context already survives an invalid header and a valid one."""
    before = Context({"mine": 1})

    assert PROPAGATOR.extract({"traceparent": "no"}, before) == before
    assert PROPAGATOR.extract({"traceparent": PARENT}, before)["mine"] == 1


@pytest.mark.parametrize(
    ("received", "sent"), [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("fe", 2), ("ff", 3)]
)
def test_flags_are_bits(received: str, sent: int) -> None:
    """Sampled and random are carried on by themselves; bits without a meaning yet become 0."""
    span = extract(f"00-{TRACE}-{SPAN}-{received}")

    assert span.trace_flags == sent
    assert inject(span)["traceparent"] == f"00-{TRACE}-{SPAN}-{sent:02x}"
    assert inject(span_context(TraceState(), 0xFF))["traceparent"].endswith("-03")


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_spans_keep_the_random_bit_of_their_trace(flags: str) -> None:
    """Whatever the sampler decides, the bit goes out as it came in."""
    context = PROPAGATOR.extract({"traceparent": f"00-{TRACE}-{SPAN}-{flags}"})
    for provider in (TracerProvider(), TracerProvider(ParentBased(ALWAYS_OFF))):
        carrier: dict[str, str] = {}
        child = provider.get_tracer("test").start_span("child", context)
        PROPAGATOR.inject(carrier, trace.set_span_in_context(child, Context()))

        assert int(carrier["traceparent"][-2:], 16) & 2 == int(flags, 16) & 2
        assert carrier["traceparent"][3:35] == TRACE


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1,bar=2", "rojo=1,congo=2", "baz=3"], "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        (["foo=1", "", "bar=2"], "foo=1,bar=2"),
        ([" ,\t, foo=1 \t,,bar=2 ,"], "foo=1,bar=2"),
        (["foo= 1"], "foo= 1"),  # leading spaces belong to the value
        (["foo@=1,bar=2"], "foo@=1,bar=2"),
        (["foo@@bar=1,0@=2"], "foo@@bar=1,0@=2"),
        (["0=1"], "0=1"),
        (["z" * 256 + "=1"], "z" * 256 + "=1"),
        (["t" * 242 + "@v=1"], "t" * 242 + "@v=1"),
        (["t@" + "v" * 15 + "=1"], "t@" + "v" * 15 + "=1"),
        (["foo=1,foo=1"], "foo=1"),
        (["foo=1,bar=2", "foo=3"], "foo=1,bar=2"),  # the left-most one is the most recent
        (["a=" + "v" * 256], "a=" + "v" * 256),
        (["".join(PRINTABLE).join(["a=", ""])], "a=" + "".join(PRINTABLE)),
    ],
)
def test_a_legal_state_is_carried_on(lines: list[str], expected: str) -> None:
    """All lines are one list, in order, by the grammar of Level 2."""
    span = extract(PARENT, *lines)

    assert inject(span)["tracestate"] == expected


@pytest.mark.parametrize(
    "line",
    [
        "@foo=1",
        "foo =1",
        "FOO=1",
        "foo.bar=1",
        "-foo=1",
        "foo=bar=baz",
        "foo=",
        "foo",
        "=1",
        "=",
        "z" * 257 + "=1",
        "a=" + "v" * 257,
        "föö=1",
        "foo=ü",
        "foo=\u0663\x7f",
        "foo=a\tb",
        "foo=a\x00b",
        "foo=1\r\nx-injected: 1",
        "foo=1\n",
        "foo=\x0b",
    ],
)
def test_one_illegal_member_discards_the_state_and_not_the_parent(line: str) -> None:
    """A list that cannot be read as a whole is not carried on in part; the trace is."""
    span = extract(PARENT, "bar=2", line)

    assert f"{span.trace_id:032x}" == TRACE
    assert not span.trace_state
    assert "tracestate" not in inject(span)


def test_thirty_two_members_are_carried_and_thirty_three_are_not() -> None:
    """Over several lines, and duplicates count."""
    members = [f"bar{number:02}={number}" for number in range(32)]

    assert inject(extract(PARENT, *members))["tracestate"] == ",".join(members)
    assert inject(extract(PARENT, ",,".join(members)))["tracestate"] == ",".join(members)
    assert "tracestate" not in inject(extract(PARENT, *members, "bar32=1"))
    assert "tracestate" not in inject(extract(PARENT, *members, members[0]))


@given(st.lists(st.text(max_size=40), max_size=5))
@settings(max_examples=150, deadline=None)
def test_garbage_in_the_state_costs_the_state_only(lines: list[str]) -> None:
    """Whatever the lines hold, the parent is read, and what goes out is legal."""
    span = extract(PARENT, *lines)

    assert f"{span.trace_id:032x}" == TRACE
    sent = inject(span).get("tracestate", "")
    assert sent.isascii()
    assert not sent or sent.isprintable()


def test_very_long_states_are_not_parsed() -> None:
    """A header no legal list can fill is dropped by its length."""
    assert not extract(PARENT, "," * MAX_RECEIVED_TRACESTATE_LENGTH).trace_state
    assert not extract(PARENT, *["a=b"] * 1_000_000).trace_state
    legal = ",".join(f"{number:0256}={'v' * 256}" for number in range(32))
    assert len(legal) == 16_447
    assert extract(PARENT, legal).trace_state


@given(MEMBERS)
@settings(max_examples=100, deadline=None)
@example([("a" * 256, "v" * 256)])
def test_states_make_the_round_trip(members: list[tuple[str, str]]) -> None:
    """Every legal list that is short enough comes out as it went in, in its order."""
    text = header(members)
    span = extract(PARENT, text)
    sent = inject(span).get("tracestate", "")

    assert len(sent) <= MAX_TRACESTATE_LENGTH
    if len(text) <= MAX_TRACESTATE_LENGTH:
        assert sent == text
    received = text.split(",")
    assert [received.index(member) for member in sent.split(",") if member] == sorted(
        received.index(member) for member in sent.split(",") if member
    )


@given(MEMBERS, st.integers(min_value=512, max_value=8_192))
@settings(max_examples=100, deadline=None)
def test_cutting_takes_whole_members_in_the_standards_order(
    members: list[tuple[str, str]], length: int
) -> None:
    """Members over 128 characters go first, from the right; then the others, from the right."""
    kept = list(StrictTraceState(members).within(length).items())
    gone = [member for member in members if member not in kept]
    long = [member for member in members if len(header([member])) > 128]

    assert len(header(kept)) <= length
    assert kept == [member for member in members if member in kept]
    if gone:
        assert set(gone) <= set(long) or set(long) <= set(gone)
        for group in (long, [member for member in members if member not in long]):
            cut = [member for member in group if member in gone]
            assert cut == group[len(group) - len(cut) :]


def test_cutting_takes_no_more_than_it_must() -> None:
    """A list that fits to the character is not touched; one character more costs one member."""
    state = StrictTraceState([("a", "1" * 200), ("b", "2" * 200), ("c", "3")])

    assert state.within(len(state.to_header())) is state
    assert list(state.within(len(state.to_header()) - 1)) == ["a", "c"]
    assert list(state.within(10)) == ["c"]
    assert not state.within(0)


def test_children_carry_the_state_on() -> None:
    """Members that OpenTelemetry's own class refuses go through spans to the next service."""
    lines = ["foo@=1,0=x", "t@" + "v" * 15 + "=1"]
    context = PROPAGATOR.extract({"traceparent": PARENT, "tracestate": lines})
    carrier: dict[str, str] = {}
    with capture_spans() as captured:
        tracer = trace.get_tracer("test", tracer_provider=captured.provider)
        with tracer.start_as_current_span("parent", context), tracer.start_as_current_span("child"):
            PROPAGATOR.inject(carrier)

    assert carrier["tracestate"] == ",".join(lines)
    assert carrier["traceparent"].startswith(f"00-{TRACE}-")
    assert SPAN not in carrier["traceparent"]


def test_new_members_go_to_the_left() -> None:
    """Adding and updating by the API of OpenTelemetry, without losing what it does not know."""
    state: TraceState = StrictTraceState.from_header(["foo@=1,bar=2"])

    assert state.add("ot", "th:0").to_header() == "ot=th:0,foo@=1,bar=2"
    assert state.add("bar", "3") == state
    assert state.update("bar", "3").to_header() == "bar=3,foo@=1"
    assert state.update("new", "3").to_header() == "new=3,foo@=1,bar=2"
    assert state.delete("foo@").to_header() == "bar=2"
    assert state.delete("absent") == state
    assert state.update("@no", "1") == state
    assert state.add("x", "a\r\nb") == state
    assert state.to_header() == "foo@=1,bar=2"
    assert pickle.loads(pickle.dumps(state)).to_header() == "foo@=1,bar=2"


def test_a_thirty_third_member_pushes_the_right_most_out() -> None:
    """The new one is the one that matters most."""
    state = StrictTraceState([(f"k{number}", "1") for number in range(32)])
    added = state.add("ot", "th:0")

    assert len(added) == 32
    assert next(iter(added)) == "ot"
    assert "k31" not in added
    assert "k30" in added
    assert not StrictTraceState([*state.items(), ("k32", "1")])


def test_a_foreign_state_cannot_smuggle_a_header() -> None:
    """What a sampler put into a state of its own class is checked before it is sent."""

    class Careless(TraceState):
        def __init__(self, members: dict[str, str]) -> None:
            super().__init__()
            self._dict = members

    sent = inject(span_context(Careless({"a": "1\r\nx-injected: 1", "b": "2"})))

    assert sent["tracestate"] == "b=2"


def test_nothing_is_written_without_a_valid_span() -> None:
    """No headers of zeros, and none for an id that is too large."""
    assert inject(trace.INVALID_SPAN_CONTEXT) == {}
    assert inject(SpanContext(1 << 128, 1, is_remote=False)) == {}
    assert inject(SpanContext(0, 1, is_remote=False)) == {}


def test_a_state_the_getter_cannot_decode_does_not_cost_the_parent() -> None:
    """The getter of the ASGI instrumentation raises on some bytes."""
    scope = {"headers": [(b"traceparent", PARENT.encode()), (b"tracestate", b"\xff\\x")]}
    with pytest.raises(UnicodeDecodeError):
        asgi_getter.get(scope, "tracestate")

    span = trace.get_current_span(PROPAGATOR.extract(scope, getter=asgi_getter)).get_span_context()

    assert f"{span.trace_id:032x}" == TRACE
    assert not span.trace_state


def test_the_asgi_getter_hands_over_every_line() -> None:
    """Two lines of one header arrive as two values, in their order."""
    scope = {
        "headers": [
            (b"traceparent", PARENT.encode()),
            (b"tracestate", b"a=1"),
            (b"accept", b"*/*"),
            (b"TraceState", b"b=2"),
        ]
    }
    span = trace.get_current_span(PROPAGATOR.extract(scope, getter=asgi_getter)).get_span_context()
    assert span.trace_state.to_header() == "a=1,b=2"

    scope["headers"].append((b"Traceparent", PARENT.encode()))
    assert PROPAGATOR.extract(scope, getter=asgi_getter) == {}
