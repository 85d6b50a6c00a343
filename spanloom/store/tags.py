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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

import orjson
from opentelemetry.proto.common.v1.common_pb2 import ArrayValue, KeyValueList

from spanloom.model import Attributes, AttributeValue, Span, SpanKind, StatusCode
from spanloom.otlp.values import clean, write_attributes, write_value

TagPairs: TypeAlias = frozenset[tuple[str, str]]
"""Keys with the texts of their values."""

ERROR: Final = "error"
SPAN_KIND: Final = "span.kind"
# Not legal as attribute keys of ours, so that they never meet a real one.
SERVICE: Final = "\0service"
OPERATION: Final = "\0operation"


def tag_hash(key: str, text: str) -> int:
    """The number a block keeps for a tag."""
    tag = f"{key}={text}"
    try:
        return crc32(tag.encode())
    except UnicodeEncodeError:  # hash what will be stored
        return crc32(clean(tag).encode())


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
    try:
        return orjson.dumps(value, default=_plain).decode()
    except TypeError:  # a lone surrogate, or an integer over 64 bits
        return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def attribute_hashes(attributes: Attributes) -> list[int]:
    """Tag hashes of a set of attributes."""
    hashes: list[int] = []
    for key, value in attributes.items():
        if type(value) is str or type(value) is int:  # nearly all
            hashes.append(tag_hash(key, str(value)))
        else:
            hashes.extend(tag_hash(key, text) for text in texts(value))
    return hashes


def span_hashes(span: Span) -> set[int]:
    """Tag hashes of a span's own attributes, events and links, its kind and its error.

    Resource, scope, service and operation are shared by many spans and hashed where they are
    interned.
    """
    hashes = set(attribute_hashes(span.attributes))
    for event in span.events:
        hashes.update(attribute_hashes(event.attributes))
    for link in span.links:
        hashes.update(attribute_hashes(link.attributes))
    hashes.add(_KIND_HASHES[span.kind])
    if span.status.code is StatusCode.ERROR:
        hashes.add(_ERROR_HASH)
    return hashes


_KIND_NAMES: Final = {kind.value: kind.name.lower() for kind in SpanKind}
_KIND_HASHES: Final = {kind: tag_hash(SPAN_KIND, name) for kind, name in _KIND_NAMES.items()}
_ERROR_HASH: Final = tag_hash(ERROR, "true")


def pairs(attributes: Attributes) -> TagPairs:
    """Every key with every text of its value."""
    return frozenset((key, text) for key, value in attributes.items() for text in texts(value))


class Wanted(NamedTuple):
    """One tag of a query, with the bytes that an encoded span must contain to have it.

    Looking for bytes is far cheaper than decoding. `key_bytes` must occur, and one of
    `value_bytes` unless that is empty.
    """

    key: str
    text: str
    key_bytes: bytes
    value_bytes: tuple[bytes, ...]

    @classmethod
    def of(cls, key: str, text: str) -> "Wanted":
        """Encode the text as each of the types whose value it may be."""
        values: tuple[bytes, ...] = ()
        # The JSON of a collection can be encoded in too many ways; NaN in many, too.
        if not text.startswith(("[", "{")) and text != "nan":
            values = tuple(needle for value in _readings(text) for needle in _encodings(key, value))
        return cls(key, text, clean(key).encode(), values)

    def may_be_in(self, details: bytes) -> bool:
        """Whether an encoded span can have the tag; False is certain."""
        return self.key_bytes in details and (
            not self.value_bytes or any(value in details for value in self.value_bytes)
        )


def _readings(text: str) -> Iterator[AttributeValue]:
    yield text
    if text in ("true", "false"):
        yield text == "true"
    with suppress(ValueError):
        yield int(text)
    with suppress(ValueError):
        yield float(text)
    with suppress(ValueError):
        yield base64.b64decode(text, validate=True)


def _encodings(key: str, value: AttributeValue) -> Iterator[bytes]:
    """A value as it stands in a KeyValue of this key, and as it stands in an array."""
    pair = KeyValueList()
    write_attributes(pair.values, {key: value})
    yield pair.values[0].SerializeToString()
    array = ArrayValue()
    write_value(array.values.add(), value)
    yield array.SerializeToString()


class TagMatcher:
    """Checks spans against the tags of one query."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._wanted = tuple(Wanted.of(key, text) for key, text in tags.items())
        self.hashes = [tag_hash(key, text) for key, text in tags.items()]

    def remaining(
        self, *, status: int, kind: int, shared: Iterable[TagPairs]
    ) -> tuple[Wanted, ...]:
        """The tags that status, kind, resource and scope do not meet already."""
        met = {(SPAN_KIND, _KIND_NAMES.get(kind))}
        if status == StatusCode.ERROR:
            met.add((ERROR, "true"))
        return tuple(
            wanted
            for wanted in self._wanted
            if (wanted.key, wanted.text) not in met
            and not any((wanted.key, wanted.text) in have for have in shared)
        )
