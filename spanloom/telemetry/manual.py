"""Spans for hand-written code: model calls, tools, retrieval, rerank, embeddings, and steps.

    with llm_call("gpt-5", provider="openai", max_tokens=512) as call:
        answer = client.chat(...)
        call.usage(input_tokens=answer.prompt, output_tokens=answer.completion)

All are plain context managers, in async code too. Inside, the OpenTelemetry current span is the
span; the metrics are recorded with it. What happens to the telemetry never reaches the caller.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import content, conversation, endings, metrics, pricing
from spanloom.telemetry.operation import Operation, use_tracer_provider
from spanloom.telemetry.usage import UsageScope, bill_of, settle

__all__ = [
    "Embeddings",
    "LLMCall",
    "Rerank",
    "Retrieval",
    "ToolCall",
    "embeddings",
    "llm_call",
    "rerank",
    "retrieval",
    "set_usage_sums",
    "step",
    "tool",
    "use_tracer_provider",
]

_REQUEST_ATTRIBUTES: Final = {
    "server_address": semconv.SERVER_ADDRESS,
    "server_port": semconv.SERVER_PORT,
    "conversation_id": semconv.GEN_AI_CONVERSATION_ID,
    "output_type": semconv.GEN_AI_OUTPUT_TYPE,
}


class LLMCall(Operation):
    """One request to a model."""

    __slots__ = (
        "_chunks",
        "_estimated",
        "_finish_reasons",
        "_first_chunk",
        "_model",
        "_operation",
        "_provider",
        "_response_model",
        "_server",
        "_usage",
    )

    def __init__(
        self,
        model: str,
        *,
        provider: str,
        operation: str = semconv.OP_CHAT,
        in_process: bool = False,
        **request: AttributeValue | None,
    ) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: operation,
            semconv.GEN_AI_PROVIDER_NAME: provider,
            semconv.GEN_AI_REQUEST_MODEL: model,
        }
        for name, value in request.items():
            if value is None or (name == "stream" and not value):
                continue  # the conventions have `request.stream` only when true
            attributes[_REQUEST_ATTRIBUTES.get(name, f"gen_ai.request.{name}")] = value
        super().__init__(
            f"{operation} {model}", SpanKind.INTERNAL if in_process else SpanKind.CLIENT, attributes
        )
        self._model = model
        self._provider = provider
        self._operation = operation
        self._server = (request.get("server_address"), request.get("server_port"))
        self._response_model: str | None = None
        self._finish_reasons = False
        self._first_chunk: float | None = None
        self._chunks = 0
        self._usage: dict[str, int | None] = {}
        self._estimated = False

    def __enter__(self) -> Self:
        super().__enter__()
        pricing.warm()
        return self

    def usage(
        self,
        *,
        input_tokens: int | None,
        output_tokens: int | None,
        cache_read_input_tokens: int | None = None,
        cache_write_input_tokens: int | None = None,
        reasoning_output_tokens: int | None = None,
        estimated: bool = False,
    ) -> None:
        """Record the tokens used; a later call replaces an earlier one.

        `input_tokens` is all input, cached included; `output_tokens` includes reasoning.
        `estimated` says that the counts are ours because the provider sent none.
        """
        self._usage = {
            semconv.GEN_AI_USAGE_INPUT_TOKENS: input_tokens,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: output_tokens,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: cache_read_input_tokens,
            semconv.GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS: cache_write_input_tokens,
            semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: reasoning_output_tokens,
        }
        for key, value in self._usage.items():
            if value is not None:
                self.span.set_attribute(key, value)
        self._estimated = estimated
        if estimated:
            self.span.set_attribute(semconv.SPANLOOM_USAGE_ESTIMATED, True)

    def response(
        self,
        *,
        model: str | None = None,
        id: str | None = None,  # noqa: A002 - the name of the attribute
        finish_reasons: Sequence[str] | None = None,
    ) -> None:
        """Record what the answer says about itself; finish reasons one for each choice."""
        if model:
            self._response_model = model
            self.span.set_attribute(semconv.GEN_AI_RESPONSE_MODEL, model)
        if id:
            self.span.set_attribute(semconv.GEN_AI_RESPONSE_ID, id)
        if finish_reasons:
            self._finish_reasons = True
            self.span.set_attribute(semconv.GEN_AI_RESPONSE_FINISH_REASONS, list(finish_reasons))

    def input(self, messages: Any, *, tools: Sequence[Any] | None = None) -> None:
        """Write what the model is sent, where content is captured; else do nothing.

        Messages of OpenAI, Anthropic or LangChain, dictionaries with `role` and `parts`, or a text;
        system messages in front become `gen_ai.system_instructions`.
        """
        conversation.write_input(self.span, messages, tools)

    def output(self, messages: Any) -> None:
        """Write what the model answered, where content is captured: as in `input`."""
        conversation.write_output(self.span, messages)

    def chunk(self) -> None:
        """Count a chunk of a streamed answer; the first one gives the time to first chunk."""
        self._chunks += 1
        if self._first_chunk is None:
            self._first_chunk = time.perf_counter() - self._started
            self.span.set_attribute(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, self._first_chunk)

    def _finish(self, ending: endings.Ending, seconds: float) -> None:
        attributes: dict[str, AttributeValue] = {}
        if self._chunks:
            attributes[semconv.SPANLOOM_STREAM_CHUNKS] = self._chunks
        if not self._finish_reasons and ending.outcome != semconv.OUTCOME_OK:
            attributes[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = ["error"]
        usage = self._usage.get
        input_tokens = usage(semconv.GEN_AI_USAGE_INPUT_TOKENS)
        output_tokens = usage(semconv.GEN_AI_USAGE_OUTPUT_TOKENS)
        cache_read = usage(semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS)
        cache_write = usage(semconv.GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS)
        address, port = self._server
        bill = settle(
            attributes,
            ending,
            provider=self._provider,
            model=self._response_model or self._model,
            server_address=address if isinstance(address, str) else None,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read=cache_read,
            cache_write=cache_write,
            estimated=self._estimated,
        )
        self.span.set_attributes(attributes)
        metrics.record_llm(
            provider=self._provider,
            request_model=self._model,
            response_model=self._response_model,
            operation=self._operation,
            seconds=seconds,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            time_to_first_chunk=self._first_chunk,
            error_type=ending.error_type,
            status=ending.status,
            bill=bill,
            server_address=address if isinstance(address, str) else None,
            server_port=port if isinstance(port, int) else None,
            cache_read=cache_read,
            cache_write=cache_write,
            reasoning=usage(semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS),
        )


class ToolCall(Operation):
    """One execution of a tool; carries the tokens of model calls made inside it."""

    __slots__ = ("_tool", "_usage_scope")

    def __init__(
        self, name: str, *, call_id: str | None = None, tool_type: str = "function"
    ) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_EXECUTE_TOOL,
            semconv.GEN_AI_TOOL_NAME: name,
            semconv.GEN_AI_TOOL_TYPE: tool_type,
        }
        if call_id:
            attributes[semconv.GEN_AI_TOOL_CALL_ID] = call_id
        super().__init__(f"{semconv.OP_EXECUTE_TOOL} {name}", SpanKind.INTERNAL, attributes)
        self._tool = name
        self._usage_scope = UsageScope(tool=name)

    def __enter__(self) -> Self:
        super().__enter__()
        self._usage_scope.__enter__()  # inside the span: both travel in the OTel context
        return self

    def arguments(self, arguments: Any) -> None:
        """Write what the tool is called with, where content is captured; else do nothing."""
        conversation.write_arguments(self.span, arguments)

    def result(self, result: Any) -> None:
        """Write what the tool returned, where content is captured; else do nothing."""
        conversation.write_result(self.span, result)

    def _leave(self) -> None:
        self._usage_scope.__exit__(None, None, None)
        super()._leave()

    def _finish(self, ending: endings.Ending, seconds: float) -> None:
        if self._usage_scope.calls:
            set_usage_sums(self.span, self._usage_scope)
        metrics.record_tool(
            tool=self._tool,
            status=ending.outcome,
            seconds=seconds,
            error_type=ending.error_type,
        )


def set_usage_sums(span: Span, usage: UsageScope) -> None:
    """Write the sums over the model calls below a span."""
    span.set_attributes(usage.attributes())


class _Counted(Operation):
    """An operation that returns a number of things."""

    __slots__ = ()

    def results(self, count: int) -> None:
        """Record how many documents, passages or vectors came back."""
        self.span.set_attribute(semconv.SPANLOOM_RESULT_COUNT, count)


class Retrieval(_Counted):
    """One search in an index."""

    __slots__ = ()

    def __init__(self, index: str, *, top_k: int | None = None, in_process: bool = False) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_RETRIEVAL,
            semconv.GEN_AI_DATA_SOURCE_ID: index,
        }
        if top_k is not None:
            attributes[semconv.GEN_AI_RETRIEVAL_TOP_K] = top_k
        super().__init__(
            f"{semconv.OP_RETRIEVAL} {index}",
            SpanKind.INTERNAL if in_process else SpanKind.CLIENT,
            attributes,
        )

    def query(self, text: str) -> None:
        """Write what is searched for, where content is captured; else do nothing."""
        content.write(
            self.span, lambda rules: {semconv.GEN_AI_RETRIEVAL_QUERY_TEXT: rules.text(text)}
        )

    def documents(self, documents: Iterable[tuple[str, float | None]]) -> None:
        """Write id and score of each document found, where content is captured.

        Otherwise nothing is done, and the iterable is not read.
        """
        content.write(
            self.span,
            lambda rules: {
                semconv.GEN_AI_RETRIEVAL_DOCUMENTS: conversation.documents(rules, tuple(documents))
            },
        )

    def _finish(self, ending: endings.Ending, seconds: float) -> None:
        metrics.record_operation(
            operation=semconv.OP_RETRIEVAL, seconds=seconds, error_type=ending.error_type
        )


class Rerank(_Counted):
    """One reordering of passages."""

    __slots__ = ("_model",)

    def __init__(self, index: str, *, model: str | None = None, top_k: int | None = None) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_RERANK,
            semconv.GEN_AI_DATA_SOURCE_ID: index,
        }
        if model is not None:
            attributes[semconv.GEN_AI_REQUEST_MODEL] = model
        if top_k is not None:
            attributes[semconv.GEN_AI_RETRIEVAL_TOP_K] = top_k
        super().__init__(f"{semconv.OP_RERANK} {index}", SpanKind.INTERNAL, attributes)
        self._model = model

    def _finish(self, ending: endings.Ending, seconds: float) -> None:
        metrics.record_operation(
            operation=semconv.OP_RERANK,
            seconds=seconds,
            request_model=self._model,
            error_type=ending.error_type,
        )


class Embeddings(_Counted):
    """One request for vectors."""

    __slots__ = ("_input_tokens", "_model", "_provider")

    def __init__(
        self,
        model: str,
        *,
        provider: str,
        dimensions: int | None = None,
        in_process: bool = False,
    ) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.GEN_AI_OPERATION_NAME: semconv.OP_EMBEDDINGS,
            semconv.GEN_AI_PROVIDER_NAME: provider,
            semconv.GEN_AI_REQUEST_MODEL: model,
        }
        if dimensions is not None:
            attributes[semconv.GEN_AI_EMBEDDINGS_DIMENSION_COUNT] = dimensions
        super().__init__(
            f"{semconv.OP_EMBEDDINGS} {model}",
            SpanKind.INTERNAL if in_process else SpanKind.CLIENT,
            attributes,
        )
        self._model = model
        self._provider = provider
        self._input_tokens: int | None = None

    def usage(self, *, input_tokens: int) -> None:
        """Record the tokens that were turned into vectors."""
        self._input_tokens = input_tokens
        self.span.set_attribute(semconv.GEN_AI_USAGE_INPUT_TOKENS, input_tokens)

    def _finish(self, ending: endings.Ending, seconds: float) -> None:
        metrics.record_llm(
            provider=self._provider,
            request_model=self._model,
            response_model=None,
            operation=semconv.OP_EMBEDDINGS,
            seconds=seconds,
            input_tokens=self._input_tokens,
            output_tokens=None,
            error_type=ending.error_type,
            status=ending.status,
            bill=bill_of(None),
        )


class _Step(Operation):
    """Hands out the span itself, since a step has nothing of its own to say."""

    __slots__ = ()

    def __enter__(self) -> Span:  # type: ignore[override]
        super().__enter__()
        return self.span


def llm_call(
    model: str, *, provider: str, operation: str = semconv.OP_CHAT, **request: Any
) -> LLMCall:
    """Span `{operation} {model}` around one model request.

    `request` holds what was asked for under its `gen_ai.request.*` name (max_tokens, temperature,
    top_p, seed, stream …) and server_address, server_port, conversation_id, output_type;
    `in_process=True` for a model that runs in this process.
    """
    return LLMCall(model, provider=provider, operation=operation, **request)


def tool(name: str, *, call_id: str | None = None, tool_type: str = "function") -> ToolCall:
    """Span `execute_tool {name}`; `tool_type` is function, extension or datastore."""
    return ToolCall(name, call_id=call_id, tool_type=tool_type)


def retrieval(index: str, *, top_k: int | None = None, in_process: bool = False) -> Retrieval:
    """Span `retrieval {index}`; `in_process` where this very process does the search."""
    return Retrieval(index, top_k=top_k, in_process=in_process)


def rerank(index: str, *, model: str | None = None, top_k: int | None = None) -> Rerank:
    """Span `rerank {index}`."""
    return Rerank(index, model=model, top_k=top_k)


def embeddings(
    model: str, *, provider: str, dimensions: int | None = None, in_process: bool = False
) -> Embeddings:
    """Span `embeddings {model}`."""
    return Embeddings(model, provider=provider, dimensions=dimensions, in_process=in_process)


def step(name: str, **attributes: AttributeValue) -> _Step:
    """INTERNAL span for anything else; attribute names with dots go in as `**{"a.b": 1}`."""
    return _Step(name, SpanKind.INTERNAL, attributes)
