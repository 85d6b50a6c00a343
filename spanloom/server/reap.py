"""The reaper behind a Collector: in-flight events in, ends of dead processes' spans out.

    Collector ─ spanloom.span.open, … ─▶ Intake ─▶ Writer ┐
        ▲                                               store: open spans, processes, outbox
        │                                                 │ ▲
        │                             process is silent   ▼ │ in one transaction: no longer open,
        │                                              Reaper ┘  stored as ended, in the outbox
        └──────── final spans, ERROR, incomplete ◀──── Courier

It never sees how spans end. What a heartbeat no longer lists has ended, or its end was lost on the
way: which of both only its process could say, so nothing is sent for it. Ended here are the spans
that the last heartbeat of a dead process still listed, and those that a process gives up because it
was suspended for so long that they may have been ended here.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.types import ASGIApp

from spanloom import ports, semconv
from spanloom.model.inflight import EVENTS
from spanloom.model.log import LogEvent
from spanloom.otlp import MAX_BODY_BYTES, Decoded, decode_logs
from spanloom.server import ingest_grpc, ingest_http, monitoring
from spanloom.server.courier import Courier, Hearing
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
from spanloom.server.otlp_out import sender_to
from spanloom.server.reaper import Reaper
from spanloom.server.security import HostCheck, SecurityHeaders, is_loopback
from spanloom.server.signals import LOGS, Intake, Signal
from spanloom.store import REAP_FILE, Retention, StoreStats, open_store

REAP_AFTER_S: Final = 30.0
"""More than the embedded backend waits: there a true end that comes late replaces the other."""
MAX_PROBE_S: Final = 5.0
"""Longest time between two looks at whether the Collector answers, and for its answer."""
_RETENTION: Final = Retention(max_age_s=24 * 3600.0, max_bytes=1_000_000_000)
"""How long it is remembered which spans were ended: their announcements may come again."""
_HARD_LIMIT_BYTES: Final = 2_000_000_000

_MAX_ATTRIBUTES_CHARS: Final = 16_384
"""Of one announcement; our library sends 1,024 of each text. It bounds what 50,000 take on disk."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ReapConfig:
    """What `reap` needs to know; a port of 0 means any free one."""

    data_dir: Path
    to: str
    """Where final spans go: the Collector, see `otlp_out`."""
    listen: Address = ("127.0.0.1", ports.REAP_OTLP_HTTP)
    """OTLP over HTTP."""
    listen_grpc: Address | None = None
    """OTLP over gRPC; None for none."""
    admin: Address = ("127.0.0.1", ports.REAP_HTTP)
    """`/health` and `/metrics`."""
    reap_after_s: float = REAP_AFTER_S
    max_body_bytes: int = MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class ReapAddresses:
    """Where it really listens, as URLs for clients on this machine."""

    otlp_http: str
    otlp_grpc: str | None
    admin: str


class ReapMonitor(Monitor):
    """Counts, and tells `hearing` of what arrives."""

    def __init__(self, stats: Callable[[], StoreStats], hearing: Hearing) -> None:
        super().__init__(stats)
        self._hearing = hearing
        self._delivered = self._count("delivered_spans", "Final spans that the Collector has.")
        self._refused = self._count(
            "refused_spans", "Final spans that the Collector will never take; they are dropped."
        )
        self._failures = self._count(
            "delivery_failures", "Requests to the Collector that will be repeated."
        )
        self.registry.register(_ReapCollector(stats, hearing))

    def _count(self, name: str, description: str) -> Counter:
        return Counter(f"spanloom_reap_{name}", description, registry=self.registry)

    def stored(self, signal: str, items: int) -> None:
        """In-flight events that survive kill -9 from now on."""
        super().stored(signal, items)
        self._hearing.heard()

    def delivered(self, spans: int) -> None:
        """See `courier.Counters`."""
        self._delivered.inc(spans)

    def refused_spans(self, spans: int) -> None:
        """See `courier.Counters`."""
        self._refused.inc(spans)

    def delivery_failed(self) -> None:
        """See `courier.Counters`."""
        self._failures.inc()

    def health(self) -> dict[str, Any]:
        """The body of `/health`; a Collector that is away is told, and no reason to restart us."""
        return {
            **super().health(),
            "collector": "answers" if self._hearing.is_collector_up else "does not answer",
        }


