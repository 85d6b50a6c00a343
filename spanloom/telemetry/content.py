"""What is said to models and tools, as span attributes: off unless it is asked for.

    rules() is None                          off: callers stop here, nothing is read
    rules().text("…")                        redacted, then capped
    rules().value(arguments)                 the same for every text in it, secrets by name too

On spans the conventions want structured values, or a JSON string where those cannot be. It is a
JSON string here: this SDK could store structured values, but Jaeger, Tempo and older collectors
show them flattened, as Go maps or not at all, `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT` bounds
strings only, and other GenAI instrumentations of Python (util-genai 1.3) write strings too, so
that whoever reads the attributes has to parse one form.
"""

import dataclasses
import enum
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from opentelemetry.trace import Span

from spanloom.telemetry.redaction import REDACTED, SCANNED, cap, is_secret_name, redact
from spanloom.telemetry.settings import (
    CONTENT_VARIABLES,
    DEFAULT_CONTENT_LIMIT,
    TelemetrySettings,
    content_choice,
)

T = TypeVar("T")
Json = Any

_logger: Final = logging.getLogger(__name__)

_TEXTS_PER_ATTRIBUTE: Final = 16
"""How many texts of full length fit into one attribute; 64 KiB with the default limit."""
_DEEPEST: Final = 12
_INT_BITS: Final = 64
_SEAM: Final = 512
"""End of a text whose rest was never seen: a secret that begins there is not recognised."""
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/_=-]{256}")
"""No text of people or programs goes on for so long without a space: encoded bytes."""
_DATA_URL: Final = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?[^,]{0,200};base64,")


@dataclass(frozen=True, slots=True)
class ContentRules:
    """How content is captured: length of each text, and the user's own redaction."""

    limit: int = DEFAULT_CONTENT_LIMIT
    """Most characters of one text."""
    redact: Callable[[str], str] | None = None
    """Called with each text after our own redaction; what it returns is written."""

    @property
    def total(self) -> int:
        """Most characters of one attribute, its JSON included; markers come on top."""
        return self.limit * _TEXTS_PER_ATTRIBUTE

    def text(self, text: str, *, unseen: int = 0) -> str:
        """Redact and cap one text; `unseen` characters that follow were not kept.

        Encoded bytes become a note of their size.
        """
        if (over := len(text) - SCANNED) > 0:
            text, unseen = text[:SCANNED], unseen + over
        if url := _DATA_URL.match(text):
            size = decoded_size(len(text) + unseen - url.end())
            return f"[{url[1] or 'data'}, {size} bytes]"
        if _ENCODED.match(text):
            return f"[encoded data, {len(text) + unseen} characters]"
        text = redact(text, SCANNED)
        if self.redact is not None:
            text = self._redact_as_told(self.redact, text)
        if unseen:
            kept = text[: max(0, min(len(text) - _SEAM, self.limit))]
            text = f"{kept} …[{len(text) - len(kept) + unseen} characters left out]"
        else:
            text = cap(text, self.limit)
        try:
            text.encode()
        except UnicodeEncodeError:  # half a character would cost the exporter the whole batch
            text = text.encode("utf-8", "replace").decode()
        return text

    @staticmethod
    def _redact_as_told(redact_text: Callable[[str], str], text: str) -> str:
        try:
            redacted: object = redact_text(text)
        except Exception:  # whatever it was meant to hide stays hidden
            _logger.debug("the redaction of the application failed", exc_info=True)
            return REDACTED
        return redacted if isinstance(redacted, str) else REDACTED

    def value(self, value: Any, *, is_schema: bool = False) -> Json:
        """Make JSON of anything; what cannot be is represented by the name of its type.

        In a JSON schema (`is_schema`) a property named `password` is no secret.
        """
        return _Walk(self, names_tell=not is_schema).value(value, 0)


