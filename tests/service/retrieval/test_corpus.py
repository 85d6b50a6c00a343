import re

import pytest

from service.retrieval.documents import load
from service.retrieval.live import SHIPPED_CORPUS

LOADED = load(SHIPPED_CORPUS)
ARTICLES = {document.document_id: document for document in LOADED.documents}
HAN = re.compile("[一-鿿]")
CODE = re.compile(r"`[^`]*`")


def test_every_file_is_an_article() -> None:
    """Nothing that is shipped is skipped or has to be renamed."""
    assert LOADED.skipped == ()
    assert LOADED.renamed == {}
    assert all(
        d.document_id == d.source.split("/")[1].removesuffix(".md") for d in LOADED.documents
    )


def test_there_are_enough_in_both_languages() -> None:
    """At least 44 articles, about half in each language."""
    languages = [document.language for document in LOADED.documents]

    assert len(languages) >= 44
    assert 0.4 <= languages.count("zh") / len(languages) <= 0.6
    assert set(languages) == {"en", "zh"}


@pytest.mark.parametrize("document_id", ARTICLES)
def test_an_article_has_substance(document_id: str) -> None:
    """250 words or 400 Chinese characters at least, under headings, in the stated language."""
    article = ARTICLES[document_id]
    length = len(HAN.findall(article.text) if article.language == "zh" else article.text.split())

    assert length >= (400 if article.language == "zh" else 250)
    assert "\n## " in article.text
    assert article.source.startswith(article.language)


@pytest.mark.parametrize("document_id", ARTICLES)
def test_every_reference_leads_to_an_article(document_id: str) -> None:
    """An article refers to others, in its text too, and each of them exists."""
    article = ARTICLES[document_id]

    assert "[[" in article.text
    assert document_id not in article.references
    assert set(article.references) <= set(ARTICLES)


def test_every_article_can_be_reached() -> None:
    """Some other article refers to each."""
    reached = {reference for article in ARTICLES.values() for reference in article.references}

    assert set(ARTICLES) - reached == set()


def test_the_kv_cache_is_explained_in_both_languages() -> None:
    """The subject most asked about is there for both readers."""
    titles = {
        a.language: a.title for a in ARTICLES.values() if a.document_id.startswith("kv-cache")
    }

    assert set(titles) == {"en", "zh"}


def test_articles_are_distinguishable() -> None:
    """No two share a title or a paragraph."""
    paragraphs = [
        paragraph
        for article in ARTICLES.values()
        for paragraph in article.text.split("\n\n")
        if len(paragraph) > 40
    ]

    assert len({article.title for article in ARTICLES.values()}) == len(ARTICLES)
    assert len(set(paragraphs)) == len(paragraphs)
