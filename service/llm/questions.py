"""Taking a question apart: how hard it is, which searches it needs, what it means alone."""

import re
from collections.abc import Sequence
from typing import Final

from service.llm import language
from service.llm.prompt import Prompt

_QUESTION_MARK: Final = re.compile(r"[?？]")
_CLAUSE: Final = re.compile(r"[,;:，；：、]")
_CONJUNCTION: Final = re.compile(
    r"\b(?:and|or|but|then|also|while|whereas|because|if|when|so that|as well as)\b"
    r"|以及|并且|而且|同时|或者|如果|因为|还有|和|与|并",
    re.IGNORECASE,
)
_COMPARISON: Final = re.compile(
    r"\b(?:compare[ds]?|comparison|versus|vs|differ(?:s|ences?|ent)?|trade-?offs?|better|worse"
    r"|pros and cons|advantages?|relat(?:e|es|ion|ionship)|rather than|instead of)\b"
    r"|比较|对比|区别|差异|不同|优劣|优缺点|取舍|权衡|关系|相比",
    re.IGNORECASE,
)
_REASONING: Final = re.compile(
    r"\b(?:why|how (?:would|should|could|can|do)|explain|design|derive|prove|analy[sz]e"
    r"|step by step|implications?|under what)\b|为什么|为何|分析|设计|推导|解释|权衡|如何",
    re.IGNORECASE,
)

# Between two sides of a comparison or coordination.
_BETWEEN: Final = re.compile(
    r"\s*(?:,\s*and\b|,|;|\band\b|\bversus\b|\bvs\.?(?=\s)|\bcompared (?:to|with)\b|\bas well as\b"
    r"|\brather than\b|\binstead of\b|、|，|；|以及|还有|并且|和|与|跟|同|相比)\s*",
    re.IGNORECASE,
)
_SENTENCE_BREAK: Final = re.compile(r"(?<=[?？。！!；;])\s*|(?<=\.)\s+|\n+")
_MIN_SIDES: Final = 2


def complexity(question: str) -> float:
    """How hard the question looks, 0 (a lookup) to 1 (several steps), from its form alone."""
    size = len(language.terms(question))
    score = 0.03 * min(size, 12)
    score += 0.04 * max(0, min(size - 12, 8))
    score += 0.2 * max(0, len(_QUESTION_MARK.findall(question)) - 1)
    score += 0.1 * min(3, len(_CLAUSE.findall(question)))
    score += 0.1 * min(3, len(_CONJUNCTION.findall(question)))
    score += 0.25 * min(2, len(_COMPARISON.findall(question)))
    score += 0.1 * min(2, len(_REASONING.findall(question)))
    return min(1.0, score)


def decompose(prompt: Prompt, limit: int) -> list[str]:
    """Up to `limit` searches that together serve the question, the most telling first.

    Several sentences are searched each; the sides of a comparison or coordination each with the
    words they share; a question with one subject also by its bare content words. A follow-up
    carries the subject of the turns before it.
    """
    question = " ".join(prompt.question.split())
    subject = _subject_of_earlier_turns(prompt)
    pieces = [piece.strip() for piece in _SENTENCE_BREAK.split(question) if piece.strip()]
    pieces = [piece for piece in pieces if language.terms(piece)]
    queries: list[str] = []
    for piece in pieces:
        queries += sides(piece)
    if len(queries) < limit:
        queries = [*pieces, *(query for query in queries if query not in pieces)]
    if len(queries) < limit:
        queries.append(" ".join(language.content_words(question)))
    if subject:
        queries = [f"{query} {subject}" for query in queries or [question]]
    return _distinct(queries or [question])[:limit]


def standalone(prompt: Prompt) -> str:
    """The question so that it can be understood without the turns before it."""
    subject = _subject_of_earlier_turns(prompt)
    return f"{prompt.question} {subject}".strip()


def _subject_of_earlier_turns(prompt: Prompt) -> str:
    """Content words of the last question that had any, for a follow-up; else nothing."""
    if not prompt.is_follow_up:
        return ""
    own = set(language.terms(prompt.question))
    for earlier in reversed(prompt.earlier_questions):
        words = [
            word for word in language.content_words(earlier) if not own & set(language.terms(word))
        ]
        if words:
            return " ".join(words)
    return ""


def sides(piece: str) -> list[str]:
    """The parts of a coordination by their content words; none if there is just one subject."""
    parts = [part.strip(" ?？。.!！") for part in _BETWEEN.split(piece)]
    parts = [part for part in parts if language.terms(part)]
    if len(parts) < _MIN_SIDES:
        return []
    # "latency of A and B": words meant for both sides stand with one; the whole piece stays
    # among the searches when there is room for it.
    return [" ".join(language.content_words(part)) for part in parts]


def _distinct(queries: Sequence[str]) -> list[str]:
    """Without repeats, however they are written; a keyword form of a question is no repeat."""
    kept = {
        " ".join(query.casefold().split()).rstrip("?？.。"): query for query in reversed(queries)
    }
    kept.pop("", None)
    return list(reversed(kept.values()))
