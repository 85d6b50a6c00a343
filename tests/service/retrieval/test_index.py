from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.retrieval.index import Index
from service.retrieval.live import build

pytestmark = pytest.mark.xdist_group("shipped")  # the index is built once

Library = Callable[..., Path]


def found(index: Index, query: str, top_k: int = 6) -> list[str]:
    return [hit.passage.document_id for hit in index.search(query, top_k)]


@pytest.mark.parametrize(
    ("query", "document_id"),
    [
        ("how does speculative decoding use a draft model", "speculative-decoding"),
        ("What happens to running sequences when no free blocks are left?", "paged-attention"),
        ("Hidden text on a web page told my assistant to leak data", "prompt-injection"),
        ("When should the pager ring for a slow leak of errors?", "slo-error-budget"),
        ("几百万条向量怎样快速找到最近邻？", "vector-index"),
        ("智能体退款之前怎样让主管点头？", "human-in-the-loop"),
        ("没有空格的语言怎样建倒排？", "chinese-tokenization"),
        ("KV 缓存占多少显存", "kv-cache-zh"),
    ],
)
def test_the_right_article_comes_first(shipped: Index, query: str, document_id: str) -> None:
    """A question in either language finds its article."""
    assert found(shipped, query)[0] == document_id


@pytest.mark.parametrize("query", ["HNSW efSearch", "RoPE YaRN"])
def test_a_name_is_found_across_languages(shipped: Index, query: str) -> None:
    """A term of art is the same in both languages."""
    assert shipped.search(query, 1)[0].passage.language == "zh"


def test_hits_are_ordered_and_bounded(shipped: Index) -> None:
    """At most top_k hits, none twice, scores falling."""
    hits = shipped.search("cache memory of requests", 5)

    assert len(hits) == 5
    assert len({hit.passage.passage_id for hit in hits}) == 5
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


@pytest.mark.parametrize("query", ["的了吗", "?!", "how do I"])
def test_a_query_without_a_subject_finds_nothing(shipped: Index, query: str) -> None:
    """No hit is better than an arbitrary one."""
    assert shipped.search(query, 5) == []


def test_both_rankings_take_part(shipped: Index) -> None:
    """A misspelt word has no term in common with any passage, and its n-grams still find it."""
    query_terms = ["speculatve"]

    assert shipped.by_terms(query_terms) == []
    best = shipped.passages[shipped.by_vector(query_terms)[0]]
    assert best.document_id == "speculative-decoding"


def test_searching_repeats(shipped: Index) -> None:
    """The same query gives the same hits and scores."""
    assert shipped.search("缓存 cache", 10) == shipped.search("缓存 cache", 10)


def test_threads_do_not_disturb_each_other(shipped: Index) -> None:
    """Many searches at once give what each gives alone."""
    queries = [passage.title for passage in shipped.passages] * 2
    alone = {query: shipped.search(query, 5) for query in set(queries)}

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: shipped.search(query, 5), queries))

    assert together == [alone[query] for query in queries]


def test_one_passage_of_punctuation_is_an_index(library: Library) -> None:
    """The smallest and oddest library can be built and searched."""
    index, _ = build(library(a_md="!!!"), explicit=True)

    assert index.search("anything", 3) == []


def test_a_users_own_words_are_found(library: Library) -> None:
    """Nothing is known in advance: invented words in two languages find their files."""
    root = library(
        a_md="The zorblax valve opens at 42 kPa.",
        b_md="青鸾协议规定每周三上午更换密钥。",
        c_md="Unrelated text on gardening.",
    )
    index, _ = build(root, explicit=True)

    assert found(index, "At which pressure does the zorblax open?")[0] == "a"
    assert found(index, "青鸾协议什么时候换密钥？")[0] == "b"
