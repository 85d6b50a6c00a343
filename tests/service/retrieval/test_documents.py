from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.retrieval.documents import (
    OVERLAP_UNITS,
    PASSAGE_UNITS,
    Document,
    content_hash,
    load,
    parse,
    slug,
    split,
)
from service.retrieval.tokenize import count_units

Library = Callable[..., Path]


def reasons(root: Path) -> dict[str, str]:
    return {skipped.source: skipped.reason for skipped in load(root).skipped}


def test_front_matter_gives_what_it_says(library: Library) -> None:
    """Id, title, language and references come from it; the text begins behind it."""
    root = library(a_md="---\nid: kv\ntitle: 'T: x'\nlanguage: zh\nrelated: [b]\n---\nBody [[c]].")

    document = load(root).documents[0]

    assert document == Document("kv", "T: x", "zh", "Body [[c]].", ("b", "c"), "a.md")


def test_without_front_matter_the_text_speaks(library: Library) -> None:
    """Title from the first heading or the file's name, language from the script."""
    root = library(notes__设计_md="# 缓存设计\n内容", plain_txt="Just words.")

    first, second = load(root).documents

    assert (first.document_id, first.title, first.language) == ("notes-设计", "缓存设计", "zh")
    assert (second.document_id, second.title, second.language) == ("plain", "plain", "en")


@pytest.mark.parametrize("head", ["---\n: [\n---\n", "---\njust a line\n---\n", "---\nno end\n"])
def test_what_only_looks_like_front_matter_is_text(head: str) -> None:
    """Broken YAML, YAML that is no mapping, or an unclosed block loses no text."""
    assert "Body" in parse(f"{head}Body", "a.md").text


def test_a_byte_order_mark_is_no_text(library: Library) -> None:
    """Files from Windows editors begin with a BOM and end lines with CRLF."""
    root = library(a_txt="\ufeffFirst line\r\nsecond".encode())

    assert load(root).documents[0].text == "First line\nsecond"


def test_files_that_cannot_be_used_are_named_with_the_reason(library: Library) -> None:
    """Every skipped file says why, and how to convert it where that helps."""
    root = library(
        gb_txt="显存不够的时候应该怎么处理这个问题".encode("gb18030"),
        latin_txt="café crème brûlée à la carte".encode("latin-1"),
        utf16_txt="text".encode("utf-16"),
        binary_txt=b"\x7fELF\0\0",
        empty_md="",
        blank_md="  \n\n",
        head_md="---\ntitle: only\n---\n",
        good_md="Good.",
    )

    found = reasons(root)

    assert [d.source for d in load(root).documents] == ["good.md"]
    assert "iconv -f GB18030 -t UTF-8" in found["gb.txt"]
    assert "ISO-8859-1" in found["latin.txt"]
    assert "UTF-16" in found["utf16.txt"]
    assert "binary" in found["binary.txt"]
    assert found["empty.md"] == found["blank.md"] == found["head.md"] == "is empty"


def test_other_and_hidden_files_are_not_looked_at(library: Library) -> None:
    """Only .md, .markdown and .txt, and nothing below .git and the like."""
    root = library(a_md="A")
    (root / ".git").mkdir()
    (root / ".git/x.md").write_text("hidden")
    (root / "picture.png").write_bytes(b"\x89PNG")

    loaded = load(root)

    assert ([d.source for d in loaded.documents], loaded.skipped) == (["a.md"], ())


def test_a_taken_id_gets_a_number(library: Library) -> None:
    """Two documents of one id are both kept, and the second one's new id is told."""
    root = library(
        a_md="---\nid: x\n---\nOne", b_md="---\nid: x\n---\nTwo", c_md="---\nid: x\n---\nThree"
    )

    loaded = load(root)

    assert [d.document_id for d in loaded.documents] == ["x", "x-2", "x-3"]
    assert loaded.renamed == {"b.md": "x-2", "c.md": "x-3"}


