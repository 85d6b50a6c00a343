"""How the API is put together: application, middleware, and what lives as long as it does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import httpx2
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service import VERSION
from service.agent.graph import Agent
from service.api import add_exception_handlers, router
from service.chat import ChatService
from service.llm.models import build_chat_models, check_model_settings
from service.middleware import (
    EXPOSED_HEADERS,
    BodyLimitMiddleware,
    ErrorMiddleware,
    IdentityMiddleware,
    MetricsMiddleware,
)
from service.readiness import Readiness
from service.retrieval_client import RetrievalClient
from service.sessions import open_sessions
from service.sessions.address import session_store
from service.settings import Settings
from spanloom.telemetry import Telemetry, setup

SERVICE_NAME: Final = "agent-api"


def assemble(settings: Settings, telemetry: Telemetry | None) -> FastAPI:
    """Build the API; `service.app.create_app` says what it promises."""
    # what cannot work fails here, before anything has started
    session_store(settings)
    check_model_settings(settings)
    own = setup(SERVICE_NAME, service_version=VERSION) if telemetry is None else None
    handle = telemetry or own
    assert handle is not None

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
            app.state.chat = ChatService(agent, sessions, settings, handle)
            app.state.readiness = Readiness(retrieval, sessions, settings, http)
            app.state.started = time.monotonic()
            yield

    app = FastAPI(
        title="Spanloom agent",
        version=VERSION,
        lifespan=lifespan,
        middleware=_middleware(settings),
        # The contrib instrumentation traces requests; FastAPI's own would do it twice.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.settings = settings
    app.include_router(router)
    add_exception_handlers(app)
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
