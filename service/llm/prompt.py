"""What a chat request asks: question, passages, tool results, answer to judge, history.

Prompts put their material in tags (`<passages>`, `<tool_results>`, `<question>`, `<answer>`,
`<missing>`), or in the plain form `Context: … Question: …`; without either, the last user
message is the question.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.llm import language
from service.llm.tokenizer import content_text

_PASSAGE_TAGS: Final = frozenset({"passages", "context", "documents", "sources", "search_results"})
_WRITTEN_BY_USERS: Final = frozenset({"question", "query"})
_TAG: Final = re.compile(
    r"<(passages|context|documents|sources|search_results|tool_results"
    r"|question|query|answer|draft|missing)>"
)
_PASSAGE_HEADER: Final = re.compile(r"^\[(\d+)\][ \t]*(?:\(([^)\n]+)\))?[ \t]*(.*)$", re.MULTILINE)
# "name(arguments) = content": results in one block begin with the call they answer.
_TOOL_RESULT_START: Final = re.compile(r"^(?=[\w.-]+\([^\n]*\)\s*(?:=|:|->|→))", re.MULTILINE)
_PLAIN_CONTEXT: Final = re.compile(
    r"^[ ]?(?:context|passages|documents|上下文|资料|文档) ?[:：]", re.IGNORECASE | re.MULTILINE
)
_PLAIN_QUESTION: Final = re.compile(
    r"^[ ]?(?:question|query|问题) ?[:：]", re.IGNORECASE | re.MULTILINE
)
# Runs of blanks mean nothing here, and several patterns below would take quadratic time on them.
_BLANKS: Final = re.compile(r"[^\S\n]+")
_EMPTY_LINES: Final = re.compile(r"\n(?: ?\n){2,}")
# A question is a few sentences; of a longer text the head is looked at.
MAX_QUESTION_CHARS: Final = 4_000


@dataclass(frozen=True, slots=True)
class Passage:
    """A numbered piece of source text; `number` 0 where the prompt gave none."""

    number: int
    document_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier message of the conversation; `role` is `user` or `assistant`."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallMade:
    """A tool call of the present turn; `result` is None while it is unanswered."""

    name: str
    arguments: str
    result: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat request, understood."""

    question: str
    instructions: str = ""
    passages: tuple[Passage, ...] = ()
    tool_results: str = ""
    answer: str | None = None
    """An answer to judge."""
    missing: str = ""
    """What an earlier draft of the answer lacked."""
    history: tuple[Turn, ...] = ()
    tool_calls: tuple[ToolCallMade, ...] = ()

    @property
    def tool_texts(self) -> tuple[str, ...]:
        """What tools answered in this turn, one text each."""
        told = (text.strip() for text in _TOOL_RESULT_START.split(self.tool_results))
        answered = (call.result.strip() for call in self.tool_calls if call.result)
        return tuple(text for text in (*answered, *told) if text)

    @property
    def is_follow_up(self) -> bool:
        """Does the question lean on the turns before it?"""
        if not self.history:
            return False
        return (
            language.continues(self.question)
            or language.has_anaphor(self.question)
            or not language.terms(self.question)
        )

    @property
    def earlier_questions(self) -> tuple[str, ...]:
        """What the user said before, oldest first."""
        return tuple(turn.text for turn in self.history if turn.role == "user")


