"""Work that contrib's HTTP instrumentations do at every request for nothing, left out.

To write captured headers on spans, that of httpx splits all headers of each request and answer,
also where none is to be captured, and it takes the URL of each request apart again. That of ASGI
decodes the names of all headers for each one it looks for. Together they were a fifth of the calls
that tracing added to a service. Contrib's version is pinned; where it has changed, this changes
nothing.
"""

import importlib
import logging
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from spanloom.telemetry.trust import TRUSTED_KEY

_logger: Final = logging.getLogger(__name__)

_replaced: Final[dict[str, Any]] = {}
_CAPTURED_BY_CLIENTS: Final = tuple(
    f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_{kind}" for kind in ("REQUEST", "RESPONSE")
)


def spare_client_requests() -> None:
    """Let contrib's httpx instrumentation take URLs as they are, and headers if it must."""
    _replace("opentelemetry.instrumentation.httpx", "_extract_parameters", _parameters)
    if not any(os.environ.get(name) for name in _CAPTURED_BY_CLIENTS):
        _replace("opentelemetry.instrumentation.httpx", "_normalize_headers", _no_headers)


def spare_server_headers() -> None:
    """Let contrib's ASGI instrumentation compare the names of headers as the bytes they are."""
    _replace("opentelemetry.instrumentation.asgi", "ASGIGetter.get", _header_of)


def _replace(module: str, name: str, new: Any) -> None:
    try:
        *path, last = name.split(".")
        owner: Any = importlib.import_module(module)
        for part in path:
            owner = getattr(owner, part)
        old = getattr(owner, last)  # AttributeError: it is no longer there
        if old is not new:
            _replaced[name] = old
            setattr(owner, last, new)
    except (ImportError, AttributeError):
        _logger.debug("%s has no %s: it goes on as it does", module, name)


def _parameters(args: tuple[Any, ...], named: dict[str, Any], module: Any) -> Any:
    """Return method, URL, headers, stream and extensions of what a transport is called with.

    Contrib writes the URL of a request as text and parses that; it cannot be changed by anyone.
    """
    request = args[0]
    if not isinstance(request, module.Request):
        return _replaced["_extract_parameters"](args, named, module)
    parts = (request.headers, request.stream, request.extensions)
    return (request.method.encode(), request.url, *parts)


def _no_headers(*_: Any) -> dict[str, list[str]]:
    return {}


def _header_of(_: Any, carrier: Mapping[str, Any], key: str) -> list[str] | None:
    """Return a header's values, as contrib's `ASGIGetter.get` does; None where there is none.

    Names are in lower case by the ASGI specification, but not of every server.
    """
    headers: Iterable[tuple[bytes, bytes]] = carrier.get("headers") or ()
    name = _name(key)
    if TRUSTED_KEY in carrier:  # by our own middleware, which has put them in lower case
        return [_decoded(value) for found, value in headers if found == name] or None
    return [_decoded(value) for found, value in headers if found.lower() == name] or None


@lru_cache(maxsize=256)
def _name(key: str) -> bytes:
    return key.lower().encode()


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except ValueError:
        return value.decode("unicode_escape")
