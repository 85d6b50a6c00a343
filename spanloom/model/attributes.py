"""Attribute values, and the resource and scope every signal belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from spanloom import semconv

AttributeValue: TypeAlias = (
    "None | str | bool | int | float | bytes | tuple[AttributeValue, ...] "
    "| Mapping[str, AttributeValue]"
)
"""An OTLP AnyValue: an empty one is None, an array a tuple, a key-value list a mapping."""

Attributes: TypeAlias = Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class EntityRef:
    """Which resource attributes identify and describe one entity (opentelemetry-proto, common)."""

    type: str
    id_keys: tuple[str, ...] = ()
    description_keys: tuple[str, ...] = ()
    schema_url: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """Who produced the telemetry."""

    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    entity_refs: tuple[EntityRef, ...] = ()
    schema_url: str = ""

    @property
    def service_name(self) -> str:
        """`service.name`, or `unknown_service` as the resource conventions ask for."""
        name = self.attributes.get(semconv.SERVICE_NAME)
        return name if isinstance(name, str) and name else "unknown_service"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which library produced the telemetry."""

    name: str = ""
    version: str = ""
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    schema_url: str = ""
