"""Answers quoted from the sources of a prompt, never written freely.

The sentences that best cover the question are taken from the passages, put back in reading
order and cited; results of tools are quoted; questions about the conversation are answered from
its history. When nothing matches, the answer says so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from service.llm import language, questions, ranking
from service.llm.prompt import Prompt
from service.llm.ranking import Sentence

NOTICES: Final = {
    "en": "(Offline extractive model: it quotes the given sources and writes nothing of its own.)",
    "zh": "（离线抽取式模型：只摘引所给资料，不自行撰写内容。）",
}
_NOTHING_FOUND: Final = {
    "en": "I found nothing in the given passages that answers this: {missing}.",
    "zh": "所给资料中没有找到能回答这个问题的内容：{missing}。",
}
_NO_SOURCES: Final = {
    "en": "I am an offline extractive model: I can only quote from passages, tool results or the "
    "conversation, and none was given for this question.",
    "zh": "我是离线抽取式模型，只能引用所给的资料、工具结果或对话内容，"
    "而这个问题没有附带任何资料。",
}
TOOL_RESULT: Final = {"en": "Tool result: {text}", "zh": "工具结果：{text}"}
_EARLIER_QUESTIONS: Final = {
    "en": "Earlier in this conversation you asked: {quotes}.",
    "zh": "在这次对话中，您之前问过：{quotes}。",
}
_EARLIER_WORDS: Final = {
    "en": "Earlier in this conversation {who} said: {quote}",
    "zh": "在这次对话中，{who}说过：{quote}",
}
_WHO: Final = {
    ("en", "user"): "you",
    ("en", "assistant"): "I",
    ("zh", "user"): "您",
    ("zh", "assistant"): "我",
}

# About the conversation: someone in it asked or said something, or a turn of it is named.
_ABOUT_CONVERSATION: Final = re.compile(
    r"\b(?:did|have|had) (?:i|you|we)\b[^.?]{0,24}"
    r"\b(?:ask(?:ed)?|sa(?:y|id)|tell|told|mention(?:ed)?|discuss(?:ed)?|talk(?:ed)?)\b"
    r"|\b(?:i|you|we) (?:just |already |previously |first |last )?"
    r"(?:asked|said|told|mentioned|discussed|talked)\b"
    r"|\b(?:my|your|our) (?:very )?(?:first|last|previous|earlier) \w+"
    r"|\b(?:this|our) (?:conversation|chat)\b|\bdo you (?:still )?(?:remember|recall)\b"
    r"|(?:我们?|你|您)(?:刚才|刚刚|之前|上次|前面|最开始|最初)?(?:问|说|提|聊|讲)(?:过|了|到|的)"
    r"|(?:刚才|之前|上一个|第一个|最后一个|前面).{0,4}(?:问题|回答|消息)|还记得|(?:这次|我们的)对话",
    re.IGNORECASE,
)
_ABOUT_ASKER: Final = re.compile(r"\b(?:my|mine|am i)\b|我的|我叫|我是|我在", re.IGNORECASE)
_CLAUSE: Final = re.compile(r"[,，;；]")
_ASKED: Final = re.compile(r"\b(?:ask(?:ed)?|questions?)\b|问", re.IGNORECASE)
_FIRST: Final = re.compile(r"\bfirst\b|第一|最开始|最初", re.IGNORECASE)
_LATEST: Final = re.compile(r"\b(?:last|just|previous)\b|刚才|刚刚|上一|最后", re.IGNORECASE)
WANTS_REFERENCES: Final = re.compile(
    r"\b(?:refer(?:s|red|ences?)?(?: to)?|cross-references?|see also|cit(?:e|es|ed|ations?)"
    r"|further reading|related (?:articles?|documents?))\b"
    r"|参见|参考(?:了)?(?:哪|什么)|引用|相关文章|延伸阅读",
    re.IGNORECASE,
)
_REFERENCE_LIST: Final = re.compile(
    r"^(?:references?|see also|related|参考|参见|引用)[^:：\n]{0,20}[:：].+$",
    re.IGNORECASE | re.MULTILINE,
)
_CITATION: Final = re.compile(r"\s*\[\d+\]")

# So many words of a question are named when nothing was found for it.
_WORDS_NAMED: Final = 12
# Tool results up to this many characters are quoted whole; longer ones are searched.
_SHORT_RESULT: Final = 400
# Sources that speak of a subject this much as the one that does most are about it too.
_SAME_SUBJECT: Final = 0.9


@dataclass(frozen=True, slots=True)
class Care:
    """How much work a model size puts into an answer."""

    max_sentences: int
    min_coverage: float
    """Below this share of the question's terms, what was found is not called an answer."""
    relative_gain: float
    """A further sentence must add this share of what the best one gives."""


