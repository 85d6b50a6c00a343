"""The API process: the application factory and `python -m service.app`."""

import argparse
import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import httpx2
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.agent.graph import Agent
from service.api import add_exception_handlers, router
from service.chat import ChatService
from service.llm.models import build_chat_models
from service.middleware import (
    EXPOSED_HEADERS,
    BodyLimitMiddleware,
    ErrorMiddleware,
    IdentityMiddleware,
    MetricsMiddleware,
)
from service.readiness import Readiness
from service.retrieval_client import RetrievalClient
from service.sessions import database_path, open_sessions
from service.settings import Settings, get_settings
from spanloom import __version__
from spanloom.telemetry import Telemetry, setup

SERVICE_NAME: Final = "agent-api"
_MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"


def create_app(settings: Settings | None = None, *, telemetry: Telemetry | None = None) -> FastAPI:
    """Build the API.

    Without `telemetry` the application sets it up and shuts it down with itself; a caller that
    hands one over keeps it. ConfigurationError when a setting cannot work.
    """
    settings = settings or get_settings()
    database_path(settings)  # a wrong address fails here, before anything has started
    own = setup(SERVICE_NAME, service_version=__version__) if telemetry is None else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if own is not None:
                # registered first, so it runs last: everything before is still recorded
                stack.push_async_callback(asyncio.to_thread, own.shutdown)
            models = build_chat_models(settings)
            stack.push_async_callback(models.close)
            retrieval = await stack.enter_async_context(
                RetrievalClient(settings.retrieval_base_url, timeout_s=settings.retrieval_timeout_s)
            )
            sessions = await stack.enter_async_context(open_sessions(settings))
            http = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False))
            agent = Agent(
                large=models.large,
                small=models.small,
                retrieval=retrieval,
                settings=settings,
                checkpointer=sessions.checkpointer,
            )
            app.state.chat = ChatService(agent, sessions, settings)
            app.state.readiness = Readiness(retrieval, sessions, settings, http)
            app.state.started = time.monotonic()
            yield

    app = FastAPI(
        title="Spanloom agent",
        version=__version__,
        lifespan=lifespan,
        middleware=_middleware(settings),
        # The contrib instrumentation traces requests; FastAPI's own would do it twice.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.settings = settings
    app.include_router(router)
    add_exception_handlers(app)
    handle = telemetry or own
    assert handle is not None
    handle.instrument_fastapi(app)
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    """Outermost first. CORS stands outside of errors, so that browsers may read those too."""
    stack = [Middleware(IdentityMiddleware), Middleware(MetricsMiddleware)]
    if settings.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["content-type", "traceparent", "tracestate", "baggage"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    return [
        *stack,
        Middleware(ErrorMiddleware, retry_after_s=settings.retry_after_s),
        Middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the API until it is told to stop."""
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="python -m service.app", description=main.__doc__)
    parser.add_argument("--host", default=settings.api_host, help="address to listen on")
    parser.add_argument("--port", type=int, default=settings.api_port, help="port to listen on")
    parser.add_argument(
        "--workers", type=int, default=settings.workers, help="processes that share the port"
    )
    arguments = parser.parse_args(argv)
    database_path(settings)  # one sentence here is worth more than a traceback per worker
    with _shared_metrics(settings.data_dir, workers=arguments.workers):
        uvicorn.run(
            "service.app:create_app",
            factory=True,
            host=arguments.host,
            port=arguments.port,
            workers=arguments.workers,
            log_config=None,  # telemetry writes uvicorn's lines as JSON, with trace ids
            server_header=False,
            # Forwarded headers decide whom telemetry trusts: only from proxies somebody named.
            proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
            timeout_graceful_shutdown=settings.shutdown_grace_s,
        )


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
    main()
