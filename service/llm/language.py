"""Words, sentences and language of English and Chinese text.

Just enough linguistics for lexical matching: English by lowercased light stems, Chinese by
character bigrams. Other scripts fall under one of the two (by words, or by bigrams for scripts
written without blanks).
"""

import re
import unicodedata
from collections.abc import Iterator
from importlib.resources import files
from typing import Final, Literal

Language = Literal["en", "zh"]

# Han, kana and Hangul: scripts whose words no blank separates, or whose particles cling.
_CJK: Final = (
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
)
_CJK_CHAR: Final = re.compile(f"[{_CJK}]")
_TOKEN: Final = re.compile(f"[{_CJK}]+|[^\\W_{_CJK}]+")
# PagedAttention is paged attention; the plural of an acronym (GPUs) is one word.
_HUMP: Final = re.compile(r"(?<=[a-z])(?=[A-Z][a-z]{2})")
_LATIN_WORD: Final = re.compile(r"[A-Za-z]{2,}")


def _words_of(file_name: str) -> list[str]:
    return files(__package__).joinpath(file_name).read_text(encoding="utf-8").split()


_STOP_WORDS: Final = frozenset(_words_of("stop_words_en.txt"))
# A run of Han characters is cut at these before it becomes bigrams; longest first.
_CJK_STOP: Final = re.compile(
    "|".join(sorted(_words_of("stop_words_zh.txt"), key=len, reverse=True))
)
# Function characters that are also parts of content words: dropped only where they stand alone.
_CJK_LONE_STOP: Final = frozenset("有会能要使对从到给为于以之其同几个很更最又再请并且但则")
_CJK_LOOSE_END: Final = "有会能要"

_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Dr|Mr|Mrs|Ms|Prof|Fig|No|Eq|Sec|St|approx|resp|al)\.|\b[A-Z]\.)$"
)
_LONGEST_SENTENCE: Final = 500
_CLAUSE_END: Final = re.compile(r"[,;:，；：、]\s*|\s")
_LONGEST_ABBREVIATION: Final = 8
_SENTENCE_END: Final = re.compile(
    r"""(?<=[.!?])["'”’)\]]*(?:\s+(?=["'“‘(\[]?[A-Z0-9\u3400-\u9fff`*])|$)|(?<=[。！？])[”’」』）]*"""
)
_LIST_MARK: Final = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)、])\s+")
_HEADING: Final = re.compile(r"^\s*#{1,6}\s+")
_ANAPHOR: Final = re.compile(
    r"\b(?:it|its|they|them|their|he|she|him|her|this|that|these|those|one|ones|latter|former)\b"
    r"|它|他|她|其中|这个|那个|这些|那些|这种|那种|此|该|前者|后者|上述",
    re.IGNORECASE,
)
# At the start, or as the object of the first few words ("The cache keeps them in memory").
_LEADING_ANAPHOR: Final = re.compile(
    r"^(?:it|its|they|their|this|that|these|those|such|he|she|however|therefore|instead|thus|then)\b"
    r"|^(?:[\w-]+ ){1,5}(?:them|it|this|these|those|the (?:first|second|former|latter))\b"
    r"|^(?:它|他|她|其|这|那|此|该|因此|所以|但是|然而|于是)",
    re.IGNORECASE,
)
_LEADING_CONTINUATION: Final = re.compile(
    r"^\s*(?:(?:and|but|so|also|or|then|ok(?:ay)?)\b[\s,]|what about\b|how about\b"
    r"|那么?|还有|另外|以及|而且|所以)",
    re.IGNORECASE,
)
_DEFINITION: Final = re.compile(
    r"^\s*what(?:'s| is| are) (?:(?:an?|the) )?[a-z][\w-]*(?: [\w-]+){0,2}"
    r"(?:,? and (?:how|why|when)\b.*)?[\s?.!]*$"
    r"|^\s*(?:(?:define|explain|describe)\b|什么是|何谓|请?(?:解释|介绍)(?:一下)?)"
    r"|^[^，。；]{1,16}是什么(?:意思)?[\s?？。]*$|\bmean[\s?]*$",
    re.IGNORECASE,
)
_QUANTITY: Final = re.compile(
    r"\bhow (?:many|much|large|big|long|fast|slow|far|often|high|old|tall|wide|heavy)\b"
    r"|\bwhat (?:size|number|percentage|rate|amount)\b|多少|多大|多长|多快|多久|多高|几个|几倍",
    re.IGNORECASE,
)

_MIN_STEM: Final = 3


def normalise(text: str) -> str:
    """Text in compatibility form, so that full-width letters and digits match plain ones."""
    return unicodedata.normalize("NFKC", text)


def detect(text: str) -> Language:
    """The language of `text`: Chinese when it has at least as many Han characters as words."""
    han = len(_CJK_CHAR.findall(text))
    return "zh" if han and han >= len(_LATIN_WORD.findall(text)) else "en"


def terms(text: str) -> list[str]:
    """Content terms in order, repeats kept: stems of words, bigrams of Chinese runs."""
    return [term for term, _surface in _terms_with_surface(text)]


def surface_terms(text: str) -> dict[str, str]:
    """Each content term of `text` with how it is first written there, in order."""
    found: dict[str, str] = {}
    for term, surface in _terms_with_surface(text):
        found.setdefault(term, surface)
    return found


