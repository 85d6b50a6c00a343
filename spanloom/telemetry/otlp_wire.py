"""OTLP's attributes and values as protobuf: https://protobuf.dev/programming-guides/encoding/.

The messages are KeyValue, AnyValue, ArrayValue and KeyValueList of `common/v1/common.proto`. Their
tags, field number and wire type, begin with small numbers, so each is one byte.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

MAX_DEPTH: Final = 16
"""Of attributes inside attributes: many who read protobuf give up at 100 messages inside each
other, and each of these is three."""
_MAX_KEYS: Final = 4_096
_MAX_KEY: Final = 256
"""Length of a key that is remembered: somebody else may have chosen it."""
_SMALL: Final = 1 << 11
_WORD: Final = 1 << 64
_INT64: Final = 1 << 63
_IS_SHORT: Final = 120
"""Bytes of a text whose message still has a length of one byte."""
fixed64 = struct.Struct("<Q").pack
_double = struct.Struct("<d").pack

_keys: dict[str, bytes] = {}


def _key(key: str) -> bytes:
    """Encode KeyValue.key, and the tag of KeyValue.value; a program has few keys."""
    known = field(b"\x0a", key.encode()) + b"\x12"
    if len(_keys) < _MAX_KEYS and len(key) <= _MAX_KEY:
        _keys[key] = known
    return known


def append_attributes(
    parts: list[bytes], tag: bytes, values: Mapping[str, Any], depth: int = 1
) -> None:
    """Append a repeated KeyValue."""
    known, varints = _keys.get, _VARINTS
    for key, value in values.items():
        head = known(key) or _key(key)
        if value.__class__ is str:
            text = value.encode()
            size = len(text)
            whole = len(head) + size + 3
            if whole < _IS_SHORT:  # each length is one byte
                parts.append(
                    tag + varints[whole] + head + varints[size + 2] + b"\x0a" + varints[size] + text
                )
                continue
            encoded = b"\x0a" + varint(size) + text
        else:
            encoded = encode_value(value, depth)
        pair = head + varint(len(encoded)) + encoded
        parts.append(tag + varint(len(pair)) + pair)


def encode_value(value: Any, depth: int = 0) -> bytes:
    """Encode an AnyValue. ValueError, TypeError: it is none."""
    match value:
        case bool():
            encoded = b"\x10\x01" if value else b"\x10\x00"
        case str():
            encoded = field(b"\x0a", value.encode())
        case int() if -_INT64 <= value < _INT64:
            encoded = b"\x18" + varint(value % _WORD)
        case float():
            encoded = b"\x21" + _double(value)
        case None:
            encoded = b""
        case bytes():
            encoded = field(b"\x3a", value)
        case Mapping() if depth < MAX_DEPTH:
            parts: list[bytes] = []
            texts = {str(key): one for key, one in value.items()}
            append_attributes(parts, b"\x0a", texts, depth + 1)
            encoded = field(b"\x32", b"".join(parts))
        case Sequence() if depth < MAX_DEPTH:
            parts = [field(b"\x0a", encode_value(one, depth + 1)) for one in value]
            encoded = field(b"\x2a", b"".join(parts))
        case _:
            raise ValueError(f"{type(value).__qualname__}: as large, deep or odd, this is no value")
    return encoded


def field(tag: bytes, content: bytes) -> bytes:
    """Encode a field with a length, also when it is empty."""
    return tag + varint(len(content)) + content


def text_field(tag: bytes, text: str) -> bytes:
    """Encode a text, which is left out when it is empty."""
    return field(tag, text.encode()) if text else b""


def _long_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_VARINTS: Final = [_long_varint(number) for number in range(_SMALL)]


def varint(number: int) -> bytes:
    """Encode a number from 0, seven bits a byte."""
    return _VARINTS[number] if number < _SMALL else _long_varint(number)
