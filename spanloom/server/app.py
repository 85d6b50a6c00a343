"""The embedded backend: the one place where store, ingest, query API and page are wired.

4317  OTLP/gRPC ─┐
                 ├─▶ Intake ─▶ Writer ┐
4318  OTLP/HTTP ─┘                    store
16686 page, Jaeger API, own API ◀─ Reader ┤   /health, /metrics
                         Reaper ◀──────▶ ─┘
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from spanloom import ports
from spanloom.contract import Reader
from spanloom.otlp import MAX_BODY_BYTES
from spanloom.server import (
    ingest_grpc,
    ingest_http,
    jaeger_api,
    monitoring,
    native_api,
    page,
)
from spanloom.server.listening import (
    GRPC_GRACE_S,
    HttpServer,
    in_background,
    listen,
    require_free,
    running,
    stopping_on_signals,
    url_of,
)
from spanloom.server.monitoring import Monitor
from spanloom.server.reaper import REAP_AFTER_S, Reaper
from spanloom.server.security import HostCheck, SecurityHeaders, is_loopback
from spanloom.server.signals import Intake
from spanloom.store import STORE_FILE, Durability, Retention, open_store
from spanloom.store.sqlite import MAX_QUEUE_ITEMS

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What `serve` needs to know; a port of 0 means any free one."""

    data_dir: Path
    host: str = "127.0.0.1"
    otlp_grpc_port: int = ports.OTLP_GRPC
    otlp_http_port: int = ports.OTLP_HTTP
    query_port: int = ports.QUERY_HTTP
    durability: Durability = "process"
    max_queue_items: int = MAX_QUEUE_ITEMS
    """Spans, log records and points that may wait to be stored; more get 429."""
    retention: Retention = field(default_factory=Retention)
    max_body_bytes: int = MAX_BODY_BYTES
    """Largest OTLP request, before and after decompression."""
    reap_after_s: float = REAP_AFTER_S
    """Open spans of a process that was silent for so long are ended, marked incomplete."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides localhost under which the query port may be asked while on loopback."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server really listens, as URLs for clients on this machine."""

    otlp_grpc: str
    otlp_http: str
    query: str


async def serve(
    config: ServerConfig,
    *,
    on_ready: Callable[[Addresses], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run the backend until SIGINT, SIGTERM, or `stop` is set; then store what was taken.

    Args:
        config: ports, places, limits.
        on_ready: called once with the addresses, when every port answers.
        stop: ends the server as a signal does; signals are handled in the main thread only.

    Raises:
        ConfigurationError: a port is taken; the message says which and what to do.
        StoreError: the store cannot be opened.
    """
    stop = stop or asyncio.Event()
    if not is_loopback(config.host):
        _log.warning(
            "listening on %s: everyone who reaches this machine can read and write traces, "
            "there is no log-in. Put an authenticating proxy in front, or leave --host out.",
            config.host or "every address",
        )
    async with contextlib.AsyncExitStack() as cleanup:
        # Sockets come first: a taken port should not wait for a store to be opened.
        otlp_socket = cleanup.enter_context(
            listen(config.host, config.otlp_http_port, "OTLP/HTTP", "--otlp-http-port")
        )
        query_socket = cleanup.enter_context(
            listen(config.host, config.query_port, "the query API and page", "--query-port")
        )
        require_free(config.host, config.otlp_grpc_port, "OTLP/gRPC", "--otlp-grpc-port")
        store = await asyncio.to_thread(
            open_store,
            config.data_dir / STORE_FILE,
            durability=config.durability,
            retention=config.retention,
            max_queue_items=config.max_queue_items,
        )
        cleanup.push_async_callback(asyncio.to_thread, store.close)

        monitor = Monitor(store.stats)
        reaper = Reaper(
            store,
            store,
            config.reap_after_s,
            on_reaped=monitor.reaped,
            turned_away=lambda: monitor.turned_away,
        )
        await cleanup.enter_async_context(in_background(reaper.run()))
        intake = Intake(store, monitor, config.max_body_bytes)
        cleanup.callback(intake.close)
        grpc_server = ingest_grpc.server(intake, monitor, config.max_body_bytes)
        grpc_port = ingest_grpc.bind(grpc_server, config.host, config.otlp_grpc_port)
        addresses = Addresses(
            otlp_grpc=url_of(config.host, grpc_port),
            otlp_http=url_of(config.host, otlp_socket.getsockname()[1]),
            query=url_of(config.host, query_socket.getsockname()[1]),
        )
        servers = [
            HttpServer(
                ingest_http.application(intake, monitor, config.max_body_bytes), otlp_socket
            ),
            HttpServer(query_application(store, monitor, addresses, config), query_socket),
        ]
        await grpc_server.start()
        cleanup.push_async_callback(grpc_server.stop, GRPC_GRACE_S)
        await cleanup.enter_async_context(running(servers, stop))
        with stopping_on_signals(stop):
            if on_ready is not None:
                on_ready(addresses)
            await stop.wait()


def query_application(
    reader: Reader, monitor: Monitor, addresses: Addresses, config: ServerConfig
) -> ASGIApp:
    """The ASGI application of the query port."""
    routes: list[BaseRoute] = [
        *monitoring.routes(monitor),
        *native_api.routes(reader),
        *jaeger_api.routes(reader),
        *page.routes(reader, addresses.otlp_http),
    ]
    app: ASGIApp = SecurityHeaders(Starlette(routes=routes))
    if is_loopback(config.host):
        app = HostCheck(app, (config.host, *config.allowed_hosts))
    return app
