"""Which search finds the right article: every candidate on the same questions.

    python bench/retrieval_quality.py            # the table of docs/adr/001-retrieval-default.md
    python bench/retrieval_quality.py --misses   # and the questions the default gets wrong

Quality is exact and repeats; times and memory are ratios to BM25 alone in the same run. jieba is
compared when it is installed and left out when it is not.
"""

import argparse
import os
import re
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# One thread of algebra: on a shared machine a second one measures the neighbours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import bm25s
import numpy as np
from retrieval_questions import CROSS_LANGUAGE, QUESTIONS, Question

from service.retrieval.documents import Passage, load, split
from service.retrieval.fusion import reciprocal_rank_fusion
from service.retrieval.rerank import Reranker
from service.retrieval.tokenize import is_cjk_term, terms
from service.retrieval.vectors import BUCKETS, LatentVectors, _bucket_counts, _weigh

CORPUS = Path(__file__).parents[1] / "service/retrieval/corpus"
CANDIDATES = 50
RERANKED = 20
DEFAULT = "**BM25 + LSA 96, 3:1**"
DEFAULT_RERANKED = f"{DEFAULT}, reranked"

Analyzer = Callable[[str], list[str]]
Search = Callable[[str], list[int]]
"""A query to passage numbers, best first."""


@dataclass(frozen=True)
class Corpus:
    """The shipped articles in passages."""

    passages: list[Passage]

    def texts(self, analyze: Analyzer) -> list[list[str]]:
        """Each passage's terms, weighted as the index weights them."""
        return [
            [*(analyze(p.title) * 2), *analyze(p.heading), *analyze(p.text)] for p in self.passages
        ]


# --- analyzers ----------------------------------------------------------------------------------


def pairs_only(text: str) -> list[str]:
    return [term for term in terms(text) if not is_cjk_term(term) or len(term) > 1]


def single_characters(text: str) -> list[str]:
    return [term for term in terms(text) if not is_cjk_term(term) or len(term) == 1]


def plain_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def jieba_analyzer() -> Analyzer | None:
    try:
        import jieba  # noqa: PLC0415  # optional
    except ImportError:
        return None
    jieba.setLogLevel("ERROR")
    jieba.initialize()

    def analyze(text: str) -> list[str]:
        words = [word for word in jieba.cut_for_search(text) if is_cjk_term(word)]
        return [*words, *(term for term in terms(text) if not is_cjk_term(term))]

    return analyze


# --- searches -----------------------------------------------------------------------------------


def best(scores: np.ndarray, above: float) -> list[int]:
    order = np.argsort(-scores, kind="stable")[:CANDIDATES]
    return [int(n) for n in order if scores[n] > above]


def bm25(corpus: Corpus, analyze: Analyzer = terms) -> Search:
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75, backend="numpy")
    index.index(corpus.texts(analyze), show_progress=False)

    def search(query: str) -> list[int]:
        known = index.get_tokens_ids(analyze(query))
        return best(index.get_scores_from_ids(known), 0.0) if known else []

    return search


def fts5(corpus: Corpus) -> Search:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE p USING fts5(t, tokenize=\"unicode61 tokenchars '_'\")"
    )
    connection.executemany(
        "INSERT INTO p (rowid, t) VALUES (?, ?)",
        ((n, " ".join(text)) for n, text in enumerate(corpus.texts(terms))),
    )

    def search(query: str) -> list[int]:
        words = " OR ".join('"' + term.replace('"', "") + '"' for term in terms(query))
        rows = connection.execute(
            "SELECT rowid FROM p WHERE p MATCH ? ORDER BY bm25(p) LIMIT ?", (words, CANDIDATES)
        )
        return [row[0] for row in rows] if words else []

    return search


def latent(corpus: Corpus, dimensions: int = 96, analyze: Analyzer = terms) -> Search:
    vectors = LatentVectors.learn(corpus.texts(analyze), dimensions)
    return lambda query: best(vectors.similarities(analyze(query)), 0.05)


def hashed(corpus: Corpus) -> Search:
    """Cosine of hashed tf-idf without the reduction."""
    counted = [_bucket_counts(text) for text in corpus.texts(terms)]
    frequency = np.zeros(BUCKETS, dtype=np.float32)
    for counts in counted:
        frequency[list(counts)] += 1
    idf = (np.log((1 + len(counted)) / (1 + frequency)) + 1).astype(np.float32)
    matrix = np.zeros((len(counted), BUCKETS), dtype=np.float32)
    for row, counts in enumerate(counted):
        buckets, weights = _weigh(counts, idf)
        matrix[row, buckets] = weights

    def search(query: str) -> list[int]:
        buckets, weights = _weigh(_bucket_counts(terms(query)), idf)
        return best(matrix[:, buckets] @ weights, 0.0)

    return search


def fused(*searches: Search, weights: Sequence[float] | None = None) -> Search:
    def search(query: str) -> list[int]:
        rankings = [one(query) for one in searches]
        return [item for item, _ in reciprocal_rank_fusion(rankings, weights=weights)]

    return search


def reranked(corpus: Corpus, first: Search) -> Search:
    texts = corpus.texts(terms)
    reranker = Reranker(corpus.passages, texts, LatentVectors.learn(texts))

    def search(query: str) -> list[int]:
        found = first(query)[:RERANKED]
        pairs = [(corpus.passages[n].passage_id, corpus.passages[n].text) for n in found]
        return [found[item.position] for item in reranker.rank(query, pairs)]

    return search