def test_a_copy_is_indexed_once(library: Library) -> None:
    """The same text twice would only crowd the results."""
    root = library(a_md="Same.", b_md="Same.")

    assert reasons(root) == {"b.md": "has the same text as a.md"}


def test_a_single_file_can_be_indexed(library: Library) -> None:
    """PATH may be a file."""
    root = library(a_md="A", b_md="B")

    assert [d.document_id for d in load(root / "a.md").documents] == ["a"]


def test_the_hash_follows_names_and_contents(library: Library) -> None:
    """A changed, renamed, added or removed file changes the hash; nothing else does."""
    root = library(a_md="A", b_md="B")
    before = content_hash(root)
    assert content_hash(root) == before

    (root / "a.md").write_text("A!")
    changed = content_hash(root)
    (root / "a.md").rename(root / "c.md")
    renamed = content_hash(root)

    assert len({before, changed, renamed}) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Notes/My File", "notes-my-file"),
        ("设计 文档", "设计-文档"),
        ("a__b", "a__b"),
        ("../x?", "x"),
    ],
)
def test_an_id_fits_one_segment_of_a_path(name: str, expected: str) -> None:
    """No slash, space or query character survives; letters of any script do."""
    assert slug(name) == expected


def document(text: str) -> Document:
    return Document("d", "T", "en", text)


def test_short_sections_share_a_passage_and_long_ones_do_not() -> None:
    """Sections are packed whole up to the limit, and the passage names their headings."""
    section = "word " * 100
    text = f"{section}\n\n## One\n\n{section}\n\n## Two\n\n{section}"

    first, second = split(document(text))

    assert (first.heading, second.heading) == ("One", "Two")
    assert (first.passage_id, second.passage_id) == ("d#1", "d#2")
    assert "## One" in first.text


def test_a_long_section_overlaps_with_itself() -> None:
    """The next passage begins with the last sentences of the one before."""
    sentences = " ".join(f"Sentence number {n} of the long section." for n in range(200))

    passages = list(split(document(sentences)))

    assert len(passages) > 3
    for before, after in pairwise(passages):
        opening = after.text.split("\n\n")[0]
        assert before.text.endswith(opening)
        assert 0 < count_units(opening) <= OVERLAP_UNITS


def test_chinese_without_paragraphs_is_cut_at_its_full_stops() -> None:
    """A wall of Chinese text is split after 。 and no sentence is torn."""
    sentence = "缓存命中率下降时应当先检查前缀是否稳定。"
    passages = list(split(document(sentence * 60)))

    assert len(passages) > 1
    assert all(set(p.text.replace("\n\n", "").split("。")) == {sentence[:-1], ""} for p in passages)


def test_a_heading_inside_a_fence_is_code() -> None:
    """`#` in a shell snippet starts no section."""
    passages = list(split(document("## Real\n\n```sh\n# not a heading\n```")))

    assert [p.heading for p in passages] == ["Real"]


def test_references_read_as_plain_words() -> None:
    """A passage shows the id without the brackets."""
    assert next(iter(split(document("See [[kv-cache]].")))).text == "See kv-cache."


@given(st.text(alphabet=st.sampled_from("ab .\n#。缓存`"), min_size=1, max_size=3000))
def test_no_text_is_lost_and_no_passage_is_too_long(text: str) -> None:
    """Every character that says something is in some passage, and limits hold for any text."""
    passages = list(split(document(text.strip() or "x")))

    joined = "".join(p.text for p in passages)
    assert set("ab缓存") & set(text) <= set(joined)
    assert all(count_units(p.text) <= PASSAGE_UNITS + OVERLAP_UNITS for p in passages)


def test_a_word_without_end_is_cut() -> None:
    """A base64 blob of a megabyte becomes passages of bounded length."""
    passages = list(split(document("缓" * 20_000)))

    assert max(len(p.text) for p in passages) <= PASSAGE_UNITS * 6 + OVERLAP_UNITS * 2
