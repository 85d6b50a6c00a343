"""W3C Baggage: the `baggage` header (https://www.w3.org/TR/baggage/).

OpenTelemetry's own propagator reads only the first of several `baggage` headers, drops all of one
that is too long, takes `+` for a space, makes a member's properties part of its value, and writes
the header's content into the log when it cannot read it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, Self
from urllib.parse import quote, unquote

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from spanloom.telemetry.tracecontext import OWS, header_lines

BAGGAGE: Final = "baggage"

MAX_RECEIVED_BAGGAGE_LENGTH: Final = 16_384
"""Longest `baggage` that is read, in characters, all lines together."""
MAX_BAGGAGE_LENGTH: Final = 8_192
"""Longest `baggage` that is carried on, in bytes: the least that the standard asks for."""
MAX_MEMBERS: Final = 180
"""Most members that are carried on: all that the grammar allows; the standard asks for 64."""

_KEY_CHARACTERS: Final = "!#$&'*+-.^_`|~"  # besides letters, digits and "%"
_VALUE_CHARACTERS: Final = "!#$&'()*-./:<=>?@[]^_`{|}~"  # "+" is legal too, but some read a space
_TOKEN: Final = re.compile(rf"[A-Za-z0-9%{re.escape(_KEY_CHARACTERS)}]+")
_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")


class ValueWithProperties(str):
    """A baggage value that came with properties (`value;ttl=3;internal`), which go on with it."""

    __slots__ = ("properties",)
    properties: str  # as received, without the first ";"

    def __new__(cls, value: str, properties: str = "") -> Self:
        """Attach the properties to the value."""
        self = super().__new__(cls, value)
        self.properties = properties
        return self


class BaggagePropagator(TextMapPropagator):
    """Reads and writes `baggage`; never raises for what a header holds, and drops whole members."""

    @property
    def fields(self) -> set[str]:
        """The header name."""
        return {BAGGAGE}

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Read the caller's entries; members that break the grammar are left out."""
        context = Context() if context is None else context
        lines = header_lines(getter, carrier, BAGGAGE)
        if not lines or sum(map(len, lines)) + len(lines) > MAX_RECEIVED_BAGGAGE_LENGTH:
            return context
        members = (text.strip(OWS) for line in lines for text in line.split(","))
        for member in _within_limits(text for text in members if text):
            entry = _decode(member)
            if entry is not None:
                context = baggage.set_baggage(*entry, context=context)
        return context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the entries in their order, as many as fit."""
        entries = baggage.get_all(context)
        members = (_encode(key, value) for key, value in entries.items() if key)
        if header := ",".join(_within_limits(members)):
            setter.set(carrier, BAGGAGE, header)


def _within_limits(members: Iterable[str]) -> Iterator[str]:
    """Yield the members that fit, from the left; one that is too long does not end the list."""
    count, length = 0, -1
    for member in members:
        if count == MAX_MEMBERS:
            return
        if length + 1 + len(member) <= MAX_BAGGAGE_LENGTH:
            count += 1
            length += 1 + len(member)
            yield member


def _decode(member: str) -> tuple[str, str] | None:
    pair, _, properties = member.partition(";")
    key, equals, value = pair.partition("=")
    key, value = key.rstrip(OWS), value.strip(OWS)
    if not equals or not _TOKEN.fullmatch(key) or not _VALUE.fullmatch(value):
        return None
    if properties and not all(map(_is_property, properties.split(";"))):
        return None
    text = unquote(value, errors="replace")
    return _decode_key(key), ValueWithProperties(text, properties) if properties else text


def _is_property(text: str) -> bool:
    key, _, value = text.partition("=")
    return bool(_TOKEN.fullmatch(key.strip(OWS)) and _VALUE.fullmatch(value.strip(OWS)))


def _encode(key: str, value: object) -> str:
    text = quote(str(value), safe=_VALUE_CHARACTERS, errors="replace")
    member = f"{_encode_key(key)}={text}"
    return f"{member};{value.properties}" if isinstance(value, ValueWithProperties) else member


# The header takes tokens for keys, OpenTelemetry takes any text. One that is no token travels
# percent-encoded, as between OpenTelemetry's own Python services; a token is never touched.


def _encode_key(key: str) -> str:
    return key if _TOKEN.fullmatch(key) else _quote_key(key)


def _decode_key(token: str) -> str:
    key = unquote(token, errors="replace")
    return token if _TOKEN.fullmatch(key) or _quote_key(key) != token else key


def _quote_key(key: str) -> str:
    return quote(key, safe=_KEY_CHARACTERS, errors="replace")
