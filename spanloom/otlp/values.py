"""Attribute values, resources and scopes between model and OTLP message (common.proto).

The read functions turn messages into values of the model, the write functions fill messages.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1 import resource_pb2

from spanloom.model import Attributes, AttributeValue, EntityRef, Resource, Scope

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

_SCALARS: Final = frozenset(
    {"string_value", "int_value", "bool_value", "double_value", "bytes_value"}
)


class KeyValues(Protocol):
    """A repeated KeyValue field, as far as it is written to."""

    def add(self) -> KeyValue:
        """Append an empty pair and return it."""


def clean(text: str) -> str:
    """Text that UTF-8 can carry: pairs of surrogates joined, lone ones as U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def read_attributes(pairs: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    """Key-value pairs as a mapping in their order; of a repeated key the last one holds."""
    attributes: dict[str, AttributeValue] = {}
    for pair in pairs:
        value = pair.value
        kind = value.WhichOneof("value")
        # Not by way of read_value: the calls would be a third of decoding a span.
        attributes[pair.key] = getattr(value, kind) if kind in _SCALARS else read_value(value)
    return attributes


def read_value(value: AnyValue) -> AttributeValue:
    """One AnyValue; an empty one is None."""
    kind = value.WhichOneof("value")
    if kind in _SCALARS:
        scalar: str | int | bool | float | bytes = getattr(value, kind)
        return scalar
    if kind == "array_value":
        return tuple([read_value(item) for item in value.array_value.values])
    if kind == "kvlist_value":
        return read_attributes(value.kvlist_value.values)
    return None


def write_attributes(target: KeyValues, attributes: Attributes) -> None:
    """Append every attribute to a repeated KeyValue field."""
    add = target.add
    for key, value in attributes.items():
        pair = add()
        try:
            pair.key = key
            # The two most frequent types first and in line, as storing a span spends most of its
            # time here.
            if type(value) is str:
                pair.value.string_value = value
            elif type(value) is int:
                pair.value.int_value = value
            else:
                write_value(pair.value, value)
        except ValueError:  # a lone surrogate, or over 64 bits
            pair.key = clean(key)
            write_value(pair.value, value)


def write_value(target: AnyValue, value: AttributeValue) -> None:
    """Fill an empty AnyValue. An int that 64 bits cannot hold becomes its decimal text."""
    if isinstance(value, str):
        target.string_value = value if value.isascii() else clean(value)
    elif isinstance(value, bool):  # before int, of which bool is a kind
        target.bool_value = value
    elif isinstance(value, int):
        if INT64_MIN <= value <= INT64_MAX:
            target.int_value = value
        else:
            target.string_value = str(value)
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, bytes):
        target.bytes_value = value
    elif isinstance(value, Mapping):
        target.kvlist_value.SetInParent()
        write_attributes(target.kvlist_value.values, value)
    elif value is None:
        target.SetInParent()
    else:
        target.array_value.SetInParent()
        for item in value:
            write_value(target.array_value.values.add(), item)


def read_resource(message: resource_pb2.Resource, schema_url: str) -> Resource:
    """A resource with the schema URL that OTLP keeps beside it."""
    return Resource(
        attributes=read_attributes(message.attributes),
        dropped_attributes_count=message.dropped_attributes_count,
        entity_refs=tuple(
            EntityRef(
                type=ref.type,
                id_keys=tuple(ref.id_keys),
                description_keys=tuple(ref.description_keys),
                schema_url=ref.schema_url,
            )
            for ref in message.entity_refs
        ),
        schema_url=schema_url,
    )


def write_resource(target: resource_pb2.Resource, resource: Resource) -> None:
    """Fill an empty Resource; its schema URL belongs one level higher."""
    target.SetInParent()
    write_attributes(target.attributes, resource.attributes)
    target.dropped_attributes_count = resource.dropped_attributes_count
    for ref in resource.entity_refs:
        target.entity_refs.add(
            type=clean(ref.type),
            id_keys=[clean(key) for key in ref.id_keys],
            description_keys=[clean(key) for key in ref.description_keys],
            schema_url=clean(ref.schema_url),
        )


def read_scope(message: InstrumentationScope, schema_url: str) -> Scope:
    """A scope with the schema URL that OTLP keeps beside it."""
    return Scope(
        name=message.name,
        version=message.version,
        attributes=read_attributes(message.attributes),
        dropped_attributes_count=message.dropped_attributes_count,
        schema_url=schema_url,
    )


def write_scope(target: InstrumentationScope, scope: Scope) -> None:
    """Fill an empty InstrumentationScope; its schema URL belongs one level higher."""
    target.SetInParent()
    target.name = clean(scope.name)
    target.version = clean(scope.version)
    write_attributes(target.attributes, scope.attributes)
    target.dropped_attributes_count = scope.dropped_attributes_count