class _ReapCollector(Collector):
    def __init__(self, stats: Callable[[], StoreStats], hearing: Hearing) -> None:
        self._stats = stats
        self._hearing = hearing

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance, so that registering does not read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Current values."""
        for name, description, value in (
            ("outbox_spans", "Final spans that wait for the Collector.", self._stats().outbox),
            ("collector_up", "Whether the Collector answers.", self._hearing.is_collector_up),
            ("hearing", "Whether silence of a process counts at the moment.", self._hearing()),
        ):
            yield GaugeMetricFamily(f"spanloom_reap_{name}", description, float(value))


async def reap(
    config: ReapConfig,
    *,
    on_ready: Callable[[ReapAddresses], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run until SIGINT, SIGTERM, or `stop` is set; what waits then is sent after the next start.

    Args:
        config: ports, places, times.
        on_ready: called once with the addresses, when every port answers.
        stop: ends it as a signal does; signals are handled in the main thread only.

    Raises:
        ConfigurationError: a port is taken, the folder cannot be used, or `to` is no address.
        StoreLockedError: another reaper works on the same folder.
        StoreError: the store cannot be opened.
    """
    stop = stop or asyncio.Event()
    probe_s = min(MAX_PROBE_S, config.reap_after_s / 4)
    async with contextlib.AsyncExitStack() as cleanup:
        sender = sender_to(config.to, probe_s)
        cleanup.push_async_callback(sender.close)
        otlp_socket = cleanup.enter_context(
            listen(*config.listen, "in-flight events by OTLP/HTTP", "--listen", "--listen")
        )
        admin_socket = cleanup.enter_context(
            listen(*config.admin, "/health and /metrics", "--admin", "--admin")
        )
        if config.listen_grpc is not None:
            grpc_purpose = ("in-flight events by OTLP/gRPC", "--listen-grpc", "--listen-grpc")
            require_free(*config.listen_grpc, *grpc_purpose)
        store = await asyncio.to_thread(
            open_store,
            config.data_dir / REAP_FILE,
            retention=_RETENTION,
            hard_limit_bytes=_HARD_LIMIT_BYTES,
            no_ends=True,
        )
        cleanup.push_async_callback(asyncio.to_thread, store.close)

        hearing = Hearing(grace_s=2 * config.reap_after_s)
        monitor = ReapMonitor(store.stats, hearing)
        reaper = Reaper(
            store,
            store,
            config.reap_after_s,
            on_reaped=monitor.reaped,
            turned_away=lambda: monitor.turned_away,
            hears=hearing,
        )
        courier = Courier(store, store, sender, hearing, monitor, probe_s=probe_s)
        intake = Intake(store, monitor, config.max_body_bytes)
        cleanup.callback(intake.close)
        grpc_url = None
        if config.listen_grpc is not None:
            host, port = config.listen_grpc
            grpc_server = ingest_grpc.server(intake, monitor, config.max_body_bytes, (IN_FLIGHT,))
            grpc_url = url_of(host, ingest_grpc.bind(grpc_server, host, port))
            await grpc_server.start()
            cleanup.push_async_callback(grpc_server.stop, GRPC_GRACE_S)
        addresses = ReapAddresses(
            otlp_http=url_of(config.listen[0], otlp_socket.getsockname()[1]),
            otlp_grpc=grpc_url,
            admin=url_of(config.admin[0], admin_socket.getsockname()[1]),
        )
        app = ingest_http.application(intake, monitor, config.max_body_bytes, (IN_FLIGHT,))
        servers = [
            HttpServer(app, otlp_socket),
            HttpServer(_admin_application(monitor, config.admin[0]), admin_socket),
        ]
        await cleanup.enter_async_context(running(servers, stop))
        await cleanup.enter_async_context(in_background(reaper.run()))
        await cleanup.enter_async_context(in_background(courier.run()))
        with stopping_on_signals(stop):
            if on_ready is not None:
                on_ready(addresses)
            await stop.wait()


def _admin_application(monitor: Monitor, host: str) -> ASGIApp:
    app: ASGIApp = SecurityHeaders(Starlette(routes=[*monitoring.routes(monitor)]))
    return HostCheck(app, (host,), "listen there: --admin HOST:PORT") if is_loopback(host) else app


def _decode(body: bytes, content_type: str) -> Decoded[LogEvent]:
    """In-flight events alone; other records are refused, which the Collector logs."""
    decoded = decode_logs(body, content_type)
    events = tuple(_bounded(event) for event in decoded.items if event.event_name in EVENTS)
    others = len(decoded.items) - len(events)
    if not others:
        return Decoded(events, decoded.rejected, decoded.message)
    told = f"{others} log records are no in-flight events; route only {', '.join(sorted(EVENTS))}"
    message = f"{told}. {decoded.message}" if decoded.message else told
    return Decoded(events, decoded.rejected + others, message)


def _bounded(event: LogEvent) -> LogEvent:
    """Without the span's attributes where these are huge: that it ends matters more."""
    said = event.attributes.get(semconv.SPANLOOM_SPAN_ATTRIBUTES)
    if said is None or len(repr(said)) <= _MAX_ATTRIBUTES_CHARS:
        return event
    kept = {
        name: value
        for name, value in event.attributes.items()
        if name != semconv.SPANLOOM_SPAN_ATTRIBUTES
    }
    return replace(event, attributes=kept)


IN_FLIGHT: Final = Signal(
    LOGS.name, LOGS.path, LOGS.grpc_service, _decode, LOGS.batch, LOGS.response
)
