import sys
from pathlib import Path

import pytest

from service.retrieval.index import Index

pytestmark = pytest.mark.xdist_group("shipped")  # the index is built once

BENCH = str(Path(__file__).parents[3] / "bench")


def pairs(index: Index, numbers: list[int]) -> list[tuple[str, str]]:
    return [(index.passages[n].passage_id, index.passages[n].text) for n in numbers]


def test_the_passage_that_answers_comes_first(shipped: Index) -> None:
    """Whatever the order of the request, the covering passage wins, in both languages."""
    ids = ("citations", "flash-attention", "critical-path", "semantic-cache")
    numbers = [
        next(n for n, p in enumerate(shipped.passages) if p.document_id == document_id)
        for document_id in ids
    ]
    for query, expected in (("which operations make the request slow", 2), ("在线 softmax", 1)):
        ranked = shipped.reranker.rank(query, pairs(shipped, numbers))

        assert ranked[0].position == expected
        assert {item.position for item in ranked} == set(range(len(ids)))


def test_scores_lie_between_zero_and_one_and_fall(shipped: Index) -> None:
    """A score is a share, so that it can be compared across requests."""
    ranked = shipped.reranker.rank("prefix cache", pairs(shipped, list(range(40))))
    scores = [item.score for item in ranked]

    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] < scores[0] <= 1


def test_ties_keep_the_order_of_the_request(shipped: Index) -> None:
    """Equal passages stay as they were given."""
    ranked = shipped.reranker.rank("cache", [("x", "same text"), ("y", "same text")])

    assert [item.position for item in ranked] == [0, 1]


def test_words_in_order_count_more_than_scattered_ones(shipped: Index) -> None:
    """Between two passages with the same words, the one that keeps them together wins."""
    together = "A trace has one critical path. Filler about nothing at all in here today."
    scattered = "A critical filler about nothing has one at all in here today. Trace path."

    ranked = shipped.reranker.rank("critical path", [("x", scattered), ("y", together)])

    assert [item.position for item in ranked] == [1, 0]


def test_a_known_passage_brings_its_title(shipped: Index) -> None:
    """The same text scores higher under an id whose title answers the query."""
    text = "Something short about requests."

    ranked = shipped.reranker.rank("exemplars graph", [("unknown", text), ("exemplars#1", text)])

    assert ranked[0].position == 1
    assert ranked[0].score > ranked[1].score


@pytest.mark.parametrize("query", ["的", "zzzzqqqq", "?"])
def test_a_query_that_says_nothing_scores_zero(shipped: Index, query: str) -> None:
    """Unknown words and function words cannot tell passages apart."""
    assert [item.score for item in shipped.reranker.rank(query, [("x", "text"), ("y", "")])] == [
        0,
        0,
    ]


def test_no_passages_give_no_ranking(shipped: Index) -> None:
    """An empty request has an empty answer."""
    assert shipped.reranker.rank("query", []) == []


def test_reranking_the_search_is_no_worse_than_the_search(
    shipped: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the benchmark's questions the mean reciprocal rank does not fall."""
    monkeypatch.syspath_prepend(BENCH)
    from retrieval_questions import QUESTIONS  # noqa: PLC0415  # bench is on the path only here

    def reciprocal(documents: list[str], expected: tuple[str, ...]) -> float:
        ranks = [r for r, d in enumerate(dict.fromkeys(documents), 1) if d in expected]
        return 1 / ranks[0] if ranks else 0.0

    before = after = 0.0
    for question in QUESTIONS:
        hits = [hit.passage for hit in shipped.search(question.text, 20)]
        ranked = shipped.reranker.rank(question.text, [(p.passage_id, p.text) for p in hits])
        before += reciprocal([p.document_id for p in hits], question.expected)
        after += reciprocal([hits[i.position].document_id for i in ranked], question.expected)
    sys.modules.pop("retrieval_questions", None)

    assert len(QUESTIONS) >= 60
    assert after >= before
    assert before / len(QUESTIONS) > 0.8
