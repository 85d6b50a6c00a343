"""Setting telemetry up, flushing it, and shutting it down."""

import asyncio
import atexit
import dataclasses
import logging
import os
import re
import signal
import threading
import types
from importlib.util import find_spec
from typing import Any, Final

from opentelemetry import _logs as logs_api
from opentelemetry import metrics as metrics_api
from opentelemetry import propagate, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from spanloom import semconv
from spanloom.telemetry import (
    bounded,
    content,
    endings,
    genai_metrics,
    inflight,
    logs,
    metrics,
    operation,
    pricing,
)
from spanloom.telemetry.contrib_http import spare_client_requests, spare_server_headers
from spanloom.telemetry.lean_meters import lean
from spanloom.telemetry.outcomes import OutcomeMiddleware, watch_transports
from spanloom.telemetry.propagation import (
    GuardedPropagator,
    HttpxHooks,
    PropagationPolicy,
    strictly_w3c,
)
from spanloom.telemetry.providers import create_providers
from spanloom.telemetry.reaped import Claims
from spanloom.telemetry.redaction import pseudonym
from spanloom.telemetry.settings import TelemetrySettings
from spanloom.telemetry.trust import TrustMiddleware, TrustPolicy, on_server_span

_logger: Final = logging.getLogger(__name__)

_SEMCONV_OPT_IN: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"
_FASTAPI_EXCLUDED_URLS: Final = ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS")