def parse(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Read a list of messages in OpenAI's wire form; any order of roles is taken."""
    last_user = max(
        (index for index, message in enumerate(messages) if message.get("role") == "user"),
        default=len(messages),
    )
    system_text = "\n".join(
        content_text(message.get("content"))
        for message in messages
        if message.get("role") in ("system", "developer")
    )
    user_text = content_text(messages[last_user]["content"]) if last_user < len(messages) else ""
    blocks, prose = _blocks(_tidy(user_text))
    system_blocks, system_prose = _blocks(_tidy(system_text))
    for tag, text in system_blocks.items():
        blocks.setdefault(tag, text)
    question = blocks.get("question", blocks.get("query"))
    if question is None:
        context, question = _plain_form(prose)
        if context:
            blocks.setdefault("context", context)
        instructions = system_prose
    else:
        instructions = f"{system_prose}\n{prose}"
    passages = tuple(
        passage
        for tag, block in blocks.items()
        if tag in _PASSAGE_TAGS
        for passage in _passages(block)
    )
    return Prompt(
        question=question.strip()[:MAX_QUESTION_CHARS],
        instructions=instructions.strip(),
        passages=passages,
        tool_results=blocks.get("tool_results", "").strip(),
        answer=blocks.get("answer"),
        missing=blocks.get("missing", "").strip(),
        history=_history(messages[:last_user]),
        tool_calls=_tool_calls(messages[last_user + 1 :]),
    )


def _tidy(text: str) -> str:
    return _EMPTY_LINES.sub("\n\n", _BLANKS.sub(" ", text))


def _plain_form(prose: str) -> tuple[str, str]:
    """Context and question of `Context: … Question: …`; else nothing and the whole text."""
    context = _PLAIN_CONTEXT.search(prose)
    asked = list(_PLAIN_QUESTION.finditer(prose))
    if context is None or not asked or asked[-1].start() < context.end():
        return "", prose
    return prose[context.end() : asked[-1].start()].strip(), prose[asked[-1].end() :]


def _blocks(text: str) -> tuple[dict[str, str], str]:
    """Tagged blocks by tag, and the prose around them.

    Read from the left, so a tag inside a block is that block's text. A question reaches to the
    last of its closing tags and the first block of a tag is the one that counts: what a user
    writes cannot pass for material.
    """
    blocks: dict[str, str] = {}
    prose: list[str] = []
    position = 0
    while opening := _TAG.search(text, position):
        tag = opening[1]
        closing = f"</{tag}>"
        find_end = text.rfind if tag in _WRITTEN_BY_USERS else text.find
        end = find_end(closing, opening.end())
        if end < 0:
            break
        prose.append(text[position : opening.start()])
        blocks.setdefault(tag, text[opening.end() : end])
        position = end + len(closing)
    prose.append(text[position:])
    return blocks, "\n".join(part.strip() for part in prose if part.strip())


def _passages(block: str) -> list[Passage]:
    headers: list[re.Match[str]] = []
    for header in _PASSAGE_HEADER.finditer(block):
        # A bracketed number at the start of a line of text is not a header out of turn.
        if not headers or int(header[1]) == int(headers[-1][1]) + 1:
            headers.append(header)
    if not headers:
        return [Passage(0, "", "", block.strip())] if block.strip() else []
    ends = [header.start() for header in headers[1:]] + [len(block)]
    return [
        _passage(header, block[header.end() : end].strip())
        for header, end in zip(headers, ends, strict=True)
    ]


def _passage(header: re.Match[str], text: str) -> Passage:
    title = header[3].strip()
    if not text:  # "[1] the text itself": there is no title
        title, text = "", title
    return Passage(int(header[1]), (header[2] or "").strip(), title, text)


def _history(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for message in messages:
        role = message.get("role")
        text = _tidy(content_text(message.get("content"))).strip()
        if role not in ("user", "assistant") or not text:
            continue
        if role == "user":
            blocks, prose = _blocks(text)
            text = blocks.get("question", blocks.get("query", prose)).strip()
        turns.append(Turn(role, text))
    return tuple(turns)


def _tool_calls(messages: Sequence[Mapping[str, Any]]) -> tuple[ToolCallMade, ...]:
    results = {
        message.get("tool_call_id"): _tidy(content_text(message.get("content")))
        for message in messages
        if message.get("role") == "tool"
    }
    return tuple(
        ToolCallMade(
            call["function"]["name"], call["function"]["arguments"], results.get(call["id"])
        )
        for message in messages
        for call in message.get("tool_calls") or ()
    )
