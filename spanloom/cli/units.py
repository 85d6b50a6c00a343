"""Sizes and local times, as people write and read them.

Durations and money are formatted by `spanloom.server.text` and parsed by
`spanloom.server.query_params`: a number reads the same on the page and in the terminal.
"""

import re
from datetime import datetime
from decimal import Decimal, InvalidOperation

_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*")

_MOST_DOLLARS = 10**12


def parse_bytes(text: str) -> int:
    """Bytes of `10GB`, `512MiB` or `500kB`; ValueError says what is wrong."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _BYTES:
        raise ValueError(f"{text!r} is not a size: write 500MB, 10GB or 512MiB")
    return round(float(match[1]) * _BYTES[match[2].upper()])


def parse_dollars(text: str) -> Decimal:
    """An amount like `0.0012` or `50`; ValueError says what is wrong."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= _MOST_DOLLARS:
        raise ValueError(f"{text!r} is not an amount in dollars: write 0.0012 or 50")
    return amount


def local_time(time_unix_nano: int, *, date: bool = True) -> str:
    """`2026-11-23 17:02:11.250` in the local time zone; the day may be left out."""
    try:
        moment = datetime.fromtimestamp(time_unix_nano / 1e9).astimezone()
    except (OverflowError, OSError, ValueError):  # a producer may send any 64-bit number
        return "unknown time"
    text = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"
    return f"{moment:%Y-%m-%d} {text}" if date else text
