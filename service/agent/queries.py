"""Which searches a question becomes: the model's proposals, completed without a model."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

MAX_QUERY_CHARS: Final = 400

_WORD: Final = re.compile(r"[\w'+./-]*\w", re.UNICODE)
_HAN: Final = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_STOP_WORDS: Final = frozenset(
    _WORD.findall(
        """
        a about an and any are as at be by can could did do does explain for from give had has have
        how i in into is it its me my of on or please should so tell than that the their them then
        there these this to us was we were what when where which who why will with would you your
        """
    )
)
# Question words and particles; longest first, so that 为什么 goes whole
_HAN_STOP: Final = re.compile(
    "为什么|请解释|请问|什么是|是什么|有什么|怎么样|怎么|怎样|如何|哪些|哪个|什么|多少|是否|可以|能否"
    "|解释|介绍|一下|的|了|吗|呢|吧|和|与|是|在|有"
)
_FACETS: Final = ("definition", "example", "comparison", "limits", "causes", "best practice")
_HAN_FACETS: Final = ("定义", "例子", "比较", "限制", "原因", "最佳实践")


def plan_queries(
    question: str, proposed: Iterable[str], *, previous: str | None, count: int
) -> list[str]:
    """`count` different searches for `question`.

    In this order, duplicates dropped: the question as asked; the model's proposals; with an
    earlier question its keywords added, for "and its memory?"; the question's keywords alone;
    its keywords with one facet each, so that there are always enough.
    """
    queries: dict[str, str] = {}
    for candidate in _candidates(question, proposed, previous):
        text = " ".join(candidate.split())[:MAX_QUERY_CHARS]
        if text:
            queries.setdefault(_normal_form(text), text)
        if len(queries) == count:
            break
    return list(queries.values())


def keywords(question: str) -> str:
    """The question without its question words, in its own order."""
    if _HAN.search(question):
        return " ".join(_WORD.findall(_HAN_STOP.sub(" ", question)))
    words = _WORD.findall(question)
    return " ".join(word for word in words if word.lower() not in _STOP_WORDS)


def _candidates(question: str, proposed: Iterable[str], previous: str | None) -> Iterator[str]:
    yield question
    core = keywords(question) or question
    if previous is not None:
        yield f"{core} {keywords(previous)}"
    yield from proposed
    yield core
    for facet in _HAN_FACETS if _HAN.search(question) else _FACETS:
        yield f"{core} {facet}"


def _normal_form(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or folded