def answer(prompt: Prompt, care: Care, *, with_notice: bool = True) -> str:
    """The answer to the prompt's question, in its language where the sources allow."""
    tongue = language.detect(prompt.question)
    parts = _tool_quotes(prompt, tongue)
    quoted = _from_conversation(prompt, tongue) or _from_sources(prompt, care, tongue)
    if quoted:
        parts.append(quoted)
    if not parts:
        if not prompt.passages and not prompt.tool_texts:
            return _NO_SOURCES[tongue]
        missing = "、" if tongue == "zh" else ", "
        words = language.content_words(prompt.question) or [prompt.question]
        parts.append(_NOTHING_FOUND[tongue].format(missing=missing.join(words[:_WORDS_NAMED])))
    if with_notice:
        parts.append(NOTICES[tongue])
    return "\n\n".join(parts)


def source_sentences(prompt: Prompt) -> list[Sentence]:
    """Every sentence the prompt's passages and long tool results hold."""
    found: list[Sentence] = []
    for index, passage in enumerate(prompt.passages):
        label = f"[{passage.number}]" if passage.number else ""
        title = f"{passage.title} {passage.document_id}"
        found += ranking.sentences_of(passage.text, source=index, title=title, label=label)
    for offset, text in enumerate(prompt.tool_texts, start=len(prompt.passages)):
        if len(text) > _SHORT_RESULT:
            found += ranking.sentences_of(text, source=offset)
    return found


def question_terms(prompt: Prompt) -> tuple[list[str], list[str]]:
    """Terms of the question, and those lent by earlier turns or by what a draft lacked."""
    own = language.terms(prompt.question)
    lent = language.terms(" ".join(prompt.earlier_questions[-2:])) if prompt.is_follow_up else []
    return own, lent + language.terms(prompt.missing)


def tool_quotes_in(text: str) -> list[str]:
    """The results of tools that an answer of this model quotes."""
    openings = tuple(form.split("{")[0] for form in TOOL_RESULT.values())
    return [line for line in text.split("\n\n") if line.startswith(openings)]


def claims(text: str) -> list[str]:
    """What an answer says of its own: its sentences without citations, notices, tool quotes."""
    for quote in tool_quotes_in(text):
        text = text.replace(quote, "")
    for notice in NOTICES.values():
        text = text.replace(notice, "")
    return [
        sentence
        for sentence in language.sentences(_CITATION.sub("", text))
        if language.terms(sentence) and not _says_nothing_found(sentence)
    ]


def abstains(text: str) -> bool:
    """Does the answer say, in this model's words, that nothing was found?"""
    return any(_says_nothing_found(sentence) for sentence in language.sentences(text))


def _says_nothing_found(sentence: str) -> bool:
    openings = (text.split("{")[0] for text in (*_NOTHING_FOUND.values(), *_NO_SOURCES.values()))
    return any(sentence.startswith(opening[:24]) for opening in openings)