class _Walk:
    """Copies one value, as far as there is room for it."""

    __slots__ = ("_names_tell", "_room", "_rules")

    def __init__(self, rules: ContentRules, *, names_tell: bool) -> None:
        self._rules = rules
        self._room = rules.total // 2  # the other half is for quotes, escapes and the rest
        self._names_tell = names_tell

    def value(self, value: Any, depth: int) -> Json:
        try:
            return self._value(value, depth)
        except Exception:  # noqa: BLE001 - its own methods are somebody else's code
            return type_name(value)

    def _value(self, value: Any, depth: int) -> Json:
        self._room -= 4
        shown: Json
        match value:
            case None | bool():
                shown = value
            case enum.Enum():
                shown = self._value(value.value, depth)
            case str():
                shown = self._rules.text(value)
                self._room -= len(shown)
            case int():
                shown = value if value.bit_length() < _INT_BITS else type_name(value)
            case float():
                shown = value if math.isfinite(value) else str(value)
            case bytes() | bytearray() | memoryview():
                shown = f"[{type(value).__name__}, {len(value)} bytes]"
            case _ if depth >= _DEEPEST:
                shown = type_name(value)
            case Mapping():
                shown = self._mapping(value.items(), len(value), depth)
            case list() | tuple() | set() | frozenset():
                shown = self._items(value, len(value), depth)
            case _:
                fields = _fields_of(value)
                shown = (
                    type_name(value)
                    if fields is None
                    else self._mapping(fields.items(), len(fields), depth)
                )
        return shown

    def _mapping(self, items: Iterable[tuple[Any, Any]], count: int, depth: int) -> Json:
        shown: dict[str, Json] = {}
        for key, value in items:
            if self._room <= 0:
                shown["…"] = f"[{count - len(shown)} entries left out]"
                break
            name = self._rules.text(key) if isinstance(key, str) else self._key(key)
            self._room -= len(name)
            if self._names_tell and value is not None and is_secret_name(name):
                shown[name] = REDACTED
            else:
                shown[name] = self.value(value, depth + 1)
        return shown

    def _items(self, items: Iterable[Any], count: int, depth: int) -> Json:
        shown: list[Json] = []
        for item in items:
            if self._room <= 0:
                shown.append(f"[{count - len(shown)} items left out]")
                break
            shown.append(self.value(item, depth + 1))
        return shown

    @staticmethod
    def _key(key: Any) -> str:
        return str(key) if isinstance(key, int) and key.bit_length() < _INT_BITS else type_name(key)


def _fields_of(value: Any) -> Mapping[str, Any] | None:
    """The fields of a dataclass or pydantic object, without calling its code."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.repr}
    if isinstance(getattr(type(value), "model_fields", None), Mapping):
        return {name: vars(value)[name] for name in type(value).model_fields if name in vars(value)}
    return None


def type_name(value: object) -> str:
    """What stands for a value that cannot be written."""
    return f"<{type(value).__module__}.{type(value).__qualname__}>".replace("<builtins.", "<")


def decoded_size(characters: int) -> int:
    """Bytes in so many characters of base64."""
    return characters * 3 // 4


def dump(value: Json) -> str:
    """The value as compact JSON, with letters of all scripts as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def fit(
    items: Sequence[T], render: Callable[[T], str], total: int, marker: Callable[[int], str]
) -> str:
    """A JSON array of the rendered items with `total` characters at most, besides a marker.

    The last item is always there, then the first, then the others from the end; `marker` says
    how many are missing between. What is left out is not rendered.
    """
    if not items:
        return "[]"
    tail = [render(items[-1])]
    room = total - len(tail[0]) - 2
    head: list[str] = []
    index = len(items) - 2
    if index >= 0 and len(first := render(items[0])) < room:
        head.append(first)
        room -= len(first) + 1
    while index >= len(head) and len(text := render(items[index])) < room:
        tail.append(text)
        room -= len(text) + 1
        index -= 1
    if left_out := index + 1 - len(head):
        tail.append(marker(left_out))
    return f"[{','.join(head + tail[::-1])}]"


_rules: ContentRules | None = None
_is_decided = False


def rules() -> ContentRules | None:
    """How to capture content now; None: not at all.

    Where neither `setup` nor the instrumentor has said it, the environment does.
    """
    if not _is_decided:
        settings = TelemetrySettings.from_env()
        for problem in settings.problems:
            if problem.startswith(CONTENT_VARIABLES):
                _logger.warning(problem)
        use(rules_of(settings))
    return _rules


def rules_of(settings: TelemetrySettings) -> ContentRules | None:
    """The rules that settings stand for."""
    if not settings.capture_content:
        return None
    return ContentRules(settings.content_limit, settings.redact_content)


def use(new: ContentRules | None) -> Callable[[], None]:
    """Capture by these rules from now on; call what it returns to decide as before."""
    global _rules, _is_decided  # one process, one decision
    before = _rules, _is_decided
    _rules, _is_decided = new, True

    def restore() -> None:
        global _rules, _is_decided
        _rules, _is_decided = before

    return restore


def use_argument(
    capture: bool, limit: int | None = None, redact_texts: Callable[[str], str] | None = None
) -> Callable[[], None]:
    """Follow the arguments of an instrumentor; a no in the environment holds against a yes."""
    if capture and content_choice(os.environ) is False:
        _logger.warning("capture_content=True is ignored: the environment says no")
        capture = False
    limit = limit or TelemetrySettings.from_env().content_limit
    return use(ContentRules(limit, redact_texts) if capture else None)


def write(span: Span, render: Callable[[ContentRules], Mapping[str, str | None]]) -> None:
    """Set the attributes that `render` returns, but those of None; where content is captured.

    Otherwise nothing is done. Never raises.
    """
    try:
        rules_now = rules()
        if rules_now is not None and span.is_recording():
            for attribute, text in render(rules_now).items():
                if text is not None:
                    span.set_attribute(attribute, text)
    except Exception:  # telemetry never breaks the application
        _logger.debug("could not capture content of a span", exc_info=True)
