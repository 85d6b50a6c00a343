import copy
import logging
import pickle

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context

from spanloom.telemetry.baggage import (
    MAX_BAGGAGE_LENGTH,
    MAX_RECEIVED_BAGGAGE_LENGTH,
    BaggagePropagator,
)

PROPAGATOR = BaggagePropagator()


def extract(*lines: object) -> dict[str, object]:
    return dict(baggage.get_all(PROPAGATOR.extract({"baggage": list(lines)})))


def inject(entries: dict[str, object]) -> str:
    context = Context()
    for key, value in entries.items():
        context = baggage.set_baggage(key, value, context)
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier, context)
    return carrier.get("baggage", "")


def forward(*lines: str) -> str:
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier, PROPAGATOR.extract({"baggage": list(lines)}))
    return carrier.get("baggage", "")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["userId=alice"], {"userId": "alice"}),
        (["userId=alice", "node=DF%2028"], {"userId": "alice", "node": "DF 28"}),
        (["userId =   alice\t, b\t= 2"], {"userId": "alice", "b": "2"}),
        (["a=b=c=="], {"a": "b=c=="}),
        (["a=1+1"], {"a": "1+1"}),
        (["a=Am%C3%A9lie,b=%E7%A7%9F%E6%88%B7"], {"a": "Amélie", "b": "租户"}),
        (["a=%ff%fe!"], {"a": "\ufffd\ufffd!"}),
        (["a=%zz"], {"a": "%zz"}),
        (["a="], {"a": ""}),
        ([",, a=1 ,"], {"a": "1"}),
        (["a=1,a=2"], {"a": "2"}),
        (["a=1;ttl=3; internal"], {"a": "1"}),
        (["a=1;"], {"a": "1"}),
        (["%E7%A7%9F=1"], {"租": "1"}),
        (["a%41=1"], {"a%41": "1"}),
    ],
)
def test_entries_are_read(lines: list[str], expected: dict[str, str]) -> None:
    """All lines, by the letter of the standard."""
    assert extract(*lines) == expected


@pytest.mark.parametrize(
    "member",
    [
        "a",
        "=1",
        "a b=1",
        "a=b c",
        'a="b"',
        "a=b\\c",
        "ä=1",
        "a=ä",
        "a=1\r\nx: y",
        "a=\x00",
        "a=1;p q",
        "a=1;=2",
        "a=1;p=\r\n",
        "a(=1",
    ],
)
def test_a_member_that_breaks_the_grammar_is_left_out(member: str) -> None:
    """The others stay."""
    assert extract(f"x=1,{member},y=2") == {"x": "1", "y": "2"}
    assert extract("x=1", member, "y=2") == {"x": "1", "y": "2"}


@pytest.mark.parametrize(
    "text",
    [
        "userId=alice,serverNode=DF%2028,isProduction=false",
        "key1=value1;property1;property2,key2=value2,key3=value3; propertyKey=propertyValue",
        "%E7%A7%9F=1,a%41=2,100%=3,~!#$&'*+-.^_`|=4",
        "a=b=c",
    ],
)
def test_what_is_forwarded_is_unchanged(text: str) -> None:
    """Properties stay properties, and keys keep their spelling."""
    assert forward(text) == text


def test_properties_survive_copies() -> None:
    """A value with properties is text like any other, and can be copied and pickled."""
    (value,) = extract("a=1;ttl=3").values()

    assert value == "1"
    for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert twin == "1"
        assert inject({"a": twin}) == "a=1;ttl=3"


def test_sixty_four_members_of_8192_bytes_are_carried_on() -> None:
    """What the standard demands, to the byte, and in order."""
    members = [f"k{number:02}=" + "v" * 123 for number in range(64)]
    text = ",".join(members)
    text += "v" * (8_192 - len(text))

    assert len(text) == 8_192
    assert forward(text) == text
    assert forward(*text.split(",")) == text


def test_members_beyond_the_limits_are_dropped_whole() -> None:
    """What does not fit falls out by itself, and no member is cut."""
    big = "big=" + "x" * MAX_BAGGAGE_LENGTH
    assert forward(f"a=1,{big},b=2") == "a=1,b=2"

    many = [f"k{number}={number}" for number in range(300)]
    assert forward(",".join(many)) == ",".join(many[:180])
    assert forward(*many) == ",".join(many[:180])

    assert inject({"a": "1", "big": "x" * 9_000, "b": "2"}) == "a=1,b=2"
    sent = inject({f"k{number}": "租" * 20 for number in range(100)})
    assert len(sent) <= MAX_BAGGAGE_LENGTH
    assert all(member.endswith("%E7%A7%9F") for member in sent.split(","))


def test_a_prohibitively_long_header_is_not_read() -> None:
    """Its length is checked before anything else."""
    assert extract("a=1," + "," * MAX_RECEIVED_BAGGAGE_LENGTH) == {}
    assert extract(*["a=1"] * 1_000_000) == {}


@given(
    st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=30), min_size=1, max_size=20)
)
@example({"租户": "检索增强生成 + 100% \r\n x: y"})
@example({"\r\nx-injected": "1", "a;b": "c;d,e=f"})
@settings(max_examples=150, deadline=None)
def test_entries_make_the_round_trip(entries: dict[str, str]) -> None:
    """Any text, in keys and values; what is on the wire is printable ASCII."""
    assume("%" not in "".join(entries))  # such a key is a token, and could be an encoded one
    sent = inject(dict(entries))

    assert sent.isascii()
    assert sent.isprintable()
    assert " " not in sent
    assert extract(sent) == entries


@given(
    st.dictionaries(st.text("ab租 /", min_size=1, max_size=8), st.text("ab租 +%;,=", max_size=8))
)
@settings(max_examples=50, deadline=None)
def test_opentelemetrys_own_propagator_understands_us(entries: dict[str, str]) -> None:
    """A Python service with the stock propagator reads the same values."""
    entries = {key.strip() or "a": value.strip() for key, value in entries.items()}
    carrier = {"baggage": inject(dict(entries))}

    assert dict(baggage.get_all(W3CBaggagePropagator().extract(carrier, Context()))) == entries


@given(st.lists(st.one_of(st.text(), st.binary(), st.integers(), st.none()), max_size=5))
@settings(max_examples=150, deadline=None)
def test_garbage_never_raises_and_is_never_logged(lines: list[object]) -> None:
    """Whatever a caller sends gives a context, and no line in the log."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        extract(*lines)
    finally:
        root.removeHandler(handler)

    assert not records


def test_values_of_any_type_are_written_as_text() -> None:
    """OpenTelemetry's API takes objects; half a surrogate pair does not stop the others."""
    assert inject({"n": 7, "b": True, "s": "\ud800", "": "nameless"}) == "n=7,b=True,s=?"


def test_no_entries_no_header() -> None:
    """An empty header is legal, and noise."""
    assert inject({}) == ""
    assert PROPAGATOR.fields == {"baggage"}
