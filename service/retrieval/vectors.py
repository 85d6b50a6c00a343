"""Latent semantic analysis: vectors learnt from the indexed texts themselves, on numpy alone.

Terms and the character n-grams of words are hashed into buckets, weighted by tf-idf, and the
matrix of passages by buckets is reduced by a randomised SVD (Halko, Martinsson, Tropp 2011).
Passages that share company in the corpus come close even where they share no word; no model is
downloaded and no language is left out.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from service.retrieval.tokenize import is_cjk_term

BUCKETS = 1 << 14
DIMENSIONS = 96
_OVERSAMPLING = 16
_POWER_ITERATIONS = 3
_SEED = 20_261_123
_GATHER_LIMIT = 1 << 20
"""Floats gathered at once in a sparse product: 4 MB, which stays near the processor."""

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LatentVectors:
    """Unit vectors of the passages, and what turns a query into one."""

    passages: FloatArray
    """(passages, dimensions)"""
    idf: FloatArray
    """(buckets,)"""
    projection: FloatArray
    """(buckets, dimensions)"""

    @classmethod
    def learn(cls, texts: Sequence[Sequence[str]], dimensions: int = DIMENSIONS) -> Self:
        """Vectors for passages given as their terms."""
        counted = [_bucket_counts(text) for text in texts]
        frequency = np.zeros(BUCKETS, dtype=np.float32)
        for counts in counted:
            frequency[list(counts)] += 1
        idf = np.log((1 + len(texts)) / (1 + frequency)).astype(np.float32) + 1
        matrix = _SparseRows.stack([_weigh(counts, idf) for counts in counted])
        projection = _right_singular_vectors(matrix, dimensions)
        return cls(_unit_rows(matrix.dot(projection)), idf, projection)

    def embed(self, text: Sequence[str]) -> FloatArray:
        """The unit vector of a text given as its terms; zeros when it shares nothing."""
        buckets, weights = _weigh(_bucket_counts(text), self.idf)
        vector = weights @ self.projection[buckets]
        unit: FloatArray = _unit_rows(vector[np.newaxis, :])[0]
        return unit

    def similarities(self, text: Sequence[str]) -> FloatArray:
        """Cosine of the text with each passage, shape (passages,)."""
        similarities: FloatArray = self.passages @ self.embed(text)
        return similarities


def _bucket_counts(text: Sequence[str]) -> Counter[int]:
    return Counter(zlib.crc32(feature.encode()) % BUCKETS for feature in _features(text))


def _features(text: Sequence[str]) -> Iterator[str]:
    for term in text:
        yield term
        if not is_cjk_term(term) and len(term) > 4:  # noqa: PLR2004  # shorter ones are their own n-gram
            padded = f"<{term}>"
            yield from (padded[i : i + 4] for i in range(len(padded) - 3))


def _weigh(counts: Counter[int], idf: FloatArray) -> tuple[IntArray, FloatArray]:
    """Buckets and their normalised (1 + log tf) * idf."""
    buckets = np.fromiter(counts, dtype=np.int64, count=len(counts))
    tf = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    weights = (1 + np.log(tf)) * idf[buckets]
    norm = float(np.linalg.norm(weights))
    return buckets, (weights / norm if norm else weights).astype(np.float32)


def _unit_rows(matrix: FloatArray) -> FloatArray:
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: FloatArray = (matrix / np.where(norms > 0, norms, 1)).astype(np.float32)
    return unit


@dataclass(frozen=True, slots=True)
class _SparseRows:
    """Compressed sparse rows: just the two operations the SVD needs, without scipy's 100 MB."""

    starts: IntArray
    columns: IntArray
    values: FloatArray
    width: int

    @classmethod
    def stack(cls, rows: Sequence[tuple[IntArray, FloatArray]]) -> Self:
        lengths = np.array([len(columns) for columns, _ in rows], dtype=np.int64)
        return cls(
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            columns=np.concatenate([columns for columns, _ in rows]),
            values=np.concatenate([values for _, values in rows]),
            width=BUCKETS,
        )

    @property
    def height(self) -> int:
        return len(self.starts) - 1

    def dot(self, dense: FloatArray) -> FloatArray:
        """Product with `dense` (width, n), gathered in blocks of bounded size."""
        product = np.zeros((self.height, dense.shape[1]), dtype=np.float32)
        rows_of_values = np.repeat(np.arange(self.height), np.diff(self.starts))
        step = max(1, _GATHER_LIMIT // max(1, dense.shape[1]))
        for start in range(0, len(self.values), step):
            block = slice(start, start + step)
            gathered = dense[self.columns[block]] * self.values[block, np.newaxis]
            rows, firsts = np.unique(rows_of_values[block], return_index=True)
            product[rows] += np.add.reduceat(gathered, firsts, axis=0)
        return product

    def transposed(self) -> "_SparseRows":
        order = np.argsort(self.columns, kind="stable")
        rows_of_values = np.repeat(np.arange(self.height), np.diff(self.starts))
        lengths = np.bincount(self.columns, minlength=self.width)
        return _SparseRows(
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            columns=rows_of_values[order],
            values=self.values[order],
            width=self.height,
        )


def _right_singular_vectors(matrix: _SparseRows, dimensions: int) -> FloatArray:
    """The leading right singular vectors, shape (buckets, at most `dimensions`)."""
    rank = min(dimensions, matrix.height)
    if rank == 0:
        return np.zeros((matrix.width, 1), dtype=np.float32)
    transposed = matrix.transposed()
    random = np.random.default_rng(_SEED)
    sample = random.standard_normal((matrix.width, min(rank + _OVERSAMPLING, matrix.height)))
    basis, _ = np.linalg.qr(matrix.dot(sample.astype(np.float32)))
    for _ in range(_POWER_ITERATIONS):
        basis, _ = np.linalg.qr(matrix.dot(transposed.dot(basis)))
    _, _, right = np.linalg.svd(transposed.dot(basis).T, full_matrices=False)
    projection: FloatArray = right[:rank].T.astype(np.float32)
    return projection
