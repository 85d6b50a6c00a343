import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from spanloom import semconv
from spanloom.cli.render import BAR_CELLS, Details, trace_lines, value_text
from spanloom.cli.tables import Column, print_table
from spanloom.model import (
    LogEvent,
    Resource,
    Span,
    SpanEvent,
    SpanLink,
    Status,
    StatusCode,
    Trace,
)

MS = 1_000_000
START = 1_790_000_000_000_000_000
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HOSTILE = "\x1b[31m[bold]x[/bold]\x1b]0;t\x07\u202ey\nz:smile:"


def span(
    number: int,
    parent: int | None,
    name: str,
    at_ms: int,
    ms: int,
    *,
    service: str = "api",
    **fields: Any,
) -> Span:
    return Span(
        trace_id=TRACE,
        span_id=f"{number:016x}",
        parent_span_id="" if parent is None else f"{parent:016x}",
        name=name,
        start_time_unix_nano=START + at_ms * MS,
        end_time_unix_nano=START + (at_ms + ms) * MS,
        resource=Resource({semconv.SERVICE_NAME: service}),
        **fields,
    )


def chat(
    number: int, parent: int, at_ms: int, ms: int, *, tokens: tuple[int, int], cost: float
) -> Span:
    attributes = {
        semconv.GEN_AI_OPERATION_NAME: "chat",
        semconv.GEN_AI_USAGE_INPUT_TOKENS: tokens[0],
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: tokens[1],
        semconv.SPANLOOM_COST_USD: cost,
    }
    return span(number, parent, "chat offline-small", at_ms, ms, attributes=attributes)


@pytest.fixture
def trace() -> Trace:
    return Trace(
        TRACE,
        (
            span(1, None, "POST /chat", 0, 1000),
            span(2, 1, "invoke_node 检索", 0, 400),
            span(3, 2, "POST /search", 100, 200, service="retrieval"),
            span(4, 1, "invoke_node generate", 400, 600),
            chat(5, 4, 400, 300, tokens=(1200, 80), cost=0.0012),
            chat(6, 4, 700, 300, tokens=(34, 20), cost=0.0001),
        ),
    )


def plain(lines: list[Text]) -> list[str]:
    return [line.plain for line in lines]


def test_a_trace_is_a_tree_with_durations_tokens_and_cost(trace: Trace) -> None:
    """Parents carry the sum of the requests below them; columns stand in line."""
    head, blank, *lines = plain(trace_lines(trace, Details(), None))

    assert head.startswith(f"trace {TRACE}  ")
    assert head.endswith("  1 s  6 spans  1,234 tokens in, 100 out  $0.0013")
    assert blank == ""
    assert [re.split(r" +[\d.]+ m?s  ", line)[0] for line in lines] == [
        "POST /chat  api",
        "├─ invoke_node 检索  api",
        "│  └─ POST /search  retrieval",
        "└─ invoke_node generate  api",
        "   ├─ chat offline-small  api",
        "   └─ chat offline-small  api",
    ]
    assert "1,234→100" in lines[0]
    assert "1,234→100" in lines[3]
    assert "1,200→80" in lines[4]
    assert "34→20" in lines[5]
    assert "→" not in lines[1]
    bars = {cell_len(line[: line.index(" ms")]) for line in lines[1:]}
    assert len(bars) == 1, "durations end in one column, Chinese names or not"


