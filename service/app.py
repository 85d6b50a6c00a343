"""The API process: the application factory and `python -m service.app`."""

import argparse
import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from service.errors import ConfigurationError
from service.listening import KEEP_ALIVE_S, listen
from service.llm.models import check_model_settings
from service.sessions.address import PostgresAddress, session_store
from service.settings import Settings, get_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from spanloom.telemetry import Telemetry

_MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"


def create_app(
    settings: Settings | None = None, *, telemetry: "Telemetry | None" = None
) -> "FastAPI":
    """Build the API.

    Without `telemetry` the application sets it up and shuts it down with itself; a caller that
    hands one over keeps it. ConfigurationError when a setting cannot work.
    """
    # LangGraph and LangChain take seconds to import. The supervisor of the workers never needs
    # them, and a worker must answer its health check before they are there.
    from service.assembly import assemble  # noqa: PLC0415

    app = assemble(settings or get_settings(), telemetry)
    if settings is None:
        # The server's own call. What the imports made stays for ever: to look through it again, as
        # each full collection does, holds all requests up for a tenth of a second or more.
        gc.collect()
        gc.freeze()
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the API until it is told to stop."""
    try:
        return _run(argv)
    except ConfigurationError as error:
        # one sentence is worth more than a traceback per worker
        sys.stderr.write(f"{error}\n")
        return 1


def _run(argv: Sequence[str] | None) -> int:
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="python -m service.app", description=main.__doc__)
    parser.add_argument("--host", default=settings.api_host, help="address to listen on")
    parser.add_argument(
        "--port", type=int, default=settings.api_port, help="port; 0 takes a free one"
    )
    parser.add_argument(
        "--workers", type=int, default=settings.workers, help="processes that share the port"
    )
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error("--workers must be at least 1")
    store = session_store(settings)
    check_model_settings(settings)
    _make_data_dir(settings.data_dir)
    if isinstance(store, PostgresAddress):
        # Asked here, too: a worker that cannot start would be started again and again.
        from service.sessions.postgres_start import wait_for_database  # noqa: PLC0415

        wait_for_database(
            store, settings.database_start_s, say=lambda text: sys.stderr.write(f"{text}\n")
        )
    listener = listen(arguments.host, arguments.port, variable="AGENT_API_PORT")
    host, port = listener.getsockname()[:2]
    listening = {"level": "info", "event": "api_listening", "host": host, "port": port}
    sys.stdout.write(f"{json.dumps(listening)}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        "service.app:create_app",
        factory=True,
        workers=arguments.workers,
        log_config=None,  # telemetry writes uvicorn's lines as JSON, with trace ids
        server_header=False,
        # Forwarded headers decide whom telemetry trusts: only from proxies somebody named.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        # A worker that imports LangChain on a busy machine is slow, not dead.
        timeout_worker_healthcheck=30,
    )
    with _shared_metrics(settings.data_dir, workers=arguments.workers):
        if arguments.workers > 1:
            Multiprocess(config, sockets=[listener]).run()
            return 0
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        return 0 if server.started else 1


def _make_data_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The data folder {path} cannot be made ({error.strerror}). Choose another with"
            " AGENT_DATA_DIR."
        ) from error


@contextmanager
def _shared_metrics(data_dir: Path, *, workers: int) -> Iterator[None]:
    """Let the workers' counters meet in a folder; prometheus_client looks for it on import.

    The folder carries this process's id, so that two APIs on one data folder do not add each
    other's numbers; folders whose process is gone are removed. A folder named by the
    environment belongs to whoever named it.
    """
    if workers == 1 or os.environ.get(_MULTIPROCESS_DIR):
        yield
        return
    root = data_dir.absolute() / "prometheus"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if not old.name.isdecimal() or not _is_alive(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    own = root / str(os.getpid())
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    os.environ[_MULTIPROCESS_DIR] = str(own)
    try:
        yield
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main())