def _tool_quotes(prompt: Prompt, tongue: language.Language) -> list[str]:
    quotes: list[str] = []
    for text in prompt.tool_texts:
        if len(text) <= _SHORT_RESULT:
            quotes.append(text)
        elif WANTS_REFERENCES.search(prompt.question):
            quotes += [match.group() for match in _REFERENCE_LIST.finditer(text)]
    return [TOOL_RESULT[tongue].format(text=quote) for quote in quotes]


def _from_sources(prompt: Prompt, care: Care, tongue: language.Language) -> str:
    candidates = source_sentences(prompt)
    own, lent = question_terms(prompt)
    known = ranking.idf(sentence.terms | sentence.title_terms for sentence in candidates)
    # What an earlier turn lends is the subject; words the sources do not know are not part of it.
    weights = ranking.question_weights(own, known, context=[term for term in lent if term in known])
    chosen: list[Sentence] = []
    defines = language.asks_for_definition(prompt.question)
    # Each part of a question gets its best sentence before any gets a second.
    for part in questions.sides(prompt.question):
        asked = ranking.question_weights(language.terms(part), known)
        chosen += ranking.choose(candidates, asked, limit=1, prefer=tongue, prefer_subject=defines)
    if lent:
        # A follow-up asks something new of a subject that is known: what is new comes first.
        asked = ranking.question_weights(own, known)
        about = _about(lent, candidates, known)
        chosen += ranking.choose(about, asked, limit=1, prefer=tongue)
        if all(any(term in each.terms for each in about) for term in own if term in known):
            candidates = about
    chosen += ranking.choose(
        candidates,
        weights,
        limit=care.max_sentences,
        prefer=tongue,
        prefer_numbers=language.asks_for_quantity(prompt.question),
        prefer_subject=defines,
        relative_gain=care.relative_gain,
    )
    chosen = list(dict.fromkeys(chosen))[: care.max_sentences]
    if not _speak_of(chosen, own or lent, care.min_coverage):
        return ""
    if defines:
        chosen = _with_following(chosen, candidates)
    chosen = _with_antecedents(chosen, candidates)
    return _render(sorted(chosen, key=lambda sentence: (sentence.source, sentence.position)))


def _speak_of(chosen: Sequence[Sentence], asked: Sequence[str], min_coverage: float) -> bool:
    """Do the sentences share enough of the question's terms, or two that stand side by side?"""
    heard = [sentence.terms | sentence.title_terms for sentence in chosen]
    spoken = frozenset[str]().union(*heard)
    if ranking.coverage(ranking.even_weights(asked), spoken) >= min_coverage:
        return bool(spoken)
    # In Chinese two words make three pairs of characters, so one word of two is a third of them:
    # enough when the title has it too.
    if any(
        term in sentence.terms & sentence.title_terms and not term.isascii()
        for term in asked
        for sentence in chosen
    ):
        return True
    pairs = {(one, other) for one, other in pairwise(asked) if one != other}
    return any(one in terms and other in terms for one, other in pairs for terms in heard)


def _about(
    subject: Sequence[str], candidates: Sequence[Sentence], known: Mapping[str, float]
) -> list[Sentence]:
    """The sentences of those sources that speak most of `subject`, title or text."""
    weights = ranking.question_weights([term for term in subject if term in known], known)
    heard: dict[int, frozenset[str]] = {}
    for each in candidates:
        heard[each.source] = heard.get(each.source, frozenset()) | each.terms | each.title_terms
    spoken = {source: ranking.coverage(weights, terms) for source, terms in heard.items()}
    most = max(spoken.values(), default=0.0)
    return [each for each in candidates if spoken[each.source] >= most * _SAME_SUBJECT]


def _with_following(chosen: Sequence[Sentence], candidates: Sequence[Sentence]) -> list[Sentence]:
    """With the sentence after the best one: what a thing is takes more than the naming of it."""
    best = chosen[0]
    following = [
        each
        for each in candidates
        if (each.source, each.position) == (best.source, best.position + 1)
        and each.title_terms == best.title_terms  # of the same section
    ]
    return list(dict.fromkeys([*chosen, *following]))


