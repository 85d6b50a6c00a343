"""The search index: immutable, in memory, shared by every thread.

A search ranks all passages twice, by BM25 over terms and by cosine of latent vectors, and fuses
the two rankings. Which combination is the default was measured: docs/adr/001-retrieval-default.md.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import bm25s  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt

from service.retrieval.documents import Document, Passage, split
from service.retrieval.fusion import reciprocal_rank_fusion
from service.retrieval.rerank import Reranker
from service.retrieval.tokenize import ANALYZER_VERSION, terms
from service.retrieval.vectors import LatentVectors

FORMAT_VERSION = f"1.{ANALYZER_VERSION}"
"""Of an index on disk; an index of another version is built again."""
CANDIDATES = 50
"""Passages each ranking contributes to the fusion."""
TITLE_WEIGHT = 2
"""How often a passage's title counts among its terms: a title says what the whole is about."""
TERMS_WEIGHT, VECTOR_WEIGHT = 3.0, 1.0
"""Of the two rankings in the fusion: alone, BM25 is the better search by far."""
MIN_SIMILARITY = 0.05
"""Cosines below this are hash collisions, not kinship."""

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG when imported

_BM25_K1 = 1.2
_BM25_B = 0.75


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, with its fused score (higher is better, not comparable)."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """Where an index came from."""

    name: str
    """Goes on spans as `gen_ai.data_source.id`."""
    source: str
    """The folder or file that was indexed, absolute."""
    content_hash: str
    explicit: bool
    """Made by `index PATH` (then it is served as it is) rather than at start-up."""
    format_version: str = FORMAT_VERSION


class Index:
    """Documents, their passages, and both rankings over them."""

    def __init__(
        self,
        info: IndexInfo,
        documents: Iterable[Document],
        passages: Sequence[Passage],
        passage_terms: Sequence[Sequence[str]],
        latent: LatentVectors,
    ) -> None:
        self.info = info
        self.documents: Mapping[str, Document] = {
            document.document_id: document for document in documents
        }
        self.passages = tuple(passages)
        self.passage_terms = tuple(tuple(text) for text in passage_terms)
        self.latent = latent
        self._bm25 = bm25s.BM25(method="lucene", k1=_BM25_K1, b=_BM25_B, backend="numpy")
        self._has_terms = any(self.passage_terms)  # bm25s refuses a corpus without any
        if self._has_terms:
            self._bm25.index([list(text) for text in self.passage_terms], show_progress=False)
        self.reranker = Reranker(self.passages, self.passage_terms, latent)

    @classmethod
    def build(cls, info: IndexInfo, documents: Sequence[Document]) -> Self:
        """Split, analyse and learn the vectors; `documents` must not be empty."""
        passages = [passage for document in documents for passage in split(document)]
        passage_terms = [terms_of(passage) for passage in passages]
        return cls(info, documents, passages, passage_terms, LatentVectors.learn(passage_terms))

    def search(self, query: str, top_k: int) -> list[Hit]:
        """The `top_k` best passages; fewer, or none, when the rest shares nothing with `query`."""
        query_terms = terms(query)
        if not query_terms:
            return []
        fused = reciprocal_rank_fusion(
            [self.by_terms(query_terms), self.by_vector(query_terms)],
            weights=(TERMS_WEIGHT, VECTOR_WEIGHT),
        )
        return [Hit(self.passages[number], score) for number, score in fused[:top_k]]

    def by_terms(self, query_terms: Sequence[str], limit: int = CANDIDATES) -> list[int]:
        """Passage numbers by BM25, best first, those without any common term left out."""
        known = self._bm25.get_tokens_ids(list(query_terms)) if self._has_terms else []
        if not known:
            return []
        return _best(self._bm25.get_scores_from_ids(known), limit, above=0.0)

    def by_vector(self, query_terms: Sequence[str], limit: int = CANDIDATES) -> list[int]:
        """Passage numbers by cosine of the latent vectors, best first."""
        return _best(self.latent.similarities(query_terms), limit, above=MIN_SIMILARITY)


def terms_of(passage: Passage) -> list[str]:
    """What a passage is found by: its title (weighted), heading and text."""
    return [*(terms(passage.title) * TITLE_WEIGHT), *terms(passage.heading), *terms(passage.text)]


def _best(scores: npt.NDArray[np.float32], limit: int, above: float) -> list[int]:
    order = np.argsort(-scores, kind="stable")[:limit]
    return [int(number) for number in order if scores[number] > above]
