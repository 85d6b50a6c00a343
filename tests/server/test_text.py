import pytest

from spanloom.server import text


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "0 ns"),
        (873, "873 ns"),
        (12_345, "12.3 µs"),
        (4_560_000, "4.56 ms"),
        (100_000_000, "100 ms"),
        (2_840_000_000, "2.84 s"),
        (59_990_000_000, "60 s"),
        (60_000_000_000, "1 m 00 s"),
        (125_000_000_000, "2 m 05 s"),
        (3_720_000_000_000, "1 h 02 m"),
    ],
)
def test_durations_show_three_digits_that_count(ns: int, expected: str) -> None:
    assert expected == text.duration(ns)


@pytest.mark.parametrize(
    ("usd", "expected"),
    [(None, ""), (0, "$0"), (0.00412, "$0.0041"), (0.0000021, "<$0.0001"), (1234.5, "$1,234.50")],
)
def test_costs_are_short(usd: float | None, expected: str) -> None:
    assert expected == text.cost(usd)


def test_terminal_escapes_and_reordering_marks_are_written_out() -> None:
    assert text.visible("\x1b[31mred \u202eevil\x9b") == r"\x1b[31mred \u202eevil\x9b"


def test_lines_stay_lines_unless_one_is_wanted() -> None:
    assert text.visible("a\n\tb") == "a\n\tb"
    assert text.one_line("a\n\tb") == r"a\n\tb"


def test_chinese_is_left_alone() -> None:
    assert text.one_line("什么是 KV 缓存？") == "什么是 KV 缓存？"


def test_a_time_outside_of_the_calendar_does_not_break_the_page() -> None:
    assert text.iso_time(2**63 - 1 + 10**30) == ""
    assert text.readable_time(10**30) == "unknown time"
    assert text.readable_time(1_700_000_000_000_000_000) == "2023-11-14 22:13:20"


def test_severity_numbers_have_names() -> None:
    """The ranges of the logs data model."""
    assert [text.severity_name(n) for n in (0, 1, 5, 9, 12, 13, 17, 21, 24)] == [
        *("", "TRACE", "DEBUG", "INFO", "INFO", "WARN", "ERROR", "FATAL", "FATAL")
    ]