# --- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """Of documents, not passages: shares with the answer first, in the first three, mean 1/rank."""

    first: float
    third: float
    mrr: float

    def __str__(self) -> str:
        return f"{self.first:4.0%} {self.third:4.0%} {self.mrr:.3f}"


def rank_of(question: Question, search: Search, passages: Sequence[Passage]) -> int | None:
    """Rank, among documents, of the first one that answers."""
    documents = dict.fromkeys(passages[n].document_id for n in search(question.text))
    for rank, document in enumerate(documents, start=1):
        if document in question.expected:
            return rank
    return None


def quality(questions: Sequence[Question], search: Search, corpus: Corpus) -> Quality:
    ranks = [rank_of(question, search, corpus.passages) for question in questions]
    count = len(ranks)
    return Quality(
        sum(rank == 1 for rank in ranks) / count,
        sum(rank is not None and rank <= 3 for rank in ranks) / count,
        sum(1 / rank for rank in ranks if rank) / count,
    )


@dataclass(frozen=True)
class Cost:
    """Seconds to build, seconds for all questions, bytes kept."""

    build_s: float
    query_s: float
    memory: int


def cost(make: Callable[[], Search]) -> Cost:
    """Best of three builds and of three passes over all questions."""
    builds = []
    for _ in range(3):
        began = time.perf_counter()
        search = make()
        builds.append(time.perf_counter() - began)
    passes = []
    for _ in range(3):
        began = time.perf_counter()
        for question in QUESTIONS:
            search(question.text)
        passes.append(time.perf_counter() - began)
    tracemalloc.start()
    kept = make()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return Cost(min(builds), min(passes), memory)


def candidates(corpus: Corpus) -> dict[str, Callable[[], Search]]:
    jieba = jieba_analyzer()
    found: dict[str, Callable[[], Search]] = {
        "BM25, pairs and characters": lambda: bm25(corpus),
        "BM25, pairs only": lambda: bm25(corpus, pairs_only),
        "BM25, characters only": lambda: bm25(corpus, single_characters),
        "BM25, no analysis": lambda: bm25(corpus, plain_words),
        "FTS5, pairs and characters": lambda: fts5(corpus),
        "hashed tf-idf": lambda: hashed(corpus),
        "LSA 64": lambda: latent(corpus, 64),
        "LSA 96": lambda: latent(corpus, 96),
        "BM25 + hashed, 1:1": lambda: fused(bm25(corpus), hashed(corpus)),
        "BM25 + hashed, 3:1": lambda: fused(bm25(corpus), hashed(corpus), weights=(3, 1)),
        "BM25 + LSA 64, 3:1": lambda: fused(bm25(corpus), latent(corpus, 64), weights=(3, 1)),
        "BM25 + LSA 96, 1:1": lambda: fused(bm25(corpus), latent(corpus)),
        "BM25 + LSA 96, 2:1": lambda: fused(bm25(corpus), latent(corpus), weights=(2, 1)),
        DEFAULT: lambda: fused(bm25(corpus), latent(corpus), weights=(3, 1)),
        "BM25, reranked": lambda: reranked(corpus, bm25(corpus)),
        DEFAULT_RERANKED: lambda: reranked(
            corpus, fused(bm25(corpus), latent(corpus), weights=(3, 1))
        ),
    }
    if jieba is not None:
        found["BM25, jieba"] = lambda: bm25(corpus, jieba)
        found["BM25 jieba + LSA 96, 3:1"] = lambda: fused(
            bm25(corpus, jieba), latent(corpus), weights=(3, 1)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--misses", action="store_true")
    chosen = parser.parse_args()
    corpus = Corpus([p for d in load(CORPUS).documents for p in split(d)])
    english = [q for q in QUESTIONS if q.language == "en"]
    chinese = [q for q in QUESTIONS if q.language == "zh"]
    halves = QUESTIONS[0::2], QUESTIONS[1::2]
    print(f"{len(corpus.passages)} passages, {len(english)} + {len(chinese)} questions")
    print(
        "| candidate | en hit@1 hit@3 MRR | zh hit@1 hit@3 MRR | half 1 MRR | half 2 MRR ", end=""
    )
    print("| cross hit@3 | index × | query × | memory × |")
    print("|---|---|---|---|---|---|---|---|---|")
    base: Cost | None = None
    for name, make in candidates(corpus).items():
        spent = cost(make)
        base = base or spent
        search = make()
        cells = [
            str(quality(english, search, corpus)),
            str(quality(chinese, search, corpus)),
            *(f"{quality(half, search, corpus).mrr:.3f}" for half in halves),
            f"{quality(CROSS_LANGUAGE, search, corpus).third:.0%}",
            f"{spent.build_s / base.build_s:.1f}",
            f"{spent.query_s / base.query_s:.1f}",
            f"{spent.memory / base.memory:.1f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    assert base is not None
    per_query = base.query_s / len(QUESTIONS)
    print(f"× 1 = {base.build_s:.3f} s, {per_query * 1000:.2f} ms, {base.memory / 2**20:.1f} MB")
    if chosen.misses:
        search = candidates(corpus)[DEFAULT_RERANKED]()
        for question in (*QUESTIONS, *CROSS_LANGUAGE):
            rank = rank_of(question, search, corpus.passages)
            if rank != 1:
                top = dict.fromkeys(corpus.passages[n].document_id for n in search(question.text))
                print(rank, question.text, "→", ", ".join(list(top)[:3]))


if __name__ == "__main__":
    main()
