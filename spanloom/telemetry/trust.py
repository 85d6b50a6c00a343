"""Whose trace context a service continues, and what happens to everybody else's.

Anyone can send a `traceparent`. Continued blindly, it lets strangers choose trace ids, force
recording, and put baggage on calls inside. So a caller that is not trusted gets a new trace; the
context it sent is kept as a span link (`spanloom.link.kind` = `untrusted_caller`).
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanContext

from spanloom import semconv
from spanloom.telemetry.baggage import MAX_RECEIVED_BAGGAGE_LENGTH
from spanloom.telemetry.endings import leave_deadlines, mark_raised_in
from spanloom.telemetry.settings import Network, TelemetrySettings
from spanloom.telemetry.tracecontext import (
    MAX_RECEIVED_TRACESTATE_LENGTH,
    MAX_TRACEPARENT_LENGTH,
)

_logger: Final = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TRUSTED_KEY: Final = "spanloom.trusted"
"""Key in the ASGI scope: whether the caller is trusted (bool)."""
_LINK_KEY: Final = "spanloom.untrusted_context"
_SPAN_KEY: Final = "spanloom.server_span"

MAX_HEADER_LENGTH: Final = {
    b"traceparent": MAX_TRACEPARENT_LENGTH,
    b"tracestate": MAX_RECEIVED_TRACESTATE_LENGTH,
    b"baggage": MAX_RECEIVED_BAGGAGE_LENGTH,
}
"""Longer headers are dropped unread, also those of trusted callers; in bytes, all lines added."""
_MAX_LINKED_TRACESTATE: Final = 512  # a stranger's longer one is not worth its storage
_W3C_HEADERS: Final = frozenset(MAX_HEADER_LENGTH)

CANCELLED_GRACE_S: Final = 2.0
"""How long a shutdown waits for requests that the server has cancelled."""
_TURN_S: Final = 0.05


class TrustPolicy:
    """Decides on the socket's peer; an `X-Forwarded-For` counts only from listed proxies."""

    def __init__(self, settings: TelemetrySettings) -> None:
        self._everyone = "all" in settings.trust
        self._loopback = "loopback" in settings.trust
        self._networks: tuple[Network, ...] = tuple(
            ipaddress.ip_network(word, strict=False)
            for word in settings.trust
            if word not in {"all", "none", "loopback"}
        )
        self._proxies = settings.trusted_proxies
        self._trusts_address = lru_cache(maxsize=1024)(self._decide)

    def trusts(self, scope: Scope) -> bool:
        """Whether the caller of this ASGI request is trusted."""
        if self._everyone:
            return True
        client = scope.get("client")
        peer = client[0] if client else None
        if not isinstance(peer, str):
            return False  # a Unix socket: who is behind it cannot be known here
        if self._proxies and self._is_proxy(peer):
            return self._trusts_address(self._forwarded_for(scope.get("headers", ())))
        return self._trusts_address(peer)

    def _forwarded_for(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The last address in the chain that is no listed proxy; "" when there is none."""
        lines = [value for name, value in headers if name.lower() == b"x-forwarded-for"]
        for hop in reversed(b",".join(lines).decode("latin-1").split(",")):
            address = hop.strip()
            if not self._is_proxy(address):
                return address
        return ""

    def _is_proxy(self, text: str) -> bool:
        address = _parse_address(text)
        return address is not None and any(address in network for network in self._proxies)

    def _decide(self, text: str) -> bool:
        address = _parse_address(text)
        if address is None:
            return False
        if self._loopback and address.is_loopback:
            return True
        return any(address in network for network in self._networks)


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1 on dual-stack sockets
    return mapped or address


def is_trusted(scope: Scope) -> bool:
    """Whether the caller of an ASGI request is trusted; false where nothing has decided it."""
    return scope.get(TRUSTED_KEY) is True


class TrustMiddleware:
    """Outermost ASGI layer: strips the trace context of untrusted callers before it is read.

    `on_startup` and `on_shutdown` run when the server says so through the lifespan protocol. The
    application hears of a shutdown when its last request is over: uvicorn cancels what is left
    after its grace, and says "shutdown" before any of it has ended. What the application closes
    then, telemetry with it, would be gone before the spans of these requests ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: TrustPolicy,
        *,
        on_startup: Callable[[], None] | None = None,
        on_shutdown: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.app = app
        self._policy = policy
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] in {"http", "websocket"}:
            self._admit(scope)
        # A server starts the next request of a connection in the context in which the answer
        # before it was sent: uvicorn does, when an application answers before it has read the
        # body. A request that found a span there would become that one's child.
        token = attach(Context())
        leave_deadlines()
        self._in_progress += 1
        try:
            await self.app(scope, receive, send)
        except Exception as exc:
            # The server logs it when the request's span is over: the exception brings the ids.
            context = scope.get(_SPAN_KEY)
            if isinstance(context, SpanContext):
                mark_raised_in(exc, context)
            raise
        finally:
            detach(token)
            self._in_progress -= 1

    def _admit(self, scope: Scope) -> None:
        try:
            trusted = self._policy.trusts(scope)
            scope[TRUSTED_KEY] = trusted
            headers: list[tuple[bytes, bytes]] = _without_long_context(_decodable(scope["headers"]))
            if not trusted:
                remote = _remote_context(headers)
                if remote is not None:
                    scope[_LINK_KEY] = remote
                headers = _without_context(headers)
            scope["headers"] = headers
        except Exception:  # telemetry never breaks the application, and never trusts by accident
            _logger.debug("could not judge a caller", exc_info=True)
            scope[TRUSTED_KEY] = False
            scope["headers"] = _without_context(scope["headers"])

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def forward(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.shutdown.complete" and self._on_shutdown is not None:
                await _guarded(self._on_shutdown)
            await send(message)

        async def receive_when_idle() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await _guarded(self._wait_for_cancelled)
            return message

        if self._on_startup is not None:
            self._on_startup()
        await self.app(scope, receive_when_idle, forward)

    async def _wait_for_cancelled(self) -> None:
        # In turns of the loop and not by a clock: where a machine stands still for seconds, the
        # time would be over before what was cancelled has had its first turn.
        for _ in range(round(CANCELLED_GRACE_S / _TURN_S)):
            if not self._in_progress:
                return
            await asyncio.sleep(_TURN_S)


async def _guarded(last: Callable[[], Awaitable[None]]) -> None:
    """Await `last`; a fault of it, as in a loop that is not asyncio's, stops no shutdown."""
    try:
        await last()
    except Exception:  # telemetry never breaks the application
        _logger.debug("could not wait for the last spans", exc_info=True)


def on_server_span(span: Span, scope: Scope) -> None:
    """Server request hook: link the new root span to the context that was not continued."""
    scope[_SPAN_KEY] = span.get_span_context()
    match scope.get("server"):
        case (str(address), int()):  # contrib has written "address:port"
            span.set_attribute(semconv.SERVER_ADDRESS, address)
    remote = scope.get(_LINK_KEY)
    if isinstance(remote, SpanContext):
        span.add_link(remote, {semconv.SPANLOOM_LINK_KIND: semconv.LINK_UNTRUSTED_CALLER})


def _decodable(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    r"""Rewrite the values on which contrib's middleware would raise, so that a 500 is answered.

    It reads bytes that are no UTF-8 as a Python literal: `\xff\x` is an error there, and the
    letters `\n` after a `\xff` become a line break. The same text in UTF-8 is read as it is.
    Names come in lower case, as the ASGI specification has them and not every server.
    """
    return [
        (name.lower(), value if _is_read_as_it_is(value) else value.decode("latin-1").encode())
        for name, value in headers
    ]


def _is_read_as_it_is(value: bytes) -> bool:
    if value.isascii() or b"\\" not in value:
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_long_context(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = list(headers)
    lengths: dict[bytes, int] = {}
    for name, value in kept:
        if name in _W3C_HEADERS:
            lengths[name] = lengths.get(name, 0) + len(value)
    too_long = {name for name, length in lengths.items() if length > MAX_HEADER_LENGTH[name]}
    if not too_long:
        return kept
    return [(name, value) for name, value in kept if name not in too_long]


def _without_context(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    dropped = _W3C_HEADERS | {
        field.lower().encode() for field in propagate.get_global_textmap().fields
    }
    lowered = [(name.lower(), value) for name, value in headers]
    return [(name, value) for name, value in lowered if name not in dropped]


def _remote_context(headers: Iterable[tuple[bytes, bytes]]) -> SpanContext | None:
    carrier: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
    for name, value in headers:
        if (line := name.decode("latin-1").lower()) in carrier:
            carrier[line].append(value.decode("latin-1"))
    if not carrier["traceparent"]:
        return None
    if sum(map(len, carrier["tracestate"])) > _MAX_LINKED_TRACESTATE:
        del carrier["tracestate"]
    extracted = propagate.extract(carrier)
    context = trace.get_current_span(extracted).get_span_context()
    return context if context.is_valid and context.is_remote else None
