"""OTLP JSON for any OTLP message, driven by the message's own descriptor.

OTLP JSON is proto3 JSON with exceptions (opentelemetry-proto, docs/specification.md): ids are
hex instead of base64, enums are numbers and never names, keys are lowerCamelCase only. So
`google.protobuf.json_format` reads it wrongly, while this walk knows every field there is,
those of future versions of opentelemetry-proto included.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from spanloom.errors import MalformedPayloadError
from spanloom.otlp.values import clean

MAX_DEPTH: Final = 100
"""How deep messages may nest: what the protobuf parser itself allows."""

_HEX_FIELDS: Final = frozenset({"trace_id", "span_id", "parent_span_id"})
_INVALID_ID: Final = b"\0"
"""Stands for hex that cannot be read: of a length no id has, so that validation refuses it."""
_BIG_INTS: Final = frozenset(
    {
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
        FieldDescriptor.TYPE_SINT64,
    }
)

_M = TypeVar("_M", bound=Message)


class _Field(NamedTuple):
    name: str
    json_name: str
    repeated: bool
    type: int


class _Wrong(Exception):  # noqa: N818 - never leaves this module
    """A value that does not fit its field; collects the path while it rises."""

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(f"expected {expected}, got {_describe(got)}")
        self.path: list[str] = []


def _describe(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case str():
            return json.dumps(value[:40])
        case _:
            return json.dumps(value)[:40]


def to_json(message: Message) -> dict[str, Any]:
    """The OTLP JSON object of a message, ready for any JSON encoder; defaults left out."""
    document: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.is_repeated:
            document[field.json_name] = [_scalar_to_json(field, item) for item in value]
        else:
            document[field.json_name] = _scalar_to_json(field, value)
    return document


def _scalar_to_json(field: FieldDescriptor, value: Any) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return to_json(value)
    if kind in _BIG_INTS:
        return str(value)
    if kind == FieldDescriptor.TYPE_BYTES:
        hexadecimal = field.name in _HEX_FIELDS
        return value.hex() if hexadecimal else base64.b64encode(value).decode("ascii")
    if kind == FieldDescriptor.TYPE_DOUBLE and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def from_json(body: bytes, message: _M) -> _M:
    """Fill an empty message from the bytes of an OTLP JSON object.

    Unknown fields are ignored, null counts as absent, 64-bit integers may be text or numbers.

    Raises:
        MalformedPayloadError: not JSON, or a value does not fit its field; the message names
            the place, as in `resourceSpans[0].scopeSpans[0].spans[3].kind`.
    """
    try:
        document = _parse(body)
        _fill(message, document, 0)
    except _Wrong as wrong:
        place = "".join(reversed(wrong.path)).removeprefix(".") or "the body"
        raise MalformedPayloadError(f"Not OTLP JSON: {place}: {wrong}.") from wrong
    return message


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    # The standard library also takes what orjson refuses and producers do send: lone
    # surrogates, NaN and Infinity.
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedPayloadError(
            f"The body is not JSON ({error}); send an OTLP JSON object, "
            "or set Content-Type to application/x-protobuf for protobuf."
        ) from error


@lru_cache(maxsize=256)
def _fields(descriptor: Descriptor) -> Mapping[str, _Field]:
    return {
        field.json_name: _Field(field.name, field.json_name, field.is_repeated, field.type)
        for field in descriptor.fields
    }


def _fill(message: Message, document: Any, depth: int) -> None:
    if not isinstance(document, dict):
        raise _Wrong("an object", document)
    if depth > MAX_DEPTH:
        raise _Wrong(f"at most {MAX_DEPTH} levels", document)
    fields = _fields(message.DESCRIPTOR)
    for key, value in document.items():
        field = fields.get(key)
        if field is None or value is None:
            continue
        try:
            if field.repeated:
                _fill_repeated(getattr(message, field.name), field, value, depth)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                child = getattr(message, field.name)
                child.SetInParent()
                _fill(child, value, depth + 1)
            else:
                setattr(message, field.name, _scalar_from_json(field, value))
        except _Wrong as wrong:
            wrong.path.append(f".{field.json_name}")
            raise
        except (ValueError, OverflowError) as error:  # out of the field's range
            misfit = _Wrong("a number in the range of the field", value)
            misfit.path.append(f".{field.json_name}")
            raise misfit from error


def _fill_repeated(container: Any, field: _Field, values: Any, depth: int) -> None:
    if not isinstance(values, list):
        raise _Wrong("an array", values)
    for index, value in enumerate(values):
        try:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                _fill(container.add(), {} if value is None else value, depth + 1)
            else:
                container.append(_scalar_from_json(field, value))
        except _Wrong as wrong:
            wrong.path.append(f"[{index}]")
            raise


def _scalar_from_json(field: _Field, value: Any) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            if not isinstance(value, str):
                raise _Wrong("text", value)
            return clean(value)
        case FieldDescriptor.TYPE_BOOL:
            if not isinstance(value, bool):
                raise _Wrong("true or false", value)
            return value
        case FieldDescriptor.TYPE_DOUBLE:
            return _double(value)
        case FieldDescriptor.TYPE_BYTES:
            return _bytes(field, value)
        case _:
            return _integer(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise _Wrong("an integer", value)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():  # 1e9 is how some encoders write it
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise _Wrong("an integer", value)


def _double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Wrong("a number", value)
    try:
        return float(value)  # also "NaN", "Infinity" and "-Infinity"
    except (ValueError, OverflowError):
        raise _Wrong("a number", value) from None


def _bytes(field: _Field, value: Any) -> bytes:
    if not isinstance(value, str):
        raise _Wrong("hex text" if field.name in _HEX_FIELDS else "base64 text", value)
    if field.name in _HEX_FIELDS:
        try:
            return bytes.fromhex(value)
        except ValueError:
            return _INVALID_ID
    try:
        # Both alphabets are legal in proto3 JSON, with and without padding.
        plain = value.translate(str.maketrans("-_", "+/")).rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _Wrong("base64 text", value) from None