def test_bars_show_where_in_the_trace_a_span_lies(trace: Trace) -> None:
    """Offset and length are to scale."""
    lines = plain(trace_lines(trace, Details(), None))[2:]

    assert "█" * BAR_CELLS in lines[0]
    assert " 400 ms  " + "█" * 8 in lines[1]
    assert "█" * 9 not in lines[1]
    assert " 200 ms  " + "  " + "█" * 4 in lines[2]
    assert "█" * 5 not in lines[2]
    assert " 600 ms  " + " " * 8 + "█" * 12 in lines[3]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_lines_fit_the_terminal_even_in_chinese(width: int) -> None:
    """Names give way, by cells, and the numbers stay."""
    name = "工具调用" * 40
    wide = Trace(TRACE, (span(1, None, name, 0, 10), span(2, 1, name, 1, 5)))
    lines = trace_lines(wide, Details(), width)[2:]

    assert all(line.cell_len <= max(width, 66) for line in lines)
    assert all("ms" in line.plain for line in lines)
    assert ("…" in lines[0].plain) == (width < 400)


def test_endings_are_said() -> None:
    """Errors, their type and message; timeouts, hand-offs and missing ends."""
    error = Status(StatusCode.ERROR, "deadline of 30 s\nexceeded")
    spans = (
        span(1, None, "a", 0, 9, status=error, attributes={semconv.ERROR_TYPE: "timeout"}),
        span(2, 1, "b", 0, 9, attributes={semconv.SPANLOOM_OUTCOME: "handoff"}),
        span(3, 1, "c", 0, 9, attributes={semconv.SPANLOOM_OUTCOME: "ok"}),
        span(
            4,
            1,
            "d",
            0,
            9,
            status=Status(StatusCode.ERROR),
            attributes={semconv.SPANLOOM_INCOMPLETE: True},
        ),
    )
    head, _, *lines = plain(trace_lines(Trace(TRACE, spans), Details(), None))

    assert "2 errors" in head
    assert lines[0].endswith("ERROR timeout")
    assert lines[1] == "│ deadline of 30 s exceeded"
    assert lines[2].endswith("handoff")
    assert lines[3].rstrip("█ ").endswith("ms")
    assert lines[4].endswith("ERROR incomplete")


def test_log_lines_stand_under_their_spans(trace: Trace) -> None:
    """Lines of no stored span are shown at the end, in order, not lost."""

    def log(span_number: int, ms: int, body: str, severity: int = 9) -> LogEvent:
        return LogEvent(
            START + ms * MS,
            severity_number=severity,
            body=body,
            attributes={"query_len": 12},
            trace_id=TRACE,
            span_id=f"{span_number:016x}",
        )

    logs = [log(3, 150, "检索完成"), log(99, 9, "late", 17), log(98, 5, "early", 13)]
    lines = plain(trace_lines(trace, Details(logs), None))

    under = lines[lines.index(next(line for line in lines if "POST /search" in line)) + 1]
    assert under.startswith("│    ")
    assert under.endswith("INFO  检索完成 query_len=12")
    assert lines[-3] == "Log lines of the trace outside these spans:"
    assert "WARN  early" in lines[-2]
    assert "ERROR late" in lines[-1]


def test_attributes_events_and_links_are_shown_when_asked_for() -> None:
    """Every kind of value has a form, long ones an end."""
    one = span(
        1,
        None,
        "a",
        0,
        10,
        attributes={
            "text": "值",
            "list": (1, "b", (None,)),
            "map": {"k": 1.5},
            "bytes": b"\x00\xff",
            "nan": float("nan"),
            "long": "x" * 5000,
        },
        events=(SpanEvent(START + 2 * MS, "exception", {"exception.type": "ValueError"}),),
        links=(SpanLink("a" * 32, "b" * 16, attributes={"spanloom.link.kind": "resumed_from"}),),
    )
    lines = plain(trace_lines(Trace(TRACE, (one,)), Details(attributes=True), None))[3:]

    assert lines[0] == '  bytes = "AP8="'
    assert lines[1] == '  list = [1, "b", [null]]'
    assert lines[2].startswith("  long = " + "x" * 2000 + "… (5,000 characters")
    assert lines[3:] == [
        '  map = {"k": 1.5}',
        '  nan = "nan"',
        "  text = 值",
        "  event exception  at 2 ms",
        "    exception.type = ValueError",
        f"  link  trace {'a' * 32} span {'b' * 16}",
        "    spanloom.link.kind = resumed_from",
    ]


