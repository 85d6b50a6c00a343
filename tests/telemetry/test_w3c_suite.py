"""The 41 tests of the W3C's own conformance suite at its strictest, one case for each, by its name.

Their suite asks a service to make calls and looks at the headers of these; so does this, of a
service that `setup` has set up. `test_w3c` and `test_tracecontext` go further than they do.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.telemetry.live import Service
from tests.telemetry.test_w3c import (
    PARENT,
    PRINTABLE,
    SILENT,
    SPAN,
    TRACE,
    Callee,
    Sent,
    make_calls,
)


class Case(NamedTuple):
    """What is sent, whether the trace goes on, and the state that must go on (None: any)."""

    lines: list[str]
    goes_on: bool
    state: str | None = None


def parent(version: str = "00", trace: str = TRACE, span: str = SPAN, flags: str = "01") -> str:
    return f"traceparent: {version}-{trace}-{span}-{flags}"


def states(*lines: str, goes_on: str | None) -> Case:
    return Case([PARENT, *(f"tracestate: {line}" for line in lines)], True, goes_on)


NEW = False
LONG = [f"bar{number:02}={number}" for number in range(33)]
SUITE: dict[str, list[Case]] = {
    "both_traceparent_and_tracestate_missing": [Case([], NEW)],
    "traceparent_included_tracestate_missing": [Case([PARENT], True, "")],
    "traceparent_duplicated": [Case([PARENT, parent(trace=TRACE[:-1] + "1")], NEW)],
    "traceparent_header_name": [
        Case([PARENT.replace("traceparent", "trace-parent")], NEW),
        Case([PARENT.replace("traceparent", "trace.parent")], NEW),
    ],
    "traceparent_header_name_valid_casing": [
        Case([PARENT.replace("traceparent", name)], True)
        for name in ("TraceParent", "TrAcEpArEnT", "TRACEPARENT")
    ],
    "traceparent_version_0x00": [Case([PARENT + "."], NEW), Case([PARENT + "-what-the"], NEW)],
    "traceparent_version_0xcc": [
        Case([parent("cc")], True),
        Case([parent("cc") + "-what-the-future-will-be-like"], True),
        Case([parent("cc") + ".what-the-future-will-be-like"], NEW),
    ],
    "traceparent_version_0xff": [Case([parent("ff")], NEW)],
    "traceparent_version_illegal_characters": [Case([parent(v)], NEW) for v in (".0", "0.")],
    "traceparent_version_too_long": [Case([parent(v)], NEW) for v in ("000", "0000")],
    "traceparent_version_too_short": [Case([parent("0")], NEW)],
    "traceparent_trace_id_all_zero": [Case([parent(trace="0" * 32)], NEW)],
    "traceparent_trace_id_illegal_characters": [
        Case([parent(trace="." + TRACE[1:])], NEW),
        Case([parent(trace=TRACE[:-1] + ".")], NEW),
    ],
    "traceparent_trace_id_too_long": [Case([parent(trace=TRACE + "3")], NEW)],
    "traceparent_trace_id_too_short": [Case([parent(trace=TRACE[:-1])], NEW)],
    "traceparent_parent_id_all_zero": [Case([parent(span="0" * 16)], NEW)],
    "traceparent_parent_id_illegal_characters": [
        Case([parent(span="." + SPAN[1:])], NEW),
        Case([parent(span=SPAN[:-1] + ".")], NEW),
    ],
    "traceparent_parent_id_too_long": [Case([parent(span=SPAN + "7")], NEW)],
    "traceparent_parent_id_too_short": [Case([parent(span=SPAN[:-1])], NEW)],
    "traceparent_trace_flags_illegal_characters": [
        Case([parent(flags=flags)], NEW) for flags in (".0", "0.")
    ],
    "traceparent_trace_flags_too_long": [Case([parent(flags="001")], NEW)],
    "traceparent_trace_flags_too_short": [Case([parent(flags="1")], NEW)],
    "traceparent_ows_handling": [
        Case([f"traceparent:{before}{PARENT.partition(': ')[2]}{after}"], True)
        for before, after in ((" ", ""), ("\t", ""), ("", " "), ("", "\t"), ("\t ", " \t"))
    ],
    "tracestate_included_traceparent_missing": [
        Case(["tracestate: foo=1"], NEW, ""),
        Case(["tracestate: foo=1,bar=2"], NEW, ""),
    ],
    "tracestate_included_traceparent_included": [states("foo=1,bar=2", goes_on="foo=1,bar=2")],
    "tracestate_header_name": [
        Case([PARENT, "trace-state: foo=1"], True, ""),
        Case([PARENT, "trace.state: foo=1"], True, ""),
    ],
    "tracestate_header_name_valid_casing": [
        Case([PARENT, f"{name}: foo=1"], True, "foo=1")
        for name in ("TraceState", "TrAcEsTaTe", "TRACESTATE")
    ],
    "tracestate_empty_header": [
        states("foo=1", "", goes_on="foo=1"),
        states("", "foo=1", goes_on="foo=1"),
    ],
    "tracestate_multiple_headers_different_keys": [
        states("foo=1,bar=2", "rojo=1,congo=2", "baz=3", goes_on="foo=1,bar=2,rojo=1,congo=2,baz=3")
    ],
    "tracestate_duplicated_keys": [
        states("foo=1,foo=1", goes_on="foo=1"),
        states("foo=1,foo=2", goes_on="foo=1"),
        states("foo=1", "foo=1", goes_on="foo=1"),
        states("foo=1", "foo=2", goes_on="foo=1"),
    ],
    "tracestate_all_allowed_characters": [
        states(one, goes_on=one)
        for one in (
            "".join([*map(chr, range(0x61, 0x7B)), "0123456789_-*/"]) + f"={PRINTABLE}",
            "".join([*map(chr, range(0x61, 0x7B)), "0123456789_-*/"]) + f"@a-z0-9_-*/={PRINTABLE}",
        )
    ],
    "tracestate_ows_handling": [
        states("foo=1 \t , \t bar=2, \t baz=3", goes_on="foo=1,bar=2,baz=3"),
        states("foo=1 \t", " \t bar=2", goes_on="foo=1,bar=2"),
    ],
    "tracestate_key_illegal_characters": [
        states(one, goes_on="") for one in ("foo =1", "FOO=1", "foo.bar=1")
    ],
    "tracestate_key_illegal_vendor_format": [
        states("foo@=1,bar=2", goes_on="foo@=1,bar=2"),
        states("@foo=1,bar=2", goes_on=""),
        states("foo@@bar=1,bar=2", goes_on="foo@@bar=1,bar=2"),
        states("foo@bar@baz=1,bar=2", goes_on="foo@bar@baz=1,bar=2"),
    ],
    "tracestate_member_count_limit": [
        states(*LONG[:32], goes_on=",".join(LONG[:32])),
        states(*LONG, goes_on=""),
    ],
    "tracestate_key_length_limit": [
        states("foo=1", "z" * 256 + "=1", goes_on="foo=1," + "z" * 256 + "=1"),
        states("foo=1", "z" * 257 + "=1", goes_on=""),
        states("foo=1", "t" * 241 + "@" + "v" * 14 + "=1", goes_on=None),
        states("foo=1", "t" * 242 + "@v=1", goes_on=None),
    ],
    "tracestate_value_illegal_characters": [
        states(one, goes_on="") for one in ("foo=bar=baz", "foo=,bar=3")
    ],
    # several calls for one request: each `call` makes two and compares them
    "multiple_requests_with_valid_traceparent": [Case([PARENT], True)] * 2,
    "multiple_requests_without_traceparent": [Case([], NEW)] * 2,
    "multiple_requests_with_illegal_traceparent": [Case([parent(trace="0" * 32)], NEW)] * 2,
    "traceparent_trace_flags_random": [Case([parent(flags=f)], True) for f in ("02", "03", "00")],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"), SILENT)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def callee() -> Iterator[Callee]:
    callee = Callee()
    yield callee
    callee.close()


@pytest.fixture
def call(service: Service, callee: Callee) -> Callable[..., list[Sent]]:
    return lambda *lines: make_calls(service, callee, *lines)


def test_there_are_as_many_as_theirs() -> None:
    """37 of Trace Context, 3 of several calls at once, 1 of Level 2."""
    assert len(SUITE) == 37 + 3 + 1


@pytest.mark.parametrize("name", SUITE)
def test_the_suite(call: Callable[..., list[Sent]], name: str) -> None:
    """The trace goes on or begins anew, and the state goes on whole or not at all."""
    begun: list[str] = []
    for case in SUITE[name]:
        sent = call(*case.lines)
        trace_id, _, flags = sent[0].parent
        assert (trace_id == TRACE) is case.goes_on, case.lines
        if case.goes_on:
            asked = next((line for line in case.lines if "raceparent: " in line), "-01").split("-")
            if len(asked) == 4:
                assert flags == int(asked[3].split()[0], 16) & 3, case.lines
        else:
            assert sent[0].state == ""
            begun.append(trace_id)
        if case.state is not None:
            assert sent[0].state == case.state, case.lines
    assert len(set(begun)) == len(begun), "a trace of its own each time"
