"""Reciprocal rank fusion (Cormack, Clarke, Büttcher; SIGIR 2009).

Scores of different searches cannot be compared; ranks can. An item's fused score is the sum,
over the rankings that hold it, of weight / (k + rank), ranks from 1.
"""

from collections.abc import Sequence

RANK_CONSTANT = 60
"""The paper's k: large enough that one search's first place does not outvote two second places."""


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]],
    *,
    weights: Sequence[float] | None = None,
    k: float = RANK_CONSTANT,
) -> list[tuple[int, float]]:
    """Items with their fused scores, best first; ties go to the smaller item, so runs agree."""
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + weight / (k + rank)
    return sorted(scores.items(), key=lambda scored: (-scored[1], scored[0]))
