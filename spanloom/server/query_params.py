"""Query parameters of the HTTP APIs, from text to `TraceQuery`.

Every function raises QueryError with a sentence that names the parameter.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

import orjson

from spanloom.errors import QueryError

MAX_LIMIT: Final = 10_000
"""Traces one search may return; a larger answer would not be read by anybody."""

_UNITS_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,  # U+03BC, Greek mu: Go accepts both
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    # not Go's, but what lookback menus offer
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)")
_HEX_ID: Final = re.compile(r"[0-9a-fA-F]{1,32}")
_LOGFMT_PAIR: Final = re.compile(r'([^\s="]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s"]\S*)?)(?:\s+|$)')
_MAX_INT64: Final = 2**63 - 1


def duration_ns(text: str, parameter: str) -> int:
    """Nanoseconds of a Go duration such as `1.5s`, `100ms` or `1h30m`; `d` and `w` work too."""
    text = text.strip()
    if text == "0":
        return 0
    position = 0
    total = 0.0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            break
        total += float(part[1]) * _UNITS_NS[part[2]]
        position = part.end()
    if not text or position != len(text) or total > _MAX_INT64:
        raise QueryError(
            f"{parameter} is not a duration: {text!r}; write a number and a unit, "
            "such as 1.5s, 100ms or 1h30m"
        )
    return round(total)


def integer(text: str, parameter: str, *, minimum: int = 0, maximum: int = _MAX_INT64) -> int:
    """A whole number within bounds, both inclusive."""
    try:
        value = int(text)
    except ValueError:
        raise QueryError(f"{parameter} must be a whole number, not {text!r}") from None
    if not minimum <= value <= maximum:
        raise QueryError(f"{parameter} must lie between {minimum} and {maximum}, not {value}")
    return value


def boolean(text: str, parameter: str) -> bool:
    """`true`, `1`, `on` or `yes` (a checked box), or their opposites."""
    match text.strip().lower():
        case "true" | "1" | "on" | "yes" | "t":
            return True
        case "false" | "0" | "off" | "no" | "f" | "":
            return False
    raise QueryError(f"{parameter} must be true or false, not {text!r}")


def trace_id(text: str) -> str:
    """32 lowercase hex characters; shorter ids are padded, as Jaeger does for 64-bit ids."""
    text = text.strip()
    if not _HEX_ID.fullmatch(text):
        raise QueryError(f"not a trace id: {text[:80]!r}; it has 1 to 32 hexadecimal characters")
    return text.lower().rjust(32, "0")


def tags_from_pairs(pairs: Iterable[str], parameter: str = "tag") -> dict[str, str]:
    """Tags from repeated `key:value`; the value may hold further colons."""
    tags: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition(":")
        if not separator or not key:
            raise QueryError(f"{parameter} must be written key:value, not {pair!r}")
        tags[key] = value
    return tags


def tags_from_json(text: str, parameter: str = "tags") -> dict[str, str]:
    """Tags from a JSON object; numbers and booleans count as their text."""
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise QueryError(f"{parameter} must be a JSON object of strings: {error}") from None
    if not isinstance(parsed, Mapping):
        raise QueryError(f'{parameter} must be a JSON object such as {{"error":"true"}}')
    tags: dict[str, str] = {}
    for key, value in parsed.items():
        if isinstance(value, str):
            tags[key] = value
        elif isinstance(value, bool | int | float):
            tags[key] = orjson.dumps(value).decode()
        else:
            raise QueryError(f"{parameter}: the value of {key!r} must be a string")
    return tags


def tags_from_logfmt(text: str, parameter: str = "tags") -> dict[str, str]:
    """Tags from `key=value other="two words"`, as people type them."""
    tags: dict[str, str] = {}
    position = 0
    text = text.strip()
    while position < len(text):
        pair = _LOGFMT_PAIR.match(text, position)
        if pair is None:
            raise QueryError(
                f'{parameter}: cannot read {text[position:]!r}; write key=value, or key="two words"'
            )
        quoted, plain = pair[2], pair[3]
        tags[pair[1]] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain or ""
        position = pair.end()
    return tags


def check_range(start_ns: int | None, end_ns: int | None) -> None:
    """Refuse a time range that ends before it starts."""
    if start_ns is not None and end_ns is not None and start_ns > end_ns:
        raise QueryError("start must not be after end")


def check_durations(min_ns: int | None, max_ns: int | None) -> None:
    """Refuse a maximum below the minimum."""
    if min_ns is not None and max_ns is not None and max_ns < min_ns:
        raise QueryError("maxDuration must not be smaller than minDuration")
