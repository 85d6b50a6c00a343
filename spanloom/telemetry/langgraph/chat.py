"""Chat spans: what is asked of a model, and what it answers. Where they begin: `models`."""

from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import content, conversation, endings, estimate, metrics
from spanloom.telemetry.langgraph import classify, request
from spanloom.telemetry.langgraph.context import Guard, Unit, frame_of, warn_once
from spanloom.telemetry.langgraph.messages import Answer
from spanloom.telemetry.streamed import StreamedAnswer
from spanloom.telemetry.usage import current_scope, settle

_READING: Final = Guard("a streamed event cannot be read")


class ChatCall(Unit):
    """One request to a chat model."""

    __slots__ = (
        "_answer",
        "_chunks",
        "_first_chunk",
        "_kept",
        "_model",
        "_provider",
        "_server",
        "_stream",
        "_streamed",
    )

    def __init__(
        self,
        tracer: Tracer,
        model: Any,
        call: dict[str, Any],
        params: dict[str, Any] | None,
        context: Context,
        *,
        messages: Any,
        stream: bool = False,
    ) -> None:
        """Start the span of a call of `model` with `messages` and the keyword arguments `call`.

        `params` are LangChain's `ls_*` parameters where somebody has computed them already.
        """
        if params is None or "ls_model_type" not in params:
            params = model._get_ls_params(**call)  # noqa: SLF001 - how LangChain asks it too
        cls: Any = type(model)
        known = request.model_class(cls)
        name = params.get("ls_model_name")
        self._model: str | None = name if isinstance(name, str) and name else None
        self._provider = classify.provider_name(
            params.get("ls_provider"), says_itself=known.says_itself, module=cls.__module__
        )
        self._server = request.server(model, known)
        self._stream = stream
        self._answer = Answer()
        self._chunks = 0
        self._first_chunk: float | None = None
        self._kept: estimate.Kept | None = None
        outer = frame_of(current_scope(context))
        attributes = self._request(outer.conversation_id if outer is not None else None)
        request.add_parameters(attributes, model, known, call, params)
        super().__init__(
            tracer,
            f"{semconv.OP_CHAT} {self._model}" if self._model else semconv.OP_CHAT,
            attributes,
            context=context,
            frame=None,
            outer=outer,
            kind=SpanKind.CLIENT,
        )
        self._streamed: StreamedAnswer | None = None
        if (rules := content.rules()) is not None and self.span.is_recording():
            self._streamed = StreamedAnswer(rules)
            conversation.write_input(self.span, messages, call.get("tools"))

    def _request(self, conversation: str | None) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {semconv.GEN_AI_OPERATION_NAME: semconv.OP_CHAT}
        if self._provider is not None:
            attributes[semconv.GEN_AI_PROVIDER_NAME] = self._provider
        if self._model is not None:
            attributes[semconv.GEN_AI_REQUEST_MODEL] = self._model
        if conversation is not None:
            attributes[semconv.GEN_AI_CONVERSATION_ID] = conversation
        address, port = self._server
        if address is not None:
            attributes[semconv.SERVER_ADDRESS] = address
            if port is not None:
                attributes[semconv.SERVER_PORT] = port
        if self._stream:
            attributes[semconv.GEN_AI_REQUEST_STREAM] = True
        return attributes

    def chunk(self, message: Any) -> None:
        """Count one chunk of the answer and keep what it says; never raises."""
        try:
            if self._answer.add_chunk(message):
                self._count_chunk()
                if self._kept is not None:
                    self._kept.add_message(message)
            if self._streamed is not None:
                self._streamed.chunk(message)
        except Exception:  # noqa: BLE001 - telemetry never breaks the application
            warn_once("a streamed chunk cannot be read", exc_info=True)

    def item(self, item: Any) -> None:
        """See one message chunk of a stream; never raises."""
        self.chunk(item)

    def event(self, event: Any) -> None:
        """Take in one event of LangChain's content-block protocol; never raises."""
        with _READING:
            if event.get("event") == "content-block-delta":
                self._count_chunk()
                if self._kept is not None:
                    self._kept.add_delta(event["delta"])
            if self._streamed is not None:
                self._streamed.event(event)

    def _count_chunk(self) -> None:
        self._chunks += 1
        if self._first_chunk is None:
            self._first_chunk = self.seconds
            self.span.set_attribute(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, self._first_chunk)
            if not self._stream:  # asked for by a callback, deep inside generate
                self._stream = True
                self.span.set_attribute(semconv.GEN_AI_REQUEST_STREAM, True)
            if self.span.is_recording():
                self._kept = estimate.begin()

    def _read(self, result: Any) -> endings.Ending | None:
        if result is not None:
            messages = [generation.message for generation in result.generations]
            self._answer.take_result(messages, result.llm_output)
            self._write_answer(messages)
        return None

    def _cause(self, exc: BaseException) -> BaseException:
        self._answer.take_refused(exc)
        return super()._cause(exc)

    def _write_answer(self, messages: Sequence[Any]) -> None:
        """Write the whole answer, where content is captured, in place of what was streamed."""
        if self._streamed is not None:
            self._streamed = None
            conversation.write_output(self.span, messages)

    def _describe(self, ending: endings.Ending, attributes: dict[str, AttributeValue]) -> None:
        if self._streamed is not None:
            self._streamed.write(self.span)
        answer = self._answer
        estimated = self._estimate(ending)
        self._add_response(answer, ending, attributes)
        if estimated:
            attributes[semconv.SPANLOOM_USAGE_ESTIMATED] = True
        address, port = self._server
        bill = settle(
            attributes,
            endings.OK if answer.is_refused else ending,  # nothing of its count is missing
            provider=self._provider,
            model=answer.model or self._model,
            server_address=address,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            cache_read=answer.cache_read,
            cache_write=answer.cache_write,
            cache_write_1h=answer.cache_write_1h,
            estimated=estimated,
            is_free=answer.is_cached,
        )
        metrics.record_llm(
            provider=self._provider,
            request_model=self._model,
            response_model=answer.model,
            operation=semconv.OP_CHAT,
            seconds=self.seconds,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            time_to_first_chunk=self._first_chunk,
            error_type=ending.error_type,
            status=ending.status,
            bill=bill,
            server_address=address,
            server_port=port,
            cache_read=answer.cache_read,
            cache_write=answer.cache_write,
            reasoning=answer.reasoning,
        )

    def _estimate(self, ending: endings.Ending) -> bool:
        """Count the output of a stream that was cut; return whether that is what stands now.

        Some providers say at the start of an answer how long it is so far: that is too little.
        """
        answer, kept, self._kept = self._answer, self._kept, None
        told = answer.output_tokens
        if kept is None or ending.outcome == semconv.OUTCOME_OK:
            return False
        if told is not None and answer.finish_reasons:
            return False
        tokens = kept.tokens()
        if tokens is None or tokens <= (told or 0):
            return False
        answer.output_tokens = tokens
        return True

    def _add_response(
        self, answer: Answer, ending: endings.Ending, attributes: dict[str, AttributeValue]
    ) -> None:
        if answer.model is not None:
            attributes[semconv.GEN_AI_RESPONSE_MODEL] = answer.model
        if answer.id is not None:
            attributes[semconv.GEN_AI_RESPONSE_ID] = answer.id
        if answer.input_tokens is not None:
            attributes[semconv.GEN_AI_USAGE_INPUT_TOKENS] = answer.input_tokens
        if answer.output_tokens is not None:
            attributes[semconv.GEN_AI_USAGE_OUTPUT_TOKENS] = answer.output_tokens
        if answer.finish_reasons:
            attributes[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = answer.finish_reasons
        elif ending.outcome != semconv.OUTCOME_OK:  # one was due and never came
            attributes[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = ["error"]
        if self._chunks:
            attributes[semconv.SPANLOOM_STREAM_CHUNKS] = self._chunks
        _add_parts(answer, attributes)


class EventCall(ChatCall):
    """A request read as events of the content-block protocol."""

    __slots__ = ("_source",)

    def __init__(
        self, tracer: Tracer, model: Any, kwargs: dict[str, Any], context: Context, *, messages: Any
    ) -> None:
        self._source = kwargs.get("stream")
        call = {name: kwargs[name] for name in kwargs if name not in ("stream", "run_manager")}
        params = getattr(kwargs.get("run_manager"), "metadata", None)
        super().__init__(tracer, model, call, params, context, messages=messages, stream=True)

    def item(self, item: Any) -> None:
        """See one event of the stream; never raises.

        The last event ends the span: its reader need not ask for anything after it.
        """
        self.event(item)
        with _READING:
            if item.get("event") == "message-finish":
                self.end(None)

    def _describe(self, ending: endings.Ending, attributes: dict[str, AttributeValue]) -> None:
        message = getattr(self._source, "output_message", None)
        if message is not None:
            self._answer.take_result((message,), None)
            self._write_answer((message,))
        super()._describe(ending, attributes)


def _add_parts(answer: Answer, attributes: dict[str, AttributeValue]) -> None:
    """Tokens that are a part of input or output."""
    if answer.cache_read is not None:
        attributes[semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] = answer.cache_read
    if answer.cache_write is not None:
        attributes[semconv.GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS] = answer.cache_write
    if answer.reasoning is not None:
        attributes[semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS] = answer.reasoning
