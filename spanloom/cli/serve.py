"""`spanloom serve`: the embedded backend in the foreground."""

import asyncio
import enum
import logging
from pathlib import Path
from typing import Annotated

import typer

from spanloom import ports
from spanloom.cli import options
from spanloom.cli.foreground import reap_after_s, tell_ready


class Durability(enum.StrEnum):
    """What an acknowledged span survives."""

    PROCESS = "process"
    FULL = "full"


def serve(
    *,
    data_dir: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of the store; made if missing."),
    ],
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. Beyond loopback anybody may read and write.",
        ),
    ] = "127.0.0.1",
    otlp_grpc_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="OTLP/gRPC; 0 for a free one.")
    ] = ports.OTLP_GRPC,
    otlp_http_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="OTLP/HTTP; 0 for a free one.")
    ] = ports.OTLP_HTTP,
    query_port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Query API and page; 0 for a free one."
        ),
    ] = ports.QUERY_HTTP,
    durability: Annotated[
        Durability,
        typer.Option(
            help="What stored spans survive: kill -9 (process), or power loss too (full)."
        ),
    ] = Durability.PROCESS,
    retention_age: Annotated[
        int,
        typer.Option(
            parser=options.duration_ns, metavar="TIME", help="Traces older than this are deleted."
        ),
    ] = "7d",  # type: ignore[assignment]  # the parser turns it into nanoseconds
    retention_size: Annotated[
        int,
        typer.Option(
            parser=options.size_bytes,
            metavar="SIZE",
            help="Beyond this the oldest traces are deleted.",
        ),
    ] = "10GB",  # type: ignore[assignment]  # the parser turns it into bytes
    reap_after: Annotated[
        int,
        typer.Option(
            parser=options.duration_ns,
            metavar="TIME",
            help="Open spans of a process that was silent for so long are ended as incomplete.",
        ),
    ] = "5s",  # type: ignore[assignment]  # the parser turns it into nanoseconds
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another name the query port answers to while on loopback; may be repeated.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the addresses as one line of JSON when ready.")
    ] = False,
) -> None:
    """Run the trace backend: OTLP in, query API and page out.

    \b
    Examples:
      spanloom serve --data-dir ~/traces
      spanloom serve --data-dir var/traces --durability full --retention-age 30d
      spanloom serve --data-dir /tmp/t --otlp-grpc-port 0 --otlp-http-port 0 --query-port 0 --json
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    from spanloom.server.app import Addresses, ServerConfig  # noqa: PLC0415  # `--help` stays fast
    from spanloom.server.app import serve as run_server  # noqa: PLC0415
    from spanloom.store import Retention  # noqa: PLC0415

    silence_s = reap_after_s(reap_after)

    def ready(addresses: Addresses) -> None:
        lines = (
            f"traces     {addresses.query}",
            f"OTLP/HTTP  {addresses.otlp_http}",
            f"OTLP/gRPC  {addresses.otlp_grpc}",
            f"store      {data_dir}",
        )
        tell_ready(addresses, lines, as_json=as_json)

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    config = ServerConfig(
        data_dir=data_dir,
        host=host,
        otlp_grpc_port=otlp_grpc_port,
        otlp_http_port=otlp_http_port,
        query_port=query_port,
        durability=durability.value,
        reap_after_s=silence_s,
        allowed_hosts=tuple(allowed_host or ()),
        retention=Retention(max_age_s=retention_age / 1e9, max_bytes=retention_size),
    )
    asyncio.run(run_server(config, on_ready=ready))
