"""Words and sentences of English and Chinese."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.llm import arithmetic, language, moments, questions
from service.llm.prompt import Prompt, Turn, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is 3.5 GB, e.g. Dr. Wu's. Next.", ["It is 3.5 GB, e.g. Dr. Wu's.", "Next."]),
        ("缓存很大。它会增长！“好。”对吗？", ["缓存很大。", "它会增长！", "“好。”", "对吗？"]),
        ("# Title\nA line\nthat wraps. B.\n\n- item one\n- item two", None),
        ("第一行\n接着写。", ["第一行接着写。"]),
        ("```\ncode. Code.\n```\nText.", ["Text."]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    """Abbreviations and decimals do not end a sentence; headings and code are none."""
    assert language.sentences(text) == (
        expected or (["A line that wraps.", "B.", "item one", "item two"] if text else [])
    )


@given(text=st.text(max_size=300))
def test_sentences_are_made_of_the_text(text: str) -> None:
    """Nothing is invented and no piece is too long to quote."""
    for sentence in language.sentences(text):
        assert 0 < len(sentence) <= 500
        assert set(sentence) <= {*text, " "}


def test_a_text_without_sentence_ends_is_cut() -> None:
    """A transcript is quoted in pieces, cut at words."""
    pieces = language.sentences("word " * 500)

    assert all(len(piece) <= 500 for piece in pieces)
    assert " ".join(pieces).split() == ["word"] * 500


@pytest.mark.parametrize(
    ("text", "tongue"),
    [("What is it?", "en"), ("什么是 KV cache?", "zh"), ("What does 你好 mean?", "en"), ("", "en")],
)
def test_language_is_detected(text: str, tongue: str) -> None:
    """A Chinese sentence stays Chinese with English terms in it, and the other way round."""
    assert language.detect(text) == tongue


def test_forms_of_a_word_are_one_term() -> None:
    """Inflected forms meet, full-width letters meet plain ones, function words are dropped."""
    assert len(set(language.terms("cache caches cached caching"))) == 1
    assert len(set(language.terms("batch batches batching"))) == 1
    assert len(set(language.terms("query queries"))) == 1
    assert language.terms("ＫＶ") == language.terms("kv")
    assert language.terms("what is the of") == []
    assert set(language.terms("键值缓存")) == {"键值", "值缓", "缓存"}


def test_follow_ups_are_recognised() -> None:
    """A question leans on earlier turns by a pronoun, a conjunction, or having no subject."""
    history = (Turn("user", "What is a kiln?"),)
    for text in ("And the price?", "How hot does it get?", "Why?", "那它有多热？"):
        assert Prompt(text, history=history).is_follow_up
        assert not Prompt(text).is_follow_up
    assert not Prompt("How hot does a kiln get?", history=history).is_follow_up


def test_searches_of_a_follow_up_carry_the_subject() -> None:
    """What 'it' means is in the search."""
    history = (Turn("user", "What is a kiln?"), Turn("assistant", "An oven."))
    for query in questions.decompose(Prompt("How hot does it get?", history=history), 3):
        assert "kiln" in query


@given(
    text=st.text(st.sampled_from("0123456789.,+-*/%^() ×÷的次方是x") | st.characters(), max_size=60)
)
def test_expressions_are_always_valid(text: str) -> None:
    """Whatever is written, what is taken for arithmetic parses as arithmetic."""
    for expression in arithmetic.expressions(text):
        compile(expression, "expression", "eval")
        assert set(expression) <= set("0123456789.+-*/%() ")


def test_time_zones_are_named_once_in_order() -> None:
    """Cities in two languages and zone names come out as IANA names."""
    assert moments.time_zones("Tokyo, 上海 and Europe/Rome, then tokyo") == [
        "Asia/Tokyo",
        "Asia/Shanghai",
        "Europe/Rome",
    ]
    assert moments.time_zones("nowhere") == []


def test_a_prompt_is_read_whole() -> None:
    """Passages with ids and titles, tool results, question and history are told apart."""
    prompt = parse(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "<question>first</question>"},
            {"role": "assistant", "content": "said"},
            {
                "role": "user",
                "content": "<passages>\n[1] (a-1) Title\nText [7] here.\n[3] not a header\n\n"
                "[2] (b) 题目\n文字\n</passages>\n<tool_results>\nf(x=1) = 2\ng() = 3\n"
                "</tool_results>\n<question>\nsecond\n</question>",
            },
        ]
    )

    assert prompt.question == "second"
    assert prompt.instructions == "Be kind."
    assert [(each.number, each.document_id, each.title) for each in prompt.passages] == [
        (1, "a-1", "Title"),
        (2, "b", "题目"),
    ]
    assert "[3] not a header" in prompt.passages[0].text
    assert prompt.tool_texts == ("f(x=1) = 2", "g() = 3")
    assert [(turn.role, turn.text) for turn in prompt.history] == [
        ("user", "first"),
        ("assistant", "said"),
    ]
