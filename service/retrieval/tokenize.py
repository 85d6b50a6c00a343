"""Text to search terms, for English and Chinese alike.

Chinese has no spaces, so a run of Han characters becomes its characters and its overlapping
pairs; pairs carry the meaning, single characters keep recall. Latin words are lower-cased and
stemmed; an identifier gives its parts and its joined form, so that `top_k`, `top-k` and `topK`
meet, as do `KV cache` and `kv-cache`.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from snowballstemmer import stemmer  # type: ignore[import-untyped]  # ships no types

ANALYZER_VERSION = 1
"""Part of an index's content hash: raise it when the terms of a text change."""

_CJK = "々㐀-䶿一-鿿豈-﫿぀-ヿ가-힯\U00020000-\U0003ffff"
_WORD = rf"[^\W_{_CJK}]+"
_TERM = re.compile(rf"(?P<cjk>[{_CJK}]+)|(?P<word>{_WORD}(?:[_.\-'’/]{_WORD})*(?:\+\+|#)?)")
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_LETTERS = re.compile(r"[^\W\d_]")
_JOINER = re.compile(r"[_.\-'’/]")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_POSSESSIVE = re.compile(r"['’](?:s|t|re|ve|ll|d|m)$")

# Words of a question that say nothing about its subject. Short on purpose: BM25's idf already
# discounts what is frequent in the articles, but "how" and "why" are rare there.
_STOP_WORDS = frozenset(
    """a about am an and any are as at be because been being but by can could did do does doing
    don for from get gets give had has have having how i if in into is it its itself just let me
    might my no not of on one or our ours should so some such than that the their them then there
    these they this those to too us very was we were what when where which while who whom why will
    with without would you your yours""".split()  # noqa: SIM905  # a block of words reads better
)
_STOP_CJK = frozenset(
    """的 了 是 在 和 与 吗 呢 吧 啊 么 也 就 都 而 及 或 被 把 对 从 到 给 让 我 你 他 它 们 这 那
    哪 怎么 如何 什么 为什 为何 哪些 哪个 这个 那个 一个 可以 能否 是否 我们 你们 他们 应该
    怎样""".split()  # noqa: SIM905  # as above
)

_stem_english = stemmer("english")


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return str(_stem_english.stemWord(word))


def terms(text: str) -> list[str]:
    """The search terms of `text`, in reading order, with repetitions."""
    return list(_terms(unicodedata.normalize("NFKC", text)))


def _terms(text: str) -> Iterator[str]:
    for match in _TERM.finditer(text):
        if match["cjk"]:
            yield from _cjk_terms(match["cjk"])
        else:
            yield from _word_terms(match["word"])


def _cjk_terms(run: str) -> Iterator[str]:
    for position, character in enumerate(run):
        if character not in _STOP_CJK:
            yield character
        pair = run[position : position + 2]
        if len(pair) == 2 and pair not in _STOP_CJK:  # noqa: PLR2004
            yield pair


def _word_terms(word: str) -> Iterator[str]:
    word = _POSSESSIVE.sub("", word)
    parts = [part for piece in _JOINER.split(word) for part in _HUMP.split(piece)]
    if len(parts) > 1:
        yield "".join(parts).lower()
    for part in parts:
        lowered = part.lower()
        if lowered and lowered not in _STOP_WORDS:
            yield _stem(lowered)


def is_cjk_term(term: str) -> bool:
    """Whether `term` came from a run of Chinese, Japanese or Korean characters."""
    return _CJK_CHARACTER.match(term) is not None


def count_units(text: str) -> int:
    """Length of `text` in words; a Han character counts as one and a half of two to a word."""
    characters = len(_CJK_CHARACTER.findall(text))
    words = len(re.findall(_WORD, text))
    return words + characters * 2 // 3


def language_of(text: str) -> str:
    """`zh` or `en`, by which script carries more of the text."""
    han = len(_CJK_CHARACTER.findall(text))
    letters = len(_LETTERS.findall(text)) - han
    # A Chinese text on computing is full of Latin names: one character weighs three letters.
    return "zh" if han * 3 >= letters and han else "en"
