"""Score (query, passage) pairs with more than the searches look at.

The searches see a bag of terms. The reranker also sees how much of the question a passage
covers, whether neighbouring words of the question stand together in the passage in the same
order, and what its title says. It is a plain function of the pair and the index: no model, no
network, the same answer every time.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.retrieval.documents import Passage
from service.retrieval.tokenize import is_character, terms
from service.retrieval.vectors import FloatArray, LatentVectors

MODEL = "coverage-proximity-v1"
"""Name of the scoring function on `rerank` spans."""

_PAIR_WINDOW = 6
"""Terms within which the second word of a pair must follow the first."""
_SATURATION = 0.9
"""tf / (tf + this): the first mention counts most. Scaled by the passage's length, as in BM25."""
_LENGTH_SHARE = 0.6
"""How far the scaling goes with the length; BM25's b."""
_CHARACTER_SHARE = 0.5
"""What a single Han character counts beside a word or a pair: most occur in many words."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Shares of the final score; they sum to 1, so scores lie between 0 and 1."""

    coverage: float = 0.4
    title: float = 0.25
    pairs: float = 0.15
    latent: float = 0.2


@dataclass(frozen=True, slots=True)
class _Known:
    """A passage analysed."""

    text: str
    terms: tuple[str, ...]
    title: frozenset[str]
    vector: FloatArray


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage's place in the request and its score."""

    position: int
    score: float


class Reranker:
    """Scores passages against a query with the term statistics of one index."""

    def __init__(
        self,
        passages: Sequence[Passage],
        passage_terms: Sequence[Sequence[str]],
        latent: LatentVectors,
        weights: Weights | None = None,
    ) -> None:
        frequency = Counter(term for text in passage_terms for term in set(text))
        total = len(passage_terms)
        self._idf = {
            term: math.log(1 + total / count) * (_CHARACTER_SHARE if is_character(term) else 1.0)
            for term, count in frequency.items()
        }
        self._mean_length = max(1.0, sum(map(len, passage_terms)) / max(1, total))
        self._numbers = {passage.passage_id: n for n, passage in enumerate(passages)}
        self._passages = passages
        # Filled as passages are asked for; two threads that fill one entry write the same.
        self._known: dict[str, _Known] = {}
        self._latent = latent
        self._weights = weights or Weights()

    def rank(self, query: str, passages: Iterable[tuple[str, str]]) -> list[Ranked]:
        """Positions of (passage id, text) pairs, best first; ties keep the order of the request.

        An id the index knows brings its title into the score; any other is scored by text alone.
        Words the index has never seen cannot tell its passages apart and are left out.
        """
        known = [term for term in terms(query) if term in self._idf]
        vector = self._latent.embed(known)
        ranked = [
            Ranked(position, self._score(known, vector, self._analyzed(passage_id, text)))
            for position, (passage_id, text) in enumerate(passages)
        ]
        return sorted(ranked, key=lambda item: (-item.score, item.position))

    def _score(
        self,
        query_terms: Sequence[str],
        query_vector: FloatArray,
        passage: "_Known",
    ) -> float:
        wanted = {term: self._idf[term] for term in query_terms}
        text, title = passage.terms, passage.title
        if not wanted or not text:
            return 0.0
        weights = self._weights
        similarity = float(np.dot(query_vector, passage.vector))
        score = (
            weights.coverage * _share(wanted, self._presence(text))
            + weights.title * _share(wanted, dict.fromkeys(title, 1.0))
            + weights.pairs * self._pairs(query_terms, text)
            + weights.latent * max(0.0, similarity)
        )
        return round(score, 6)

    def _analyzed(self, passage_id: str, text: str) -> "_Known":
        """The passage as the index has it, when it has it; analysing it again is the slow part."""
        number = self._numbers.get(passage_id)
        if number is None:
            return self._analyze(text, frozenset())
        known = self._known.get(passage_id)
        if known is None:
            passage = self._passages[number]
            known = _Known(
                text=passage.text,
                terms=tuple(terms(passage.text)),
                title=frozenset(terms(f"{passage.title} {passage.heading}")),
                vector=self._latent.passages[number],
            )
            self._known[passage_id] = known
        return known if known.text == text else self._analyze(text, known.title)

    def _analyze(self, text: str, title: frozenset[str]) -> "_Known":
        text_terms = tuple(terms(text))
        return _Known(text, text_terms, title, self._latent.embed([*sorted(title), *text_terms]))

    def _presence(self, text: Sequence[str]) -> dict[str, float]:
        relative = len(text) / self._mean_length
        half = _SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * relative)
        return {term: count / (count + half) for term, count in Counter(text).items()}

    def _pairs(self, query_terms: Sequence[str], text: Sequence[str]) -> float:
        """Idf-weighted share of the query's neighbouring terms that stand together in `text`."""
        places: dict[str, list[int]] = {}
        for place, term in enumerate(text):
            places.setdefault(term, []).append(place)
        total = found = 0.0
        for first, second in dict.fromkeys(pairwise(query_terms)):
            weight = self._idf[first] + self._idf[second]
            total += weight
            starts, ends = places.get(first, ()), places.get(second, ())
            if any(0 < end - start <= _PAIR_WINDOW for start in starts for end in ends):
                found += weight
        return found / total if total else 0.0


def _share(wanted: Mapping[str, float], present: Mapping[str, float]) -> float:
    """Idf-weighted share of the wanted terms, each counted as far as it is present."""
    return sum(idf * present.get(term, 0.0) for term, idf in wanted.items()) / sum(wanted.values())
