"""How values read on the page."""

import re
from datetime import UTC, datetime
from typing import Final

_NS_PER_S: Final = 1_000_000_000

# What would act instead of being read: control characters (terminal escapes among them), and
# the invisible marks that reorder text and can make a name look like another one.
_HARMFUL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_WHITESPACE: Final = re.compile(r"[\t\n]")


def visible(text: str) -> str:
    r"""The text with control and reordering characters written out: \x1b, \u202e."""
    return _HARMFUL.sub(_written, text)


def one_line(text: str) -> str:
    """The same for places that hold a single line: tabs and line ends are written out too."""
    return _WHITESPACE.sub(_written, visible(text))


def _written(match: re.Match[str]) -> str:
    # As programmers write them; the pictures Unicode has (U+241B) are missing in many fonts.
    return match[0].encode("unicode_escape").decode("ascii")


def duration(ns: int) -> str:
    """`873 ns`, `12.3 µs`, `4.56 ms`, `1.23 s`, `2 m 05 s`, `1 h 02 m`."""
    for divisor, unit in ((1, "ns"), (1_000, "µs"), (1_000_000, "ms")):
        if ns < divisor * 1_000:
            return f"{_three_digits(ns / divisor)} {unit}"
    seconds = ns / _NS_PER_S
    if seconds < 60:  # noqa: PLR2004
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m"


def _three_digits(value: float) -> str:
    if value >= 100:  # noqa: PLR2004
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004
    return text.rstrip("0").rstrip(".")


def count(number: int) -> str:
    """`12,345`."""
    return f"{number:,}"


def cost(usd: float | None) -> str:
    """`$0.0123`, or nothing where no price is known."""
    if usd is None:
        return ""
    if usd == 0:
        return "$0"
    if abs(usd) >= 1:
        return f"${usd:,.2f}"
    return "<$0.0001" if 0 < usd < 1e-4 else f"${usd:.4f}"  # noqa: PLR2004


def iso_time(ns: int) -> str:
    """ISO 8601 in UTC with milliseconds, for `<time datetime>`."""
    try:
        moment = datetime.fromtimestamp(ns / _NS_PER_S, tz=UTC)
    except (OverflowError, ValueError, OSError):  # a clock far outside of the calendar
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def readable_time(ns: int) -> str:
    """`2026-01-31 23:59:58` in UTC; the page's script turns it into local time."""
    return iso_time(ns)[:19].replace("T", " ") or "unknown time"


def severity_name(number: int) -> str:
    """The short name of an OTLP severity number (1 to 24); empty for 0, unspecified."""
    names = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
    return names[min((number - 1) // 4, 5)] if number > 0 else ""
