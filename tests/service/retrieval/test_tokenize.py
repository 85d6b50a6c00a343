import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.retrieval.tokenize import count_units, language_of, terms


def test_english_words_are_lowered_and_stemmed() -> None:
    """Forms of one word meet in one term."""
    assert terms("Batching batches") == terms("batched BATCH") == ["batch", "batch"]


@pytest.mark.parametrize("spelling", ["top_k", "top-k", "topK", "TopK", "top.k"])
def test_spellings_of_an_identifier_meet(spelling: str) -> None:
    """However an identifier is joined, its parts and its joined form are the same terms."""
    assert terms(spelling) == ["topk", "top", "k"]


def test_an_acronym_beside_a_word_is_split_where_the_word_begins() -> None:
    """`KVCache` is found by `KV cache`."""
    assert set(terms("KV cache")) <= set(terms("KVCache"))


@pytest.mark.parametrize("acronym", ["LLM", "GPU", "API", "TTFT"])
def test_the_plural_of_an_acronym_is_the_acronym(acronym: str) -> None:
    """A question about LLMs finds what is written about an LLM."""
    assert terms(f"{acronym}s") == terms(f"{acronym}'s") == terms(acronym)
    assert len(terms(acronym)) == 1


def test_chinese_gives_characters_and_pairs() -> None:
    """Every neighbouring pair is a term, and so is every character."""
    assert terms("键值缓存") == ["键", "键值", "值", "值缓", "缓", "缓存", "存"]


def test_question_words_leave_no_pairs_of_their_edges() -> None:
    """A phrase that asks is cut out before pairs are made."""
    assert terms("缓存是什么") == ["缓", "缓存", "存"]
    assert terms("有什么区别") == ["区", "区别", "别"]


def test_negation_is_kept() -> None:
    """`不` changes what a question asks, so it is no stop character."""
    assert "不" in terms("不支持")


def test_mixed_text_is_split_at_the_script() -> None:
    """Latin names inside Chinese are words of their own."""
    assert {"gpu", "显存"} <= set(terms("GPU显存不够"))


def test_full_width_forms_are_the_same_text() -> None:
    """A Chinese keyboard's full-width letters are letters."""
    assert terms("ＫＶ　ｃａｃｈｅ") == terms("KV cache")


@pytest.mark.parametrize("text", ["", "   ", "!?…", "的了吗", "how do I", "🙂"])
def test_text_without_a_subject_has_no_terms(text: str) -> None:
    """Punctuation and function words alone are nothing to search for."""
    assert terms(text) == []


@given(st.text())
def test_any_text_is_analysed(text: str) -> None:
    """No text breaks the analysis, and no term is empty or holds white space."""
    assert all(term and not term.isspace() and " " not in term for term in terms(text))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Paged attention maps blocks.", "en"),
        ("分页注意力把块映射到物理块", "zh"),
        ("用 vLLM 的 PagedAttention 管理 KV cache 的物理块", "zh"),
        ("The word 缓存 means cache in Chinese", "en"),
        ("", "en"),
    ],
)
def test_the_language_is_told_by_its_script(text: str, language: str) -> None:
    """Latin names do not make a Chinese text English, nor one Chinese word the reverse."""
    assert language_of(text) == language


def test_length_is_counted_in_words_of_either_script() -> None:
    """Three Han characters weigh as much as two words."""
    assert count_units("one two three four") == 4
    assert count_units("一二三四五六") == 4
