"""Is an answer grounded in its sources, does it cover its question, and what is left out."""

from dataclasses import dataclass, replace
from typing import Final

from service.llm import arithmetic, extractive, language, moments, ranking
from service.llm.extractive import Care
from service.llm.prompt import Prompt

# A sentence of which this share of the content terms stands in one source is taken from it.
_SUPPORT: Final = 0.6
# One that joins several sources needs more, since common words are found in any large text.
_SUPPORT_TOGETHER: Final = 0.9
# An answer that speaks about this share of its question's terms covers it.
_COMPLETE: Final = 0.4


@dataclass(frozen=True, slots=True)
class Judgement:
    """What overlap of terms says about an answer; not whether it is true."""

    grounded: bool
    complete: bool
    missing: tuple[str, ...]
    """Words of the question the answer does not speak about, as written there; none if it is
    good as it is."""
    unsupported: tuple[str, ...]
    """Sentences of the answer that no source supports."""
    coverage: float
    """Share of the question, 0 to 1, the answer speaks about."""

    @property
    def shortcomings(self) -> str:
        """What to add, or else what to take back; empty if nothing."""
        return ", ".join(self.missing) or " ".join(self.unsupported)


def judge(prompt: Prompt, care: Care) -> Judgement:
    """Judge the prompt's `<answer>`; without one, the answer its passages would give."""
    text = prompt.answer
    if text is None:
        text = extractive.answer(prompt, care, with_notice=False)
    claims = extractive.claims(text)
    sources = [
        frozenset(language.terms(f"{passage.title} {passage.document_id} {passage.text}"))
        for passage in prompt.passages
    ]
    # What a tool, or someone in an earlier turn, said is a source too; the question is none.
    sources += [
        frozenset(language.terms(said))
        for said in (
            *prompt.tool_texts,
            *(turn.text for turn in prompt.history),
        )
        if said
    ]
    own, _lent = extractive.question_terms(prompt)
    weights = ranking.even_weights(own)
    said_terms = frozenset(term for claim in claims for term in language.terms(claim))
    # A sentence that cites a passage speaks of what that passage's title names.
    for passage in prompt.passages:
        if f"[{passage.number}]" in text:
            said_terms |= frozenset(language.terms(f"{passage.title} {passage.document_id}"))
    if quotes := extractive.tool_quotes_in(text):
        said_terms |= frozenset(language.terms(" ".join(quotes)))
        said_terms |= _answered_by_tools(prompt.question)
    covered = ranking.coverage(weights, said_terms) if weights else float(bool(claims or quotes))
    unsupported = tuple(claim for claim in claims if not _supported(claim, sources))
    grounded = not unsupported
    complete = covered >= _COMPLETE if claims or quotes else _honest(prompt, text, care)
    surfaces = language.surface_terms(prompt.question)
    missing = dict.fromkeys(surface for term, surface in surfaces.items() if term not in said_terms)
    return Judgement(
        grounded=grounded,
        complete=complete,
        missing=() if grounded and complete else tuple(missing),
        unsupported=unsupported,
        coverage=covered,
    )


def _honest(prompt: Prompt, text: str, care: Care) -> bool:
    """Does an answer that finds nothing rightly say so?"""
    own = replace(prompt, answer=None)
    return extractive.abstains(text) and extractive.abstains(
        extractive.answer(own, care, with_notice=False)
    )


def _answered_by_tools(question: str) -> frozenset[str]:
    """Terms of those sentences of the question that a calculation or the clock answers."""
    return frozenset(
        term
        for sentence in language.sentences(question)
        if moments.asks_for_now(sentence) or arithmetic.expressions(sentence)
        for term in language.terms(sentence)
    )


def _supported(claim: str, sources: list[frozenset[str]]) -> bool:
    terms = frozenset(language.terms(claim))
    together = frozenset[str]().union(*sources)
    return len(terms & together) >= _SUPPORT_TOGETHER * len(terms) or any(
        len(terms & source) >= _SUPPORT * len(terms) for source in sources
    )
