r"""Tags: what a search can ask of a span, as text.

attribute value      texts it is found by
"chat"               chat
True                 true
3, 1.0, 0.5          3; 1.0 and 1; 0.5
("stop", "length")   stop, length and ["stop","length"]
b"\x00"               AA==
{"id": 1}            {"id":1}
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from spanloom.model import Attributes, AttributeValue, Span, SpanKind, StatusCode

TagPairs: TypeAlias = frozenset[tuple[str, str]]
"""Keys with the texts of their values."""

ERROR: Final = "error"
SPAN_KIND: Final = "span.kind"
# Not legal as attribute keys of ours, so that they never meet a real one.
SERVICE: Final = "\0service"
OPERATION: Final = "\0operation"

_NOT_PLAIN_TEXT: Final = re.compile(r"[-+]?[0-9.]|true$|false$|[-+]?inf$|nan$|[\[{]")


def tag_hash(key: str, text: str) -> int:
    """The number a block keeps for a tag."""
    return crc32(f"{key}={text}".encode(errors="replace"))


def texts(value: AttributeValue) -> Iterator[str]:
    """Every text an attribute value is found by; an empty value by none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield "true" if value else "false"
    elif isinstance(value, int):
        yield str(value)
    elif isinstance(value, float):
        text = repr(value)
        yield text
        if text.endswith(".0"):
            yield text[:-2]
    elif isinstance(value, bytes):
        yield base64.b64encode(value).decode("ascii")
    elif isinstance(value, Mapping):
        yield _json(value)
    elif value is not None:
        yield _json(value)
        for item in value:
            yield from texts(item)


def _json(value: AttributeValue) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: AttributeValue) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value


def attribute_hashes(attributes: Attributes) -> Iterator[int]:
    """Tag hashes of a set of attributes."""
    for key, value in attributes.items():
        if type(value) is str:  # by far the most frequent
            yield crc32(f"{key}={value}".encode(errors="replace"))
        else:
            for text in texts(value):
                yield tag_hash(key, text)


def span_hashes(span: Span) -> Iterator[int]:
    """Tag hashes of a span's own attributes, events and links, its kind and its error.

    Resource, scope, service and operation are shared by many spans and hashed where they are
    interned.
    """
    yield from attribute_hashes(span.attributes)
    for event in span.events:
        yield from attribute_hashes(event.attributes)
    for link in span.links:
        yield from attribute_hashes(link.attributes)
    if span.status.code is StatusCode.ERROR:
        yield _ERROR_TRUE


_ERROR_TRUE: Final = tag_hash(ERROR, "true")
KIND_HASHES: Final = {kind.value: tag_hash(SPAN_KIND, kind.name.lower()) for kind in SpanKind}


def pairs(attributes: Attributes) -> TagPairs:
    """Every key with every text of its value."""
    return frozenset((key, text) for key, value in attributes.items() for text in texts(value))


class Wanted(NamedTuple):
    """One tag of a query.

    `key_bytes` and one of `value_bytes`, if there are any, must occur in an encoded span that
    has the tag: looking for them is far cheaper than decoding.
    """

    key: str
    text: str
    key_bytes: bytes
    value_bytes: tuple[bytes, ...]

    @classmethod
    def of(cls, key: str, text: str) -> "Wanted":
        """Strings and bytes stand in a message as they are.

        Where the text may be that of a number, a boolean or a collection, only the key counts.
        """
        values: tuple[bytes, ...] = ()
        if not _NOT_PLAIN_TEXT.match(text):
            values = (text.encode(errors="replace"),)
            with suppress(ValueError):
                values += (base64.b64decode(text, validate=True),)
        return cls(key, text, key.encode(errors="replace"), values)

    def may_be_in(self, details: bytes) -> bool:
        """Whether an encoded span can have the tag; False is certain."""
        return self.key_bytes in details and (
            not self.value_bytes or any(value in details for value in self.value_bytes)
        )


class TagMatcher:
    """Checks the spans of a block against the tags of one query."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._wanted = [Wanted.of(key, text) for key, text in tags.items()]
        self.hashes = [tag_hash(key, text) for key, text in tags.items()]

    def remaining(self, *, status: int, kind: int, shared: Iterable[TagPairs]) -> list[Wanted]:
        """The tags that status, kind, resource and scope do not meet already."""
        met = {(SPAN_KIND, _KIND_NAMES.get(kind))}
        if status == StatusCode.ERROR:
            met.add((ERROR, "true"))
        return [
            wanted
            for wanted in self._wanted
            if (wanted.key, wanted.text) not in met
            and not any((wanted.key, wanted.text) in have for have in shared)
        ]


_KIND_NAMES: Final = {kind.value: kind.name.lower() for kind in SpanKind}
