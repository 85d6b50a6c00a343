"""Cleaning of text that others wrote, before a terminal sees it.

Names and values in telemetry come from anywhere: they may carry escape sequences that recolour,
retitle or overwrite the terminal, and bidi overrides that make text read as something else.
"""

import json
import re
import unicodedata
from typing import Any

# A whole sequence goes at once, or its harmless-looking tail ("[31m") would stay behind.
_ESCAPE_SEQUENCE = re.compile(
    r"""
    (?:\x1b\[|\x9b) [0-?]* [\ -/]* [@-~]?                         # CSI: colours, cursor
    | (?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]) [^\x07\x1b\x9c]*       # OSC, DCS, SOS, PM, APC …
      (?:\x07|\x1b\\|\x9c)?                                       # … up to their terminator
    | \x1b [\ -/]* [0-~]?                                         # the short ones
    """,
    re.VERBOSE,
)
_PRINTABLE_ASCII = re.compile(r"[\x20-\x7e]*")
_JOINERS = "\u200c\u200d"  # emoji, Persian and Indic scripts are written with them
_UNSAFE_IN_JSON = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str) -> str:
    """One safe line: no escape sequence, control, bidi override or invisible format character.

    Line breaks and tabs become single spaces, lone surrogates U+FFFD.
    """
    if _PRINTABLE_ASCII.fullmatch(text):
        return text
    text = _ESCAPE_SEQUENCE.sub("", text)
    return "".join(map(_clean_character, text))


def clean_lines(text: str) -> str:
    """The same for text of several lines, which stay several."""
    return "\n".join(map(clean, text.split("\n")))


def _clean_character(character: str) -> str:
    if character in "\t\n\v\f\r\x85\u2028\u2029":
        return " "
    category = unicodedata.category(character)
    if category == "Cs":
        return "\ufffd"
    if category == "Cc" or (category == "Cf" and character not in _JOINERS):
        return ""
    return character


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that a terminal shows as it is: what `clean` would remove is escaped instead."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