def content_words(text: str) -> list[str]:
    """Words as written, function words left out: what one would type into a search box."""
    words: list[str] = []
    for match in _TOKEN.finditer(normalise(text)):
        token = match.group()
        if _CJK_CHAR.match(token):
            runs = (run.rstrip(_CJK_LOOSE_END) for run in _CJK_STOP.split(token))
            words += [run for run in runs if run and run not in _CJK_LONE_STOP]
        elif token.lower() not in _STOP_WORDS:
            words.append(token)
    return list(dict.fromkeys(words))


def sentences(text: str) -> list[str]:
    """Sentences of running text or Markdown: list marks gone, headings and fences left out."""
    found: list[str] = []
    fenced = False
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if fenced:
            continue
        if not line.strip() or _HEADING.match(line) or _LIST_MARK.match(line):
            found += _split_sentences(_joined(paragraph))
            paragraph = []
        if line.strip() and not _HEADING.match(line):
            paragraph.append(_LIST_MARK.sub("", line).strip())
    return found + _split_sentences(_joined(paragraph))


def sections(text: str) -> list[tuple[str, str]]:
    """Markdown text cut at its headings: each heading (empty before the first), what follows."""
    found: list[tuple[str, str]] = []
    heading, lines = "", list[str]()
    for line in text.splitlines():
        if _HEADING.match(line):
            found.append((heading, "\n".join(lines)))
            heading, lines = _HEADING.sub("", line).strip(), []
        else:
            lines.append(line)
    return [*found, (heading, "\n".join(lines))]


def has_anaphor(text: str) -> bool:
    """Does a pronoun in `text` point at something said before?"""
    return _ANAPHOR.search(text) is not None


def opens_with_anaphor(sentence: str) -> bool:
    """Does the sentence lean on the one before it?"""
    return _LEADING_ANAPHOR.match(sentence) is not None


def continues(text: str) -> bool:
    """Does `text` begin as a continuation ("and …", "what about …", "那 …")?"""
    return _LEADING_CONTINUATION.match(text) is not None


def asks_for_definition(question: str) -> bool:
    """Does the question want to know what something is?"""
    return _DEFINITION.search(question) is not None


def asks_for_quantity(question: str) -> bool:
    """Does the question want a number?"""
    return _QUANTITY.search(question) is not None


def _terms_with_surface(text: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(normalise(text)):
        token = match.group()
        if not _CJK_CHAR.match(token):
            for part in _HUMP.split(token):
                lowered = part.lower()
                if lowered not in _STOP_WORDS:
                    yield _stem(lowered), token
            continue
        for run in _CJK_STOP.split(token):
            if len(run) == 1 and run not in _CJK_LONE_STOP:
                yield run, run
            for index in range(len(run) - 1):
                yield run[index : index + 2], run


def _stem(word: str) -> str:
    """A light stem: plural, -ing, -ed, -ly and a final e go; only equality of stems matters."""
    if not word.isascii() or not word.isalpha() or len(word) <= _MIN_STEM:
        return word
    stem = word
    if stem.endswith("ies") and len(stem) > _MIN_STEM + 1:
        stem = stem[:-3] + "y"
    elif stem.endswith(("sses", "xes", "ches", "shes")):
        stem = stem[:-2]
    elif stem.endswith("s") and not stem.endswith(("ss", "us", "is")):
        stem = stem[:-1]
    for suffix in ("ing", "edly", "ed", "ly"):
        rest = stem.removesuffix(suffix)
        if rest != stem and len(rest) >= _MIN_STEM and re.search("[aeiouy]", rest):
            stem = rest
            if stem[-1] == stem[-2] and stem[-1] not in "lsz":
                stem = stem[:-1]
            break
    return stem.removesuffix("e") if len(stem) > _MIN_STEM else stem


def _joined(lines: list[str]) -> str:
    """One paragraph from its wrapped lines; Chinese lines join without a blank."""
    text = ""
    for line in lines:
        joins = not text or (_CJK_CHAR.match(text[-1]) and _CJK_CHAR.match(line))
        glue = "" if joins else " "
        text += glue + line
    return text.strip()


def _split_sentences(paragraph: str) -> list[str]:
    found: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        candidate = paragraph[start : end.end()]
        if _ABBREVIATION.search(candidate.rstrip()[-_LONGEST_ABBREVIATION:]):
            continue
        if candidate.strip():
            found.append(candidate.strip())
        start = end.end()
    if rest := paragraph[start:].strip():
        found.append(rest)
    return [piece for sentence in found for piece in _cut(sentence)]


def _cut(sentence: str) -> list[str]:
    """Text without sentence ends, such as a transcript, in pieces that can be quoted."""
    if len(sentence) <= _LONGEST_SENTENCE:
        return [sentence]
    pieces: list[str] = []
    while len(sentence) > _LONGEST_SENTENCE:
        breaks = [match.end() for match in _CLAUSE_END.finditer(sentence, 0, _LONGEST_SENTENCE)]
        end = breaks[-1] if breaks else _LONGEST_SENTENCE
        pieces.append(sentence[:end].strip())
        sentence = sentence[end:]
    return [piece for piece in (*pieces, sentence.strip()) if piece]
