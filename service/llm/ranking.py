"""Which sentences cover a question: idf-weighted term overlap, chosen greedily for coverage."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.llm import language

# A passage's title speaks for all of its sentences, but less than their own words do.
TITLE_SHARE: Final = 0.4
# A term that a chosen sentence covers already still counts a little, so that sentences on the
# question's subject win over sentences on its side remarks.
REPEAT_SHARE: Final = 0.3
# A further sentence that speaks of nothing new must share this much with the question.
MIN_REPEAT: Final = 0.34
OTHER_LANGUAGE_SHARE: Final = 0.6
# A term of the question that no source knows weighs this much of the rarest known term: it may
# be the very thing asked about, or a turn of phrase.
UNKNOWN_TERM_SHARE: Final = 0.7
# Later passages were ranked lower by whoever retrieved them.
RANK_DECAY: Final = 0.08
# A question for a quantity is answered by a sentence that holds one: worth this share of it.
NUMBER_GAIN: Final = 0.35
# Every term of the question weighs this much of the rarest, however common: the subject is in all
# passages, since they were found for it, and by idf alone a side remark elsewhere would beat it.
EVEN_SHARE: Final = 0.5
# The cost of a choice grows with the question's terms; beyond this the least telling are left out.
MAX_TERMS: Final = 64
# What something is stands in the source that is named after it.
SUBJECT_GAIN: Final = 2.0
MIN_TITLE_COVERAGE: Final = 0.4
_DUPLICATE_OVERLAP: Final = 0.8
_LONG_SENTENCE_TERMS: Final = 24


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a source: `source` and `position` say where it stands, both from 0."""

    text: str
    source: int
    position: int
    terms: frozenset[str]
    title_terms: frozenset[str]
    """Of the source's title and of the heading the sentence stands under."""
    label: str = ""
    """What to cite, such as `[1]`; empty where the prompt numbered nothing."""


def sentences_of(text: str, *, source: int, title: str = "", label: str = "") -> list[Sentence]:
    """The sentences of one source, ready to be ranked."""
    found: list[Sentence] = []
    for heading, body in language.sections(text):
        title_terms = frozenset(language.terms(f"{title} {heading}"))
        for sentence in language.sentences(body):
            terms = frozenset(language.terms(sentence))
            found.append(Sentence(sentence, source, len(found), terms, title_terms, label))
    return found


def idf(sources: Iterable[frozenset[str]]) -> dict[str, float]:
    """How telling each term is: the fewer of the given term sets hold it, the more."""
    counts: Counter[str] = Counter()
    total = 0
    for terms in sources:
        counts.update(terms)
        total += 1
    return {term: math.log(1 + total / count) for term, count in counts.items()}


def question_weights(
    question: Sequence[str], known: Mapping[str, float], *, context: Sequence[str] = ()
) -> dict[str, float]:
    """The weight of each question term, summing to 1; terms of `context` count half."""
    rarest = max(known.values(), default=1.0)
    weights: dict[str, float] = {}
    for terms, share in ((question, 1.0), (context, 0.5)):
        for term in terms:
            telling_share = known[term] / rarest if term in known else UNKNOWN_TERM_SHARE
            weights.setdefault(term, share * (EVEN_SHARE + (1 - EVEN_SHARE) * telling_share))
    telling = sorted(weights.items(), key=lambda item: item[1], reverse=True)
    weights = dict(telling[:MAX_TERMS])
    total = sum(weights.values())
    return {term: weight / total for term, weight in weights.items()} if total else {}


def even_weights(terms: Sequence[str]) -> dict[str, float]:
    """Equal weights that sum to 1.

    To say whether a question is covered at all: by idf, the very subject of the sources would
    count least, since all of them speak of it.
    """
    distinct = dict.fromkeys(terms)
    return {term: 1 / len(distinct) for term in distinct}


def coverage(weights: Mapping[str, float], terms: frozenset[str]) -> float:
    """The share of the question, 0 to 1, that `terms` speak about."""
    return sum(weight for term, weight in weights.items() if term in terms)


def choose(
    candidates: Sequence[Sentence],
    weights: Mapping[str, float],
    *,
    limit: int,
    prefer: language.Language,
    prefer_numbers: bool = False,
    prefer_subject: bool = False,
    relative_gain: float = 0.0,
) -> list[Sentence]:
    """Up to `limit` sentences that together cover the question best, the best first.

    A sentence whose gain is below `relative_gain` of the first one's adds nothing and ends the
    choice. Passed over are near duplicates of a chosen one, and sentences that share with the
    question nothing but a word on another subject, or a little of what has been said already.
    """
    chosen: list[Sentence] = []
    covered: set[str] = set()
    subject: set[str] = set()
    remaining = [
        sentence
        for sentence in candidates
        if (sentence.terms | sentence.title_terms) & weights.keys()
        and not sentence.text.endswith((":", "：", ": ", "： "))  # what it announces is not quoted
    ]
    first_gain = 0.0
    while remaining and len(chosen) < limit:
        gains = [
            _gain(sentence, weights, covered, prefer)
            * (SUBJECT_GAIN if prefer_subject and _is_subject(sentence, weights) else 1.0)
            + (NUMBER_GAIN if prefer_numbers and has_number(sentence.text) else 0.0)
            for sentence in remaining
        ]
        best_gain = max(gains)
        best = remaining.pop(gains.index(best_gain))
        if chosen and best_gain < relative_gain * first_gain:
            break
        first_gain = first_gain or best_gain
        if any(_duplicates(best, other) for other in chosen):
            continue
        heard = best.terms & weights.keys()
        if chosen and heard <= covered and coverage(weights, heard) < MIN_REPEAT:
            continue
        spoken = (best.terms | best.title_terms) & weights.keys()
        if chosen and not spoken & subject:
            continue
        chosen.append(best)
        covered |= heard
        subject |= spoken
    return chosen


def has_number(text: str) -> bool:
    """Does `text` hold a digit that is not part of a word or a citation?"""
    return re.search(r"(?<![\w\[])\d", text) is not None


def _is_subject(sentence: Sentence, weights: Mapping[str, float]) -> bool:
    """Does the title say that the question's subject is what the source is about?"""
    return coverage(weights, sentence.title_terms) >= MIN_TITLE_COVERAGE


def _gain(
    sentence: Sentence,
    weights: Mapping[str, float],
    covered: set[str],
    prefer: language.Language,
) -> float:
    gain = 0.0
    for term, weight in weights.items():
        share = 1.0 if term in sentence.terms else 0.0
        if term in sentence.title_terms:
            share += TITLE_SHARE
        gain += weight * share * (REPEAT_SHARE if term in covered else 1.0)
    if language.detect(sentence.text) != prefer:
        gain *= OTHER_LANGUAGE_SHARE
    length_penalty = max(1.0, len(sentence.terms) / _LONG_SENTENCE_TERMS)
    # The first sentence of a passage tends to say what its subject is.
    opening = 1.1 if sentence.position == 0 else 1.0
    return gain * opening / (length_penalty * (1 + RANK_DECAY * sentence.source))


def _duplicates(one: Sentence, other: Sentence) -> bool:
    union = one.terms | other.terms
    return bool(union) and len(one.terms & other.terms) / len(union) >= _DUPLICATE_OVERLAP
