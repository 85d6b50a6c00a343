"""Text to search terms, for English and Chinese alike.

Chinese has no spaces, so a run of Han characters becomes its characters and its overlapping
pairs; pairs carry the meaning, single characters keep recall. Latin words are lower-cased and
stemmed; an identifier gives its parts and its joined form, so that `top_k`, `top-k` and `topK`
meet, as do `KV cache` and `kv-cache`.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import zip_longest

from snowballstemmer import stemmer  # type: ignore[import-untyped]  # ships no types

ANALYZER_VERSION = 3
"""Part of an index's content hash: raise it when the terms of a text change."""

_CJK = "々㐀-䶿一-鿿豈-﫿぀-ヿ가-힯\U00020000-\U0003ffff"
_WORD = rf"[^\W_{_CJK}]+"
_TERM = re.compile(rf"(?P<cjk>[{_CJK}]+)|(?P<word>{_WORD}(?:[_.\-'’/]{_WORD})*(?:\+\+|#)?)")
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_LETTERS = re.compile(r"[^\W\d_]")
_JOINER = re.compile(r"[_.\-'’/]")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PLURAL_ACRONYM = re.compile(r"(?<=[A-Z]{2})s\b")  # LLMs, GPUs; no hump before their s
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
# The same for Chinese. Phrases are taken out before pairs are made, or their edges would make
# pairs of their own ("什么区别" gives "么区").
_STOP_PHRASES = re.compile(
    "为什么|是什么|有什么|什么|怎么办|怎么|怎样|如何|哪些|哪个|哪里|有没有|是不是|能不能|是否|能否|可以|"
    "应该|应当|我们|你们|他们|这个|那个|这些|那些|一个|一下|多少|请问"
)
_STOP_CHARACTERS = frozenset("的了是在和与吗呢吧啊么也就都而及或被把对从到给让我你他它们这那哪有")

_stem_english = stemmer("english")


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return str(_stem_english.stemWord(word))


def terms(text: str) -> list[str]:
    """The search terms of `text`, in reading order, with repetitions."""
    # Interned: an index holds each term thousands of times.
    return list(map(sys.intern, _terms(unicodedata.normalize("NFKC", text))))


def _terms(text: str) -> Iterator[str]:
    for match in _TERM.finditer(text):
        if match["cjk"]:
            for run in _STOP_PHRASES.split(match["cjk"]):
                yield from _cjk_terms(run)
        else:
            yield from _word_terms(match["word"])


def _cjk_terms(run: str) -> Iterator[str]:
    for character, following in zip_longest(run, run[1:], fillvalue=""):
        if character not in _STOP_CHARACTERS:
            yield character
        pair = character + following
        if following and not _STOP_CHARACTERS.issuperset(pair):
            yield pair


def _word_terms(word: str) -> Iterator[str]:
    word = _PLURAL_ACRONYM.sub("", _POSSESSIVE.sub("", word))
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


def is_character(term: str) -> bool:
    """Whether `term` is a single such character."""
    return len(term) == 1 and is_cjk_term(term)


def count_units(text: str) -> int:
    """Length of `text` in words; a Han character counts as one and a half of two to a word."""
    characters = len(_CJK_CHARACTER.findall(text))
    words = len(re.findall(_WORD, text))
    return words + characters * 2 // 3


def language_of(text: str) -> str:
    """`zh` or `en`, by which script carries more of the text."""
    han = len(_CJK_CHARACTER.findall(text))
    letters = len(_LETTERS.findall(text)) - han
    # A Chinese text on computing is full of Latin names: one character weighs four letters.
    return "zh" if han * 4 >= letters and han else "en"
