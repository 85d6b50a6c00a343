"""`spanloom reap`: ends the spans of dead processes, behind a Collector."""

import asyncio
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from spanloom import ports
from spanloom.cli import options
from spanloom.cli.foreground import reap_after_s, tell_ready
from spanloom.errors import ConfigurationError

if TYPE_CHECKING:
    from spanloom.server.reap import ReapAddresses

_MAX_PORT: Final = 65_535


def _address(option: str, text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isdecimal() or int(port) > _MAX_PORT:
        raise ConfigurationError(f"{option} {text!r} is not HOST:PORT, such as 127.0.0.1:4319")
    return host, int(port)


def _seconds_ns(text: str) -> int:
    """A duration; a bare number is seconds."""
    number = text.strip()
    return options.duration_ns(f"{number}s" if re.fullmatch(r"\d+(\.\d+)?", number) else number)


def reap(
    *,
    data_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder of its state; made if missing. One reaper for each."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Collector that takes the final spans: http(s)://HOST:PORT or grpc(s)://HOST:PORT.",
        ),
    ] = f"http://127.0.0.1:{ports.OTLP_HTTP}",
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the Collector sends in-flight events, by OTLP/HTTP; port 0 for a free one.",
        ),
    ] = f"127.0.0.1:{ports.REAP_OTLP_HTTP}",
    listen_grpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The same by OTLP/gRPC; unset for none."),
    ] = None,
    admin: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of /health and /metrics.")
    ] = f"127.0.0.1:{ports.REAP_HTTP}",
    reap_after: Annotated[
        int,
        typer.Option(
            parser=_seconds_ns,
            metavar="TIME",
            help="Open spans of a process that was silent for so long are ended as incomplete. "
            "Give the services the same as SPANLOOM_REAPED_AFTER.",
        ),
    ] = "30s",  # type: ignore[assignment]  # the parser turns it into nanoseconds
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the addresses as one line of JSON when ready.")
    ] = False,
) -> None:
    """End the spans of processes that died, behind an OpenTelemetry Collector.

    The Collector sends it the in-flight events (spanloom.span.open, spanloom.span.ended,
    spanloom.process.heartbeat), and gets back a final span for each span that a dead process left
    open. `spanloom serve` does this by itself and needs no reaper.

    \b
    Examples:
      spanloom reap --data-dir /var/lib/spanloom
      spanloom reap --data-dir var/reap --to grpc://collector:4317 --reap-after 30
      spanloom reap --data-dir /data --listen 0.0.0.0:4319 --admin 0.0.0.0:4320 --to http://otel:4318
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    from spanloom.server.reap import ReapConfig  # noqa: PLC0415  # `--help` stays fast
    from spanloom.server.reap import reap as run_reaper  # noqa: PLC0415

    silence_s = reap_after_s(reap_after)

    def ready(addresses: "ReapAddresses") -> None:
        lines = (
            f"OTLP/HTTP  {addresses.otlp_http}",
            *([f"OTLP/gRPC  {addresses.otlp_grpc}"] if addresses.otlp_grpc else []),
            f"health     {addresses.admin}/health",
            f"spans to   {to}",
            f"state      {data_dir}",
        )
        tell_ready(addresses, lines, as_json=as_json)

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    config = ReapConfig(
        data_dir=data_dir,
        to=to,
        listen=_address("--listen", listen),
        listen_grpc=_address("--listen-grpc", listen_grpc) if listen_grpc else None,
        admin=_address("--admin", admin),
        reap_after_s=silence_s,
    )
    asyncio.run(run_reaper(config, on_ready=ready))