def hostile_trace() -> tuple[Trace, list[LogEvent]]:
    attributes = {HOSTILE: HOSTILE, semconv.ERROR_TYPE: HOSTILE, "list": (HOSTILE,)}
    one = span(
        1,
        None,
        HOSTILE,
        0,
        10,
        service=HOSTILE,
        attributes=attributes,
        status=Status(StatusCode.ERROR, HOSTILE),
        events=(SpanEvent(START, HOSTILE, {HOSTILE: HOSTILE}),),
        links=(SpanLink(HOSTILE, HOSTILE, attributes={HOSTILE: HOSTILE}),),
    )
    log = LogEvent(
        START,
        severity_text=HOSTILE,
        body={HOSTILE: HOSTILE},
        event_name=HOSTILE,
        attributes={HOSTILE: HOSTILE},
        span_id=one.span_id,
    )
    return Trace(TRACE, (one,)), [log]


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_hostile_reaches_the_terminal(terminal: bool) -> None:
    """From no field of a span or log: no control character, no bidi override, no markup."""
    trace, logs = hostile_trace()
    target = io.StringIO()
    console = Console(
        file=target,
        force_terminal=terminal,
        color_system=None,
        markup=False,
        highlight=False,
        emoji=False,
        width=100,
    )
    for line in trace_lines(trace, Details(logs, attributes=True), None):
        console.print(line, soft_wrap=True)
    shown = target.getvalue()

    assert not set(shown) & set("\x1b\x07\u202e\x9b")
    assert "[bold]x[/bold]y z:smile:" in shown, "shown as it was written"


def test_a_chain_of_thousands_is_shown() -> None:
    """Broken producers send them; indentation stops before the names leave the screen."""
    spans = tuple(
        span(number, number - 1 or None, f"step {number}", number, 1) for number in range(1, 5001)
    )
    lines = plain(trace_lines(Trace(TRACE, spans), Details(), 120))

    assert len(lines) == 5002
    assert "step 5000" in lines[-1]


def test_times_outside_of_the_calendar_do_not_break_the_tree() -> None:
    """A producer may send any 64-bit number."""
    odd = Span(TRACE, "1" * 16, "odd", 2**63, 2**64 - 1)
    instant = Span(TRACE, "2" * 16, "instant", 0, 0)

    assert "odd" in "".join(plain(trace_lines(Trace(TRACE, (odd,)), Details(), None)))
    assert "instant" in "".join(plain(trace_lines(Trace(TRACE, (instant,)), Details(), 80)))


def test_values_are_one_safe_line() -> None:
    """Text stands as it is, everything else as JSON."""
    assert value_text("a\nb") == "a b"
    assert value_text(True) == "true"
    assert value_text(None) == "null"
    assert value_text(("\x1b[1m",)) == '["\\u001b[1m"]'


def printed(width: int, terminal: bool, fill: Callable[[Console], None]) -> list[str]:
    target = io.StringIO()
    fill(Console(file=target, width=width, force_terminal=terminal, color_system=None))
    return target.getvalue().splitlines()


def test_tables_line_up_by_cells_and_shrink_on_terminals_only() -> None:
    """A pipe gets whole values in all columns; a terminal one line a row, no empty column."""
    columns = (Column("NAME", shrinks=True), Column("EMPTY"), Column("N", "right"))
    rows = [[Text("中文" * 20), Text(), Text("1,000")], [Text("ascii"), Text(), Text("2")]]

    piped = printed(40, False, lambda console: print_table(console, columns, rows))
    assert piped[1] == "中文" * 20 + "         1,000"
    assert len({cell_len(line) for line in piped}) == 1
    fitted = printed(40, True, lambda console: print_table(console, columns, rows))
    assert fitted[1].endswith("…  1,000")
    assert {cell_len(line) for line in fitted} == {40}
