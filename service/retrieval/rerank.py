"""Score (query, passage) pairs with more than the searches look at.

The searches see a bag of terms. The reranker also sees how much of the question a passage
covers, whether neighbouring words of the question stand together in the passage in the same
order, and what its title says. It is a plain function of the pair and the index: no model, no
network, the same answer every time.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.retrieval.documents import Passage
from service.retrieval.tokenize import terms
from service.retrieval.vectors import LatentVectors

MODEL = "coverage-proximity-v1"
"""Name of the scoring function on `rerank` spans."""

_PAIR_WINDOW = 4
"""Terms within which the second word of a pair must follow the first."""
_SATURATION = 0.6
"""tf / (tf + this): the first mention counts most."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Shares of the final score; they sum to 1, so scores lie between 0 and 1."""

    coverage: float = 0.4
    pairs: float = 0.15
    title: float = 0.2
    latent: float = 0.25


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
        self._idf = {term: math.log(1 + total / count) for term, count in frequency.items()}
        self._unseen_idf = math.log(1 + total)
        self._titles = {
            passage.passage_id: frozenset(terms(f"{passage.title} {passage.heading}"))
            for passage in passages
        }
        self._latent = latent
        self._weights = weights or Weights()

    def rank(self, query: str, passages: Iterable[tuple[str, str]]) -> list[Ranked]:
        """Positions of (passage id, text) pairs, best first; ties keep the order of the request.

        An id the index knows brings its title into the score; any other is scored by text alone.
        """
        query_terms = terms(query)
        vector = self._latent.embed(query_terms)
        ranked = [
            Ranked(position, self._score(query_terms, vector, passage_id, terms(text)))
            for position, (passage_id, text) in enumerate(passages)
        ]
        return sorted(ranked, key=lambda item: (-item.score, item.position))

    def _score(
        self,
        query_terms: Sequence[str],
        query_vector: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
        passage_id: str,
        text: Sequence[str],
    ) -> float:
        weights = self._weights
        wanted = {term: self._idf.get(term, self._unseen_idf) for term in query_terms}
        if not wanted:
            return 0.0
        title = self._titles.get(passage_id, frozenset())
        counts = Counter(text)
        coverage = _share(
            wanted, {term: count / (count + _SATURATION) for term, count in counts.items()}
        )
        similarity = float(np.dot(query_vector, self._latent.embed([*title, *text])))
        score = (
            weights.coverage * coverage
            + weights.pairs * self._pairs(query_terms, text)
            + weights.title * _share(wanted, dict.fromkeys(title, 1.0))
            + weights.latent * max(0.0, similarity)
        )
        return round(score, 6)

    def _pairs(self, query_terms: Sequence[str], text: Sequence[str]) -> float:
        """Idf-weighted share of the query's neighbouring terms that stand together in `text`."""
        wanted = dict.fromkeys(pairwise(query_terms))
        places: dict[str, list[int]] = {}
        for place, term in enumerate(text):
            places.setdefault(term, []).append(place)
        total = found = 0.0
        for first, second in wanted:
            weight = self._idf.get(first, self._unseen_idf) + self._idf.get(
                second, self._unseen_idf
            )
            total += weight
            starts, ends = places.get(first, ()), places.get(second, ())
            if any(0 < end - start <= _PAIR_WINDOW for start in starts for end in ends):
                found += weight
        return found / total if total else 0.0


def _share(wanted: dict[str, float], present: dict[str, float]) -> float:
    """Idf-weighted share of the wanted terms, each counted as far as it is present."""
    return sum(idf * present.get(term, 0.0) for term, idf in wanted.items()) / sum(wanted.values())
