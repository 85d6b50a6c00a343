"""One JSON object a line on stdout: rendering that cannot fail, and writing that cannot block exit.

Lines are written to the file descriptor itself, not through Python's buffer: a thread that dies
inside the buffer's lock at exit would abort the interpreter, and a closed pipe would leave text in
it that complains at exit.
"""

import json
import math
import os
import sys
import threading
from typing import Any, Final

from spanloom.telemetry.redaction import STACK_LIMIT, cap

_MAX_DEPTH: Final = 6
_MAX_ITEMS: Final = 256
_INT64: Final = 1 << 63

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def render(event: dict[str, Any]) -> str:
    """Encode as one JSON line, Chinese readable, whatever the values are."""
    try:
        return _encode.encode(event)
    except (TypeError, ValueError, RecursionError):
        return _encode.encode(plain(event))


def plain(value: Any, depth: int = 0) -> Any:
    """Reduce a value to what JSON and OTLP can carry; everything else becomes text."""
    # Nearly all values, at a quarter of what the cases below take.
    kind = value.__class__
    if kind is str and len(value) <= STACK_LIMIT and value.isascii():
        return value
    if kind is bool or value is None or (kind is int and -_INT64 <= value < _INT64):
        return value
    match value:
        case None | bool():
            result: Any = value
        case str():
            result = _text(value)
        case int():
            result = int(value) if -_INT64 <= value < _INT64 else str(value)
        case float():
            result = float(value) if math.isfinite(value) else str(value)
        case dict() if depth < _MAX_DEPTH:
            items = list(value.items())[:_MAX_ITEMS]
            result = {_text(str(key)): plain(item, depth + 1) for key, item in items}
        case list() | tuple() | set() | frozenset() if depth < _MAX_DEPTH:
            result = [plain(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
        case _:
            try:
                result = _text(str(value))
            except Exception:  # noqa: BLE001 - a broken __str__ must not cost the line
                result = f"<{type(value).__qualname__}>"
    return result


def _text(text: str) -> str:
    """Cap, and write lone surrogates as escapes: UTF-8 and protobuf refuse them."""
    return cap(str(text), STACK_LIMIT).encode("utf-8", "backslashreplace").decode()


class StdoutWriter:
    """Writes whole lines to stdout; a closed or broken stdout loses lines and nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Write one line; never raises."""
        stream, process_stdout = sys.stdout, sys.__stdout__
        if stream is None:
            return
        try:
            if process_stdout is not None and stream is process_stdout:
                self._write_all(
                    process_stdout.fileno(), f"{line}\n".encode("utf-8", "backslashreplace")
                )
            else:  # replaced, by a test or a notebook
                stream.write(f"{line}\n")
        except (OSError, ValueError):  # broken pipe, closed file, full disk
            return

    def _write_all(self, descriptor: int, data: bytes) -> None:
        with self._lock:
            while data:
                data = data[os.write(descriptor, data) :]


class NamedLogger:
    """What a structlog logger wraps: it has a name, and writes finished lines."""

    def __init__(self, name: str, writer: StdoutWriter) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = writer.write
