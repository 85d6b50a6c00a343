"""One process of the service with Spanloom off, and the same spans by hand with the bare SDK.

    OTEL_EXPORTER_OTLP_ENDPOINT=… python -m overhead.service_by_hand service.app --port 0

It is the floor of what tracing this service costs: OpenTelemetry's own SDK, exporter and HTTP
instrumentations with no more settings than ours have, and spans around nodes, tools, model calls
and steps whose attributes are constants. No metrics, log records, step lines or in-flight spans.
"""

import contextlib
import functools
import importlib
import os
import runpy
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Tracer

_NODES = ("route", "retrieve", "rerank", "tools", "generate", "reflect")
_CONVERSATION = "8ad9f2e6e1137250c789936f378a7bd96a598475e6c245fbe8f96e8ee29cfba0"
_USAGE = {"spanloom.usage.input_tokens": 1299, "spanloom.usage.output_tokens": 16}
_BATCH_DELAY_MS = "500"


def _install(name: str) -> Tracer:
    """Install the SDK and contrib's instrumentations, which only this process's spans go to."""
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", _BATCH_DELAY_MS)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
    fastapi = importlib.import_module("opentelemetry.instrumentation.fastapi")
    fastapi.FastAPIInstrumentor().instrument(
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
        excluded_urls="health,ready,metrics",
    )
    httpx = importlib.import_module("opentelemetry.instrumentation.httpx")
    httpx.HTTPX2ClientInstrumentor().instrument(tracer_provider=provider)
    return provider.get_tracer("by hand")


def _around(tracer: Tracer, name: str, attributes: dict[str, Any], at_end: dict[str, Any]) -> Any:
    """A decorator of coroutine functions."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def traced(*arguments: Any, **named: Any) -> Any:
            with tracer.start_as_current_span(name, attributes=attributes) as span:
                result = await function(*arguments, **named)
                span.set_attributes(at_end)
            return result

        return traced

    return decorate


def _trace_agent(tracer: Tracer) -> None:
    from langchain_core.tools import StructuredTool  # noqa: PLC0415 - in the API only
    from langchain_openai import ChatOpenAI  # noqa: PLC0415

    from service.agent.graph import Agent  # noqa: PLC0415
    from service.agent.nodes import Nodes  # noqa: PLC0415

    conversation = {"gen_ai.conversation.id": _CONVERSATION}
    ok = {"spanloom.outcome": "ok"}
    workflow = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "agent"}
    around = _around(tracer, "invoke_workflow agent", workflow | conversation, _USAGE | ok)
    _wrap(Agent, "run", around)
    for number, name in enumerate(_NODES, 1):
        node = {
            "gen_ai.operation.name": "invoke_node",
            "gen_ai.node.name": name,
            "langgraph.attempt": 1,
            "langgraph.step": number,
            "langgraph.triggers": (f"branch:to:{name}",),
            "langgraph.checkpoint_ns": f"{name}:f07d498e-1af2-e5e2-8430-5193d034ab28",
        }
        asks = {} if name in {"retrieve", "rerank"} else _USAGE
        _wrap(Nodes, name, _around(tracer, f"invoke_node {name}", node | conversation, asks | ok))
    _wrap(StructuredTool, "ainvoke", functools.partial(_trace_tool, tracer))
    _wrap(ChatOpenAI, "_agenerate", functools.partial(_trace_answer, tracer))
    _wrap(ChatOpenAI, "_astream", functools.partial(_trace_stream, tracer))


def _wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrapper(getattr(owner, name)))


def _trace_tool(tracer: Tracer, ainvoke: Any) -> Any:
    @functools.wraps(ainvoke)
    async def traced(self: Any, *arguments: Any, **named: Any) -> Any:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": self.name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": "call_402a9b7471ae41e3ad45f167",
            "gen_ai.conversation.id": _CONVERSATION,
        }
        with tracer.start_as_current_span(
            f"execute_tool {self.name}", attributes=attributes
        ) as span:
            result = await ainvoke(self, *arguments, **named)
            span.set_attribute("spanloom.outcome", "ok")
        return result

    return traced


def _chat_span(tracer: Tracer, model: str) -> contextlib.AbstractContextManager[Span]:
    return tracer.start_as_current_span(
        f"chat {model}",
        kind=SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": model,
            "gen_ai.conversation.id": _CONVERSATION,
            "server.address": "127.0.0.1",
            "server.port": 8002,
            "gen_ai.request.max_tokens": 512,
            "gen_ai.output.type": "json",
        },
    )


def _answered(span: Span, model: str) -> None:
    span.set_attributes(
        {
            "gen_ai.response.model": model,
            "gen_ai.response.id": "chatcmpl-2132710274bf4a2fa024fee6a44bb089",
            "gen_ai.usage.input_tokens": 1299,
            "gen_ai.usage.output_tokens": 16,
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.usage.reasoning.output_tokens": 0,
            "spanloom.outcome": "ok",
        }
    )


def _trace_answer(tracer: Tracer, agenerate: Any) -> Any:
    @functools.wraps(agenerate)
    async def traced(self: Any, *arguments: Any, **named: Any) -> Any:
        with _chat_span(tracer, self.model_name) as span:
            result = await agenerate(self, *arguments, **named)
            _answered(span, self.model_name)
        return result

    return traced


def _trace_stream(tracer: Tracer, astream: Any) -> Any:
    @functools.wraps(astream)
    async def traced(self: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        with _chat_span(tracer, self.model_name) as span:
            async for chunk in astream(self, *arguments, **named):
                yield chunk
            _answered(span, self.model_name)

    return traced


class _Found:
    """What retrieval writes on its span."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def results(self, count: int) -> None:
        self._span.set_attribute("spanloom.result.count", count)

    def query(self, text: str) -> None:
        """No content, as with ours."""

    def documents(self, found: Any) -> None:
        """No content, as with ours."""


def _trace_steps(tracer: Tracer) -> None:
    """Put bare spans in the place of ours, which the service imports from there."""
    telemetry: Any = importlib.import_module("spanloom.telemetry")

    @contextlib.contextmanager
    def step(name: str, **attributes: Any) -> Iterator[Span]:
        with tracer.start_as_current_span(name, attributes=attributes) as span:
            yield span
            span.set_attribute("spanloom.outcome", "ok")

    @contextlib.contextmanager
    def retrieval(index: str, *, top_k: int | None = None) -> Iterator[_Found]:
        attributes = {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.data_source.id": index,
            "gen_ai.retrieval.top_k": top_k or 0,
        }
        with tracer.start_as_current_span(
            f"retrieval {index}", kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            yield _Found(span)
            span.set_attribute("spanloom.outcome", "ok")

    @contextlib.contextmanager
    def rerank(index: str, *, model: str, top_k: int | None = None) -> Iterator[_Found]:
        attributes = {
            "gen_ai.operation.name": "rerank",
            "gen_ai.data_source.id": index,
            "gen_ai.request.model": model,
            "gen_ai.retrieval.top_k": top_k or 0,
        }
        with tracer.start_as_current_span(f"rerank {index}", attributes=attributes) as span:
            yield _Found(span)
            span.set_attribute("spanloom.outcome", "ok")

    telemetry.step, telemetry.retrieval, telemetry.rerank = step, retrieval, rerank


def main() -> None:
    module = sys.argv[1]
    tracer = _install(module)
    # From here on: the SDK reads it when a provider is made, Spanloom when it is set up.
    os.environ["OTEL_SDK_DISABLED"] = "true"
    _trace_steps(tracer)
    if module == "service.app":
        _trace_agent(tracer)
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
