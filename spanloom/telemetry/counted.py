"""Attributes, events and links together with how many more there were, as the SDK counts them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.util import BoundedList

T = TypeVar("T")


def counted_attributes(attributes: Mapping[str, Any], dropped: int) -> BoundedAttributes:
    """Make attributes of which `dropped` more were too many."""
    counted = BoundedAttributes(attributes=attributes, immutable=True)
    counted.dropped = dropped
    return counted


def counted_items(items: Sequence[T], dropped: int) -> BoundedList[T]:
    """Make a list of events or links of which `dropped` more were too many."""
    counted: BoundedList[T] = BoundedList(None)
    counted.extend(items)
    counted.dropped = dropped
    return counted