def _with_antecedents(chosen: Sequence[Sentence], candidates: Sequence[Sentence]) -> list[Sentence]:
    by_place = {(sentence.source, sentence.position): sentence for sentence in candidates}
    kept = {(sentence.source, sentence.position): sentence for sentence in chosen}
    for sentence in chosen:
        before = (sentence.source, sentence.position - 1)
        if language.opens_with_anaphor(sentence.text) and before in by_place:
            kept.setdefault(before, by_place[before])
    return list(kept.values())


def _render(chosen: Sequence[Sentence]) -> str:
    """Quoted sentences in order; a citation closes each run from one source."""
    text = ""
    for index, sentence in enumerate(chosen):
        if text and not _ends_chinese(text):
            text += " "
        text += sentence.text
        following = chosen[index + 1] if index + 1 < len(chosen) else None
        if sentence.label and (following is None or following.label != sentence.label):
            text += f" {sentence.label}"
            if following is not None and _ends_chinese(sentence.text):
                text += " "
    return text


def _ends_chinese(text: str) -> bool:
    return text.endswith(("。", "！", "？", "；", "”", " "))


def _from_conversation(prompt: Prompt, tongue: language.Language) -> str:
    """An answer from earlier turns, if the question is about them."""
    if not prompt.history:
        return ""
    question = prompt.question
    about_itself = _ABOUT_CONVERSATION.search(question) is not None
    if not about_itself and not _ABOUT_ASKER.search(question):
        return ""
    earlier = prompt.earlier_questions
    if about_itself and _ASKED.search(question) and earlier:
        if _FIRST.search(question):
            asked: Sequence[str] = earlier[:1]
        elif _LATEST.search(question):
            asked = earlier[-1:]
        else:
            asked = earlier
        quotes = "；".join(f"“{text}”" for text in asked)
        return _EARLIER_QUESTIONS[tongue].format(
            quotes=quotes if tongue == "zh" else quotes.replace("；", "; ")
        )
    if about_itself:
        spoken = [(turn.role, claim) for turn in prompt.history for claim in claims(turn.text)]
        return _matching_words(prompt, spoken, tongue) or _all_said(prompt, tongue)
    # About the asker: what they stated of themselves, if they did; else it is for the sources.
    stated = [
        ("user", clause.strip())
        for earlier_text in earlier
        for claim in claims(earlier_text)
        for clause in _CLAUSE.split(claim)
        if _ABOUT_ASKER.search(clause) and not clause.rstrip().endswith(("?", "？"))
    ]
    return _matching_words(prompt, stated, tongue)


def _matching_words(
    prompt: Prompt, spoken: Sequence[tuple[str, str]], tongue: language.Language
) -> str:
    """The one of the things spoken, each by a role, that matches the question best."""
    own = language.terms(prompt.question)
    candidates = [
        sentence
        for source, (role, text) in enumerate(spoken)
        for sentence in ranking.sentences_of(text, source=source, label=role)
    ]
    weights = ranking.question_weights(own, ranking.idf(each.terms for each in candidates))
    # A single Han character has no bigram of its own, so it is looked for inside the words.
    lone = {term for term in own if len(term) == 1 and not term.isascii()}
    candidates = [
        Sentence(
            each.text,
            each.source,
            each.position,
            each.terms | {char for char in lone if char in each.text},
            each.title_terms,
            each.label,
        )
        for each in candidates
    ]
    chosen = ranking.choose(candidates, weights, limit=1, prefer=tongue)
    return "".join(
        _EARLIER_WORDS[tongue].format(who=_WHO[tongue, each.label], quote=f"“{each.text}”")
        for each in chosen
    )


def _all_said(prompt: Prompt, tongue: language.Language) -> str:
    turn = prompt.history[-1]
    said = " ".join(claims(turn.text))
    return (
        _EARLIER_WORDS[tongue].format(who=_WHO[tongue, turn.role], quote=f"“{said}”")
        if said
        else ""
    )
