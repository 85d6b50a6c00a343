"""Walks the fields of an OTLP message type: every way to set exactly one leaf."""

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

Path: TypeAlias = tuple[str, ...]

_IDS: Final = {"trace_id": b"\x01" * 16, "span_id": b"\x02" * 8, "parent_span_id": b"\x03" * 8}
_SAMPLES: Final[dict[int, Any]] = {
    FieldDescriptor.TYPE_STRING: "文",
    FieldDescriptor.TYPE_BYTES: b"\x00\xff",
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_DOUBLE: 2.5,
    FieldDescriptor.TYPE_ENUM: 2,
}


def leaf_paths(descriptor: Descriptor, prefix: Path = (), above: Path = ()) -> Iterator[Path]:
    """Paths to all leaves; a type that contains itself is entered twice at most."""
    above = (*above, descriptor.full_name)
    for field in descriptor.fields:
        path = (*prefix, field.name)
        if field.message_type is None:
            yield path
        elif above.count(field.message_type.full_name) < 2:
            yield from leaf_paths(field.message_type, path, above)


def sample(message: Message, path: Path) -> Any:
    """The value a leaf is set to: never its default."""
    field = _field(message, path)
    return _IDS.get(field.name, _SAMPLES.get(field.type, 7))


def set_leaf(message: Message, path: Path) -> None:
    """Set one leaf; repeated fields on the way get one element, or use the one they have."""
    value = sample(message, path)
    target: Any = message
    for name in path[:-1]:
        child = getattr(target, name)
        if _is_repeated(target, name):
            target = child[0] if len(child) else child.add()
        else:
            child.SetInParent()
            target = child
    if _is_repeated(target, path[-1]):
        getattr(target, path[-1]).append(value)
    else:
        setattr(target, path[-1], value)


def get_leaf(message: Message, path: Path) -> Any:
    """The value of a leaf, the first of a repeated one; None if it, or its parent, is not set."""
    target: Any = message
    for name in path:
        field = target.DESCRIPTOR.fields_by_name[name]
        if field.has_presence and not target.HasField(name):
            return None
        target = getattr(target, name)
        if field.is_repeated:
            if not len(target):
                return None
            target = target[0]
    return target


def _field(message: Message, path: Path) -> FieldDescriptor:
    descriptor = message.DESCRIPTOR
    for name in path[:-1]:
        child = descriptor.fields_by_name[name].message_type
        assert child is not None
        descriptor = child
    return descriptor.fields_by_name[path[-1]]


def _is_repeated(message: Message, name: str) -> bool:
    return message.DESCRIPTOR.fields_by_name[name].is_repeated
