"""How each tracer is switched on, as its documentation says; with its own defaults."""

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import _logs, trace

from scoring.inside.bench import Bench

INSTRUMENTORS = {
    "openinference": "openinference.instrumentation.langchain:LangChainInstrumentor",
    "traceloop": "opentelemetry.instrumentation.langchain:LangchainInstrumentor",
    "otel-genai": "opentelemetry.instrumentation.genai.langchain:LangChainInstrumentor",
}


def switch_on(name: str, bench: Bench) -> None:
    """Switch on the HTTP instrumentations and then the tracer; raises what the tracer raises."""
    trace.set_tracer_provider(bench.provider)
    _logs.set_logger_provider(bench.logger_provider)
    http = import_module("opentelemetry.instrumentation.httpx")
    for library in ("HTTPXClientInstrumentor", "HTTPX2ClientInstrumentor"):
        if hasattr(http, library):
            getattr(http, library)().instrument(tracer_provider=bench.provider)
    if name == "none":
        return
    if name == "spanloom":
        _spanloom(bench)
        return
    if name in ("langfuse", "openlit"):  # not instrumentors: as where their cost is measured
        peers = import_module("overhead.tracers").PEERS
        exporter = import_module("overhead.recording").NullExporter()
        bench.callbacks = peers[name].switch_on(bench.provider, exporter)
        return
    _instrument(INSTRUMENTORS.get(name, name), bench)


def _instrument(place: str, bench: Bench) -> None:
    module, _, attribute = place.partition(":")
    instrumentor = getattr(import_module(module), attribute)()
    instrumentor.instrument(tracer_provider=bench.provider)
    off: Callable[[], Any] | None = getattr(instrumentor, "uninstrument", None)
    bench.switch_off = off


def _spanloom(bench: Bench) -> None:
    """The instrumentor, and the announcements of open spans that `setup()` installs with it."""
    inflight = import_module("spanloom.telemetry.inflight")
    bench.provider.add_span_processor(
        inflight.InFlight(lambda: bench.log_sink, lambda: bench.provider.resource)
    )
    _instrument("spanloom.telemetry.langgraph:LangGraphInstrumentor", bench)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of what is installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
