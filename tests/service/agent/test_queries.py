import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.agent.queries import MAX_QUERY_CHARS, keywords, plan_queries


def test_the_question_comes_first_then_the_models_proposals() -> None:
    """What the user asked is always searched as asked."""
    queries = plan_queries(
        "What is the KV cache?", ["kv cache memory", "attention keys"], previous=None, count=3
    )

    assert queries == ["What is the KV cache?", "kv cache memory", "attention keys"]


def test_duplicates_in_other_spelling_do_not_count() -> None:
    """Case, punctuation and width do not make another search."""
    queries = plan_queries(
        "KV cache", ["kv cache?", "ＫＶ  ＣＡＣＨＥ", "paging"], previous=None, count=3
    )

    assert queries[:2] == ["KV cache", "paging"]
    assert len(queries) == 3


@pytest.mark.parametrize("question", ["KV", "什么是 KV 缓存？", "？", "the", "Why?", "🙂"])
def test_there_are_always_enough_searches_without_a_model(question: str) -> None:
    """With no proposals the fan-out is as wide as with them, and the same every time."""
    queries = plan_queries(question, [], previous=None, count=3)

    assert len(queries) == len(set(queries)) == 3
    assert queries == plan_queries(question, [], previous=None, count=3)


def test_a_follow_up_question_searches_with_the_words_of_the_one_before() -> None:
    """What "its memory" is about is in the earlier question."""
    queries = plan_queries(
        "And how much memory does it need?", [], previous="What is the KV cache?", count=3
    )

    assert "much memory need KV cache" in queries


def test_keywords_leave_question_words_out_in_both_languages() -> None:
    """What remains is what documents contain."""
    assert keywords("What is the KV cache and why does it help?") == "KV cache help"
    assert keywords("什么是 KV 缓存，为什么它能加速推理？") == "KV 缓存 它能加速推理"


@given(st.text(min_size=1, max_size=60), st.lists(st.text(max_size=600), max_size=6))
def test_any_question_and_any_proposal_give_bounded_different_searches(
    question: str, proposed: list[str]
) -> None:
    """Nothing a model writes makes a search empty, overlong or twice the same."""
    queries = plan_queries(question, proposed, previous=None, count=5)

    assert len(queries) == len(set(queries)) <= 5
    assert all(0 < len(query) <= MAX_QUERY_CHARS for query in queries)
