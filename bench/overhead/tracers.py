"""How each tracer is switched on, as its documentation says; payload capture as it comes.

Each function is called once in a fresh process of that tracer's own environment, and returns what
makes the callback handlers of a run where the tracer needs one a run, else None.
"""

import json
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from overhead.recording import NullExporter

Callbacks = Callable[[], list[Any]] | None
SwitchOn = Callable[[TracerProvider, NullExporter], Callbacks]


class Peer(NamedTuple):
    """A tracer to compare with: what to install, and how it is switched on."""

    name: str
    requirements: tuple[str, ...]
    switch_on: SwitchOn
    brings_processor: bool = False
    """Whether it puts a batch processor of its own before the exporter."""


def _instrumentor(module: str, name: str) -> SwitchOn:
    def switch_on(provider: TracerProvider, exporter: NullExporter) -> None:
        del exporter
        getattr(import_module(module), name)().instrument(tracer_provider=provider)

    return switch_on


def _openlit(provider: TracerProvider, exporter: NullExporter) -> None:
    del exporter
    trace.set_tracer_provider(provider)
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as prices:
        json.dump({"chat": {}}, prices)  # else it is fetched from the network
    import_module("openlit").init(
        disable_metrics=True, disable_events=True, pricing_json=prices.name
    )
    Path(prices.name).unlink()


def _langfuse(provider: TracerProvider, exporter: NullExporter) -> Callbacks:
    langfuse = import_module("langfuse")
    langfuse.Langfuse(
        public_key="pk-lf-bench",
        secret_key="sk-lf-bench",
        base_url="http://127.0.0.1:9",
        tracer_provider=provider,
        span_exporter=exporter,
    )
    handler = import_module("langfuse.langchain").CallbackHandler
    return lambda: [handler()]


PEERS = {
    "openinference": Peer(
        "OpenInference",
        ("openinference-instrumentation-langchain==0.1.80",),
        _instrumentor("openinference.instrumentation.langchain", "LangChainInstrumentor"),
    ),
    "traceloop": Peer(
        "Traceloop",
        ("opentelemetry-instrumentation-langchain==0.62.4",),
        _instrumentor("opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
    ),
    "otel-genai": Peer(
        "OTel official",
        ("opentelemetry-instrumentation-genai-langchain==1.3b0", "langchain"),
        _instrumentor("opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
    ),
    "openlit": Peer("OpenLIT", ("openlit==1.45.0", "langchain"), _openlit),
    "langfuse": Peer("Langfuse", ("langfuse==5.0.4", "langchain"), _langfuse, True),
}
