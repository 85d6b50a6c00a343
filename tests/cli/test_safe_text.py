import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloom.cli.safe_text import clean, to_json

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("plain text, 中文, café, ½", "plain text, 中文, café, ½"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x9b31mred in C1", "red in C1"),
        ("\x1b]0;new title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9d0;title\x9ctext", "text"),
        ("\x1bP1;2|payload\x1b\\text", "text"),
        ("\x1bcreset", "reset"),
        ("bell\x07 back\x08space\x7f null\x00", "bell backspace null"),
        ("two\nlines\r\nand\ttab", "two lines  and tab"),
        (f"user{BIDI}gnp.exe", "usergnp.exe"),
        ("zero\u200bwidth\ufeff\u00ad", "zerowidth"),
        ("\U000e0041tag", "tag"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("family 👨\u200d👩\u200d👧 \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),
        ("[bold red]markup[/] :smile:", "[bold red]markup[/] :smile:"),
    ],
)
def test_what_a_terminal_would_act_on_is_taken_out(hostile: str, shown: str | None) -> None:
    """Escape sequences go whole; letters of every script stay."""
    assert clean(hostile) == (hostile if shown is None else shown)


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=50))
def test_nothing_dangerous_survives_whatever_comes(text: str) -> None:
    """For any text: one line, no control or format character but joiners, encodable, stable."""
    cleaned = clean(text)

    assert all(
        unicodedata.category(c) not in {"Cc", "Cs", "Zl", "Zp"}
        and (unicodedata.category(c) != "Cf" or c in "\u200c\u200d")
        for c in cleaned
    )
    cleaned.encode()
    assert clean(cleaned) == cleaned


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50))
def test_json_keeps_the_text_and_still_shows_safely(text: str) -> None:
    """What `clean` would remove is escaped, so no value is changed."""
    shown = to_json({text: [text]})

    assert json.loads(shown) == {text: [text]}
    assert not set(shown) & set(BIDI + "\x1b\x9b\x7f\x00")