class Telemetry:
    """Handle of what `setup` installed; one a process."""

    def __init__(
        self,
        settings: TelemetrySettings,
        tracer_provider: TracerProvider,
        meter_provider: MeterProvider,
        logger_provider: LoggerProvider,
    ) -> None:
        self.settings = settings
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.logger_provider = logger_provider
        self._is_shut_down = False

    def instrument_fastapi(self, app: Any) -> None:
        """Trace a FastAPI application: one SERVER span a request, untrusted context stripped.

        Call it before the application serves its first request.
        """
        from starlette.middleware import Middleware  # noqa: PLC0415 - needs FastAPI

        if getattr(app, "_spanloom_instrumented", False):
            return
        if app.middleware_stack is not None:
            _logger.warning("%s serves already: its requests are not traced", app.title)
            return
        app._spanloom_instrumented = True  # noqa: SLF001 - the application is what is marked
        if self.settings.enabled:
            self._instrument_contrib(app)
        # Outside contrib's middleware, which reads `traceparent`. FastAPI looks for that
        # middleware along `.app` before it decides to trace by itself; ours has that attribute.
        build_inner = app.build_middleware_stack
        policy = TrustPolicy(self.settings)

        def build_middleware_stack(_: Any) -> TrustMiddleware:
            if self.settings.enabled:  # inside contrib's, outside of all that the user has added
                app.user_middleware.insert(0, Middleware(OutcomeMiddleware))
            return TrustMiddleware(
                build_inner(),
                policy,
                on_startup=logs.adopt_stdlib_loggers,
                on_shutdown=self._flush_from_loop,
            )

        app.build_middleware_stack = types.MethodType(build_middleware_stack, app)

    def _instrument_contrib(self, app: Any) -> None:
        from opentelemetry.instrumentation.fastapi import (  # noqa: PLC0415 - needs FastAPI
            FastAPIInstrumentor,
        )

        spare_server_headers()
        excluded = None  # contrib reads its own variables
        if not any(os.environ.get(name) for name in _FASTAPI_EXCLUDED_URLS):
            excluded = ",".join(
                f"^[^/]*//[^/]*{re.escape(path)}$" for path in self.settings.untraced_paths
            )
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self.tracer_provider,
            meter_provider=lean(self.meter_provider),
            server_request_hook=on_server_span,
            excluded_urls=excluded,
            exclude_spans=["receive", "send"],
        )

    async def _flush_from_loop(self) -> None:
        # uvicorn ends a SIGTERM by the signal's default action: atexit does not run after it.
        await asyncio.to_thread(self.force_flush, self.settings.shutdown_timeout_s)

    def force_flush(self, timeout_s: float = 5.0) -> bool:
        """Send what is waiting; whether all of it went out in time."""
        if self._is_shut_down:
            return True
        providers = (self.tracer_provider, self.logger_provider, self.meter_provider)
        return bounded.run_bounded([provider.force_flush for provider in providers], timeout_s)

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """Send what is waiting and stop, within `timeout_s` whatever the backend does."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        providers = (self.tracer_provider, self.logger_provider, self.meter_provider)
        logs.stop_exporting()
        bounded.run_bounded([provider.shutdown for provider in providers], timeout_s)
        metrics.mark_this_process_dead()

    def user_attribute(self, user_id: str) -> str:
        """The value of `user.id` on spans: a pseudonym unless SPANLOOM_HASH_USER_ID is off."""
        return pseudonym(user_id) if self.settings.hash_user_id else user_id


def _adopt_global_providers(telemetry: Telemetry) -> None:
    """Keep providers that are already global, as under `opentelemetry-instrument`.

    They cannot be replaced, and two of a kind would split traces between two backends.
    """
    for name, current, kind in (
        ("tracer_provider", trace.get_tracer_provider(), TracerProvider),
        ("meter_provider", metrics_api.get_meter_provider(), MeterProvider),
        ("logger_provider", logs_api.get_logger_provider(), LoggerProvider),
    ):
        if isinstance(current, kind):
            getattr(telemetry, name).shutdown()
            setattr(telemetry, name, current)


_handle: Telemetry | None = None
_setup_lock: Final = threading.Lock()


def setup(
    service_name: str | None = None,
    *,
    service_version: str | None = None,
    settings: TelemetrySettings | None = None,
) -> Telemetry:
    """Install traces, logs, metrics, propagators, instrumentations and shutdown.

    `OTEL_SERVICE_NAME` and the other `OTEL_*` variables win over the arguments. Call it once a
    process, before the objects it should trace are made; a second call returns the first handle
    and warns.
    """
    global _handle  # noqa: PLW0603 - one process, one telemetry
    with _setup_lock:
        if _handle is not None:
            logging.getLogger("spanloom.telemetry").warning(
                "telemetry is already set up in this process; the second call changes nothing"
            )
            return _handle
        settings = settings or TelemetrySettings.from_env()
        # Without it contrib's instrumentations write the names of 2021 (`http.method`). Must
        # happen before the first of them is used.
        os.environ.setdefault(_SEMCONV_OPT_IN, "http")
        problems = list(settings.problems)
        providers = create_providers(
            service_name,
            service_version=service_version,
            settings=settings,
            report=problems.append,
        )
        settings = dataclasses.replace(settings, problems=tuple(dict.fromkeys(problems)))
        telemetry = Telemetry(settings, providers.tracer, providers.meter, providers.logger)
        _adopt_global_providers(telemetry)
        # Ends that others' exporters send are none that we could hold back.
        is_ours = telemetry.tracer_provider is providers.tracer
        _install(telemetry, providers.spool, providers.claims if is_ours else None)
        if providers.spool is not None and telemetry.tracer_provider is not providers.tracer:
            _logger.warning("SPANLOOM_SPOOL_DIR is not used: others made the tracer provider")
        _handle = telemetry
        return telemetry


def _install(telemetry: Telemetry, spool: inflight.Journal | None, claims: Claims | None) -> None:
    settings = telemetry.settings
    resource = telemetry.tracer_provider.resource.attributes
    logs.configure(
        service_name=str(resource.get(semconv.SERVICE_NAME, "")),
        level=settings.log_level,
        provider=telemetry.logger_provider if settings.enabled else None,
        quiet_paths=settings.untraced_paths,
    )
    for problem in settings.problems:
        logging.getLogger("spanloom.telemetry").warning(problem)
    if settings.enabled:
        # Adopted ones are set already, and setting them again would be complained of.
        if telemetry.meter_provider is not metrics_api.get_meter_provider():
            metrics_api.set_meter_provider(telemetry.meter_provider)
        if telemetry.tracer_provider is not trace.get_tracer_provider():
            trace.set_tracer_provider(telemetry.tracer_provider)
        if telemetry.logger_provider is not logs_api.get_logger_provider():
            logs_api.set_logger_provider(telemetry.logger_provider)
    operation.use_tracer_provider(telemetry.tracer_provider)
    genai_metrics.use_meter_provider(telemetry.meter_provider, names=settings.genai_metric_names)
    pricing.use_price_file(settings.prices)
    content.use(content.rules_of(settings))
    if settings.log_steps:
        endings.set_step_listener(logs.log_step)
    propagator = propagate.get_global_textmap()
    if not isinstance(propagator, GuardedPropagator):
        propagate.set_global_textmap(GuardedPropagator(strictly_w3c(propagator)))
    if settings.enabled:
        inflight.announce_open_spans(telemetry.tracer_provider, settings, spool, claims)
        _instrument_libraries(telemetry)
    bounded.prepare()
    atexit.register(telemetry.shutdown, settings.shutdown_timeout_s)
    _flush_on_sigterm(telemetry)


def _instrument_libraries(telemetry: Telemetry) -> None:
    providers = {
        "tracer_provider": telemetry.tracer_provider,
        "meter_provider": telemetry.meter_provider,
    }
    hooks = HttpxHooks(
        PropagationPolicy(telemetry.settings.propagate_to), propagate.get_global_textmap().fields
    )
    http = {"request_hook": hooks.request, "async_request_hook": hooks.async_request, **providers}
    # (library that must be there, module and class of its instrumentation, arguments)
    wanted: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("threading", "opentelemetry.instrumentation.threading", "ThreadingInstrumentor", {}),
        ("httpx", "opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor", http),
        ("httpx2", "opentelemetry.instrumentation.httpx", "HTTPX2ClientInstrumentor", http),
        ("langgraph", "spanloom.telemetry.langgraph", "LangGraphInstrumentor", providers),
    )
    for library, module, name, arguments in wanted:
        try:
            if find_spec(library) is None:
                continue
            instrumentor = getattr(__import__(module, fromlist=[name]), name)()
            if not instrumentor.is_instrumented_by_opentelemetry:
                if arguments is http:
                    spare_client_requests()
                    watch_transports(library)
                instrumentor.instrument(**arguments)
            elif arguments is http:
                _logger.warning(
                    "%s was instrumented before setup: SPANLOOM_PROPAGATE_TO does not hold for it",
                    library,
                )
        except Exception:
            _logger.warning("%s is not traced", library, exc_info=True)


def _flush_on_sigterm(telemetry: Telemetry) -> None:
    """Flush before SIGTERM ends the process, where nobody else handles it.

    Servers install their own handler over this one, and put it back before they let the signal
    do its work.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def flush_and_end(signum: int, _: types.FrameType | None) -> None:
        telemetry.shutdown(telemetry.settings.shutdown_timeout_s)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    signal.signal(signal.SIGTERM, flush_and_end)


def current_trace_id() -> str:
    """Return the current trace id as 32 hex digits, or "" outside a trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def current_trace_flags() -> str:
    """Return the current trace flags as two hex digits, or "" outside a trace.

    An even number says that the caller asked not to record: the trace will not be found.
    """
    context = trace.get_current_span().get_span_context()
    return format(context.trace_flags, "02x") if context.is_valid else ""
