"""The page while work goes on: open bars that grow, states, and the end without a reload."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver

from spanloom.model import LogEvent, Span
from tests.builders import MS, T0, span, trace_id
from tests.builders_inflight import announced, heartbeat
from tests.server.running import Client, running
from tests.server.test_page_browser import Page, driver, pytestmark

__all__ = ["driver", "pytestmark"]

HOSTILE = "execute_tool <img src=x onerror=alert(1)></script>\x1b[31m\u202e工具"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path, reap_after_s=600.0) as client:
        yield client


@pytest.fixture
def page(driver: webdriver.Chrome, server: Client) -> Page:
    return Page(driver, server)


def now(event: LogEvent, begun_ns: int) -> LogEvent:
    """The same event of a process that began at this time."""
    attributes = dict(event.attributes)
    if "spanloom.span.start_time_unix_nano" in attributes:
        attributes["spanloom.span.start_time_unix_nano"] = begun_ns
    return replace(event, time_unix_nano=time.time_ns(), attributes=attributes)


def at(one: Span, begun_ns: int) -> Span:
    return replace(
        one,
        start_time_unix_nano=begun_ns,
        end_time_unix_nano=begun_ns + one.end_time_unix_nano - T0,
    )


@contextmanager
def beating(server: Client, begun_ns: int, *numbers: int) -> Iterator[None]:
    """A process that lives and has these spans open."""
    over = threading.Event()

    def beat() -> None:
        for sequence in itertools.count(1):
            server.send(logs=[now(heartbeat(*numbers, sequence=sequence), begun_ns)])
            if over.wait(0.5):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def bar_ends(page: Page) -> Callable[[], float]:
    script = "return document.querySelector('.row.open .length').textContent"

    def seconds() -> float:
        number, unit = str(page.chrome.execute_script(script)).rstrip("+").split()
        return float(number) * {"ms": 0.001, "s": 1}[unit]

    return seconds


def test_a_running_span_grows_and_ends_without_a_reload(page: Page, server: Client) -> None:
    """Striped with an open end; then the final span stands in its place, the selection stays."""
    begun = time.time_ns() - 2_000 * MS
    server.send(
        logs=[now(announced("POST /chat", 1), begun), now(announced(HOSTILE, 2, parent=1), begun)]
    )
    with beating(server, begun, 1, 2):
        page.open(f"/trace/{trace_id(1)}")
        page.until(lambda: len(page.all(".canvas .row.open.running .bar")) == 2)
        assert "in flight: 2 open" in page.text(".trace-head")
        length = bar_ends(page)
        first = length()
        page.until(lambda: length() > first + 1.5)
        page.press("j", "j")
        page.press("\n")
        page.until(lambda: "spanloom.in_flight" in page.text(".details"))
        page.chrome.execute_script("window.notReloaded = true")

        server.send(
            spans=[
                at(span("POST /chat", 1, duration_ms=9_000), begun),
                at(span(HOSTILE, 2, parent=1, duration_ms=8_000, error="slow"), begun),
            ]
        )
        page.until(lambda: page.all(".canvas .row") and not page.all(".canvas .row.open"))

    assert page.chrome.execute_script("return window.notReloaded")
    assert "in flight" not in page.text(".trace-head")
    assert "9 s" in page.text(".trace-head .facts")
    assert (
        page.current() == "execute_tool <img src=x onerror=alert(1)></script>\\x1b[31m\\u202e工具"
    )
    page.until(lambda: page.text(".status-message") == "slow")
    assert "spanloom.in_flight" not in page.text(".details")
    assert not page.all("img")
    assert not page.problems()


def test_silence_shows_as_stalled_and_goodbye_as_lost(page: Page, server: Client) -> None:
    """Each with a word that says it; the list has a badge."""
    begun = time.time_ns()
    server.send(
        logs=[
            now(announced("silent", 1), begun),
            now(announced("left", 2, instance="p2"), begun),
            now(heartbeat(2, instance="p2", last=True), begun),
        ]
    )
    page.open(f"/trace/{trace_id(1)}")
    page.until(lambda: sorted(page.texts(".canvas .badge.open")) == ["lost", "stalled"])

    page.open("/?lookback=all")
    page.until(lambda: page.texts(".traces .badge.open") == ["in flight"])
    assert not page.problems()


def test_ten_thousand_open_spans_are_followed(page: Page, server: Client) -> None:
    """The page stays usable while all of them are open."""
    begun = time.time_ns()
    for first in range(1, 10_001, 1_000):
        numbers = range(first, first + 1_000)
        server.send(logs=[now(announced(f"step {n}", n), begun) for n in numbers])

    page.open(f"/trace/{trace_id(1)}")
    page.until(lambda: page.all(".canvas .row.open"))
    page.press("j", "j", "j")

    assert page.current()
    assert len(page.all(".canvas .row")) < 200
    assert not page.problems()
