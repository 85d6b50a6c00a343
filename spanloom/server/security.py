"""What stands between a browser and the query port.

The server has no log-in, so on loopback the browser is the way in: a page from elsewhere may
point its own name at 127.0.0.1 (DNS rebinding) and then read every trace as "same origin".
Refusing foreign Host headers ends that. No CORS header is ever sent.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_SECURITY_HEADERS: Final = {
    # Scripts and styles come from /static only: text out of telemetry can never become either.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Ask each time: another version's scripts must not meet this version's pages.
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether binding to `host` keeps the server on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, lower case, without port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] or header if ":" in header else header


class HostCheck:
    """ASGI: answers 421 to requests whose Host header names somebody else."""

    def __init__(
        self,
        app: ASGIApp,
        allowed: Iterable[str],
        remedy: str = "start it with --allowed-host NAME",
    ) -> None:
        self._app = app
        self._remedy = remedy
        self._allowed = LOOPBACK_HOSTS | {host.lower() for host in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            header = Headers(scope=scope).get("host")
            # No header at all means HTTP/1.0, which no browser speaks.
            if header is not None and host_name(header) not in self._allowed:
                refusal = PlainTextResponse(
                    "This server answers on loopback only, to the names localhost, 127.0.0.1 "
                    "and [::1]. If you reach it under another name on purpose (a proxy, a "
                    f"container), {self._remedy}.\n",
                    status_code=421,
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class SecurityHeaders:
    """ASGI: puts the security headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
