"""Who ends an announced span, decided without processes: every order of events, with a clock."""

import time
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from spanloom.telemetry.otlp_encoding import Encoded, encode_whole
from spanloom.telemetry.reaped import Claims

TRACE = 7


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Reaper:
    """Is told, or cannot be reached."""

    def __init__(self) -> None:
        self.is_there = True
        self.told: list[tuple[set[int], bool]] = []

    def __call__(self, spans: Mapping[int, int], given_up: bool) -> bool:
        if self.is_there:
            self.told.append((set(spans), given_up))
        return self.is_there


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reaper() -> Reaper:
    return Reaper()


@pytest.fixture
def claims(clock: Clock, reaper: Reaper) -> Claims:
    made = Claims(30, clock)
    made.tell = reaper
    return made


def ended(*span_ids: int) -> list[Encoded]:
    return [
        encode_whole(ReadableSpan("s", context=SpanContext(TRACE, span_id, is_remote=False)))
        for span_id in span_ids
    ]


def test_the_reaper_is_told_of_announced_spans_alone_and_once(
    claims: Claims, reaper: Reaper
) -> None:
    claims.announced({1: TRACE, 2: TRACE})
    spans = ended(1, 3)
    assert claims.settle(spans) == spans
    assert reaper.told == [({1}, False)]
    assert claims.settle(spans) == spans  # a second attempt of the exporter
    assert reaper.told == [({1}, False)]
    assert claims.held() == {2: TRACE}


def test_a_reaper_that_cannot_be_told_holds_nothing_up(claims: Claims, reaper: Reaper) -> None:
    claims.announced({1: TRACE})
    reaper.is_there = False
    spans = ended(1)
    assert claims.settle(spans) == spans
    reaper.is_there = True
    assert claims.settle(spans) == spans  # tried again, and told first
    assert reaper.told == [({1}, False)]


@pytest.mark.parametrize("looks_first", [True, False], ids=["heartbeat", "exporter"])
def test_after_a_suspension_what_was_announced_is_given_up(
    claims: Claims, clock: Clock, looks_first: bool
) -> None:
    """Whichever thread runs first."""
    claims.announced({1: TRACE})
    clock.now += claims.limit_s + 0.1
    if looks_first:
        claims.is_alive()
    claims.announced({1: TRACE, 2: TRACE})
    old, new, unknown = ended(1, 2, 3)
    settled = claims.settle([old, new, unknown])
    if looks_first:
        assert settled == [new, unknown]
        assert claims.lost() == {1: TRACE}
        claims.forget([1])
        assert claims.lost() == {}
        assert claims.settle([old]) == []  # for ever
    else:
        assert settled == [unknown]


def test_a_process_that_looks_often_enough_gives_nothing_up(claims: Claims, clock: Clock) -> None:
    assert claims.limit_s == 20
    claims.announced({1: TRACE})
    for _ in range(10):
        clock.now += 19
        claims.is_alive()
    assert claims.lost() == {}
    assert len(claims.settle(ended(1))) == 1


def test_a_dead_process_s_spans_are_ours_soon_and_the_reaper_s_late(
    claims: Claims, reaper: Reaper
) -> None:
    now = time.time_ns()
    assert claims.takes_over({1: TRACE}, now - 5_000_000_000) is True
    assert reaper.told == [({1}, False)]
    assert claims.takes_over({1: TRACE}, now - 25_000_000_000) is False
    assert claims.takes_over({1: TRACE}, 0) is False
    assert claims.leaves({1: TRACE})
    assert reaper.told[1:] == [({1}, True)]
    reaper.is_there = False
    assert claims.takes_over({1: TRACE}, now) is None
    assert not claims.leaves({1: TRACE})


def test_short_times_leave_half_of_them(clock: Clock) -> None:
    assert Claims(6, clock).limit_s == 3
