"""Chat spans: what is asked of a model, and what it answers. Where they begin: `models`."""

from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry import endings, metrics
from spanloom.telemetry.langgraph import classify
from spanloom.telemetry.langgraph.context import Guard, Unit, frame_of
from spanloom.telemetry.langgraph.messages import Answer
from spanloom.telemetry.usage import add_usage

_REQUEST_FIELDS: Final = (
    # attribute, what LangChain or the class calls it, accepted types
    (semconv.GEN_AI_REQUEST_TEMPERATURE, ("temperature",), (int, float)),
    (semconv.GEN_AI_REQUEST_MAX_TOKENS, ("max_tokens", "max_completion_tokens"), (int,)),
    (semconv.GEN_AI_REQUEST_TOP_P, ("top_p",), (int, float)),
    (semconv.GEN_AI_REQUEST_TOP_K, ("top_k",), (int,)),
    (semconv.GEN_AI_REQUEST_SEED, ("seed",), (int,)),
)
_URL_FIELDS: Final = (
    # where a client keeps the address it really calls; the SDK client first, as it has resolved
    # environment variables and defaults
    "root_async_client",
    "root_client",
    "azure_endpoint",
    "openai_api_base",
    "anthropic_api_url",
    "base_url",
    "endpoint_url",
)
_OWN_PARAMS: Final[dict[type, bool]] = {}
"""Model classes seen, and whether they report provider and model by code of their own."""

_READING: Final = Guard("a streamed chunk cannot be read")


class ChatCall(Unit):
    """One request to a chat model."""

    __slots__ = ("_answer", "_chunks", "_first_chunk", "_model", "_provider", "_server", "_stream")

    def __init__(
        self,
        tracer: Tracer,
        model: Any,
        call: dict[str, Any],
        params: dict[str, Any] | None,
        context: Context,
        *,
        stream: bool = False,
    ) -> None:
        """Start the span of a call of `model` with the keyword arguments `call`.

        `params` are LangChain's `ls_*` parameters where somebody has computed them already.
        """
        if params is None or "ls_model_type" not in params:
            params = model._get_ls_params(**call)  # noqa: SLF001 - how LangChain asks it too
        cls = type(model)
        name = params.get("ls_model_name")
        self._model: str | None = name if isinstance(name, str) and name else None
        self._provider = classify.provider_name(
            params.get("ls_provider"), says_itself=_says_itself(cls), module=cls.__module__
        )
        self._server = _server(model)
        self._stream = stream
        self._answer = Answer()
        self._chunks = 0
        self._first_chunk: float | None = None
        outer = frame_of(context)
        super().__init__(
            tracer,
            f"{semconv.OP_CHAT} {self._model}" if self._model else semconv.OP_CHAT,
            self._request(model, call, params, outer.conversation_id if outer else None),
            context=context,
            frame=None,
            outer=outer,
            kind=SpanKind.CLIENT,
        )

    def _request(
        self, model: Any, call: dict[str, Any], params: dict[str, Any], conversation: str | None
    ) -> dict[str, AttributeValue]:
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
        attributes.update(_sampling(model, call, params))
        return attributes

    def chunk(self, message: Any) -> None:
        """Count one chunk of the answer and keep what it says; never raises."""
        with _READING:
            if self._answer.add_chunk(message):
                self._count_chunk()

    def item(self, item: Any) -> None:
        """See one message chunk of a stream; never raises."""
        self.chunk(item)

    def event(self, event: Any) -> None:
        """Take in one event of LangChain's content-block protocol; never raises."""
        with _READING:
            if event.get("event") == "content-block-delta":
                self._count_chunk()

    def _count_chunk(self) -> None:
        self._chunks += 1
        if self._first_chunk is None:
            self._first_chunk = self.seconds
            self.span.set_attribute(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, self._first_chunk)
            if not self._stream:  # asked for by a callback, deep inside generate
                self._stream = True
                self.span.set_attribute(semconv.GEN_AI_REQUEST_STREAM, True)

    def _read(self, result: Any) -> endings.Ending | None:
        if result is not None:
            messages = [generation.message for generation in result.generations]
            self._answer.take_result(messages, result.llm_output)
        return None

    def _describe(self, ending: endings.Ending) -> None:
        answer = self._answer
        if self.span.is_recording():
            self.span.set_attributes(self._response(answer, ending))
        add_usage(answer.input_tokens, answer.output_tokens)
        address, port = self._server
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
            server_address=address,
            server_port=port,
            cache_read=answer.cache_read,
            cache_write=answer.cache_write,
            reasoning=answer.reasoning,
        )

    def _response(self, answer: Answer, ending: endings.Ending) -> dict[str, AttributeValue]:
        known: dict[str, AttributeValue | None] = {
            semconv.GEN_AI_RESPONSE_MODEL: answer.model,
            semconv.GEN_AI_RESPONSE_ID: answer.id,
            semconv.GEN_AI_USAGE_INPUT_TOKENS: answer.input_tokens,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: answer.output_tokens,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: answer.cache_read,
            semconv.GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS: answer.cache_write,
            semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: answer.reasoning,
        }
        attributes: dict[str, AttributeValue] = {
            key: value for key, value in known.items() if value is not None
        }
        if answer.finish_reasons:
            attributes[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = answer.finish_reasons
        elif ending.outcome != semconv.OUTCOME_OK:  # one was due and never came
            attributes[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = ["error"]
        if self._chunks:
            attributes[semconv.SPANLOOM_STREAM_CHUNKS] = self._chunks
        return attributes


class EventCall(ChatCall):
    """A request read as events of the content-block protocol."""

    __slots__ = ("_source",)

    def __init__(
        self, tracer: Tracer, model: Any, kwargs: dict[str, Any], context: Context
    ) -> None:
        self._source = kwargs.get("stream")
        call = {name: kwargs[name] for name in kwargs if name not in ("stream", "run_manager")}
        params = getattr(kwargs.get("run_manager"), "metadata", None)
        super().__init__(tracer, model, call, params, context, stream=True)

    def item(self, item: Any) -> None:
        """See one event of the stream; never raises.

        The last event ends the span: its reader need not ask for anything after it.
        """
        self.event(item)
        with _READING:
            if item.get("event") == "message-finish":
                self.end(None)

    def _describe(self, ending: endings.Ending) -> None:
        message = getattr(self._source, "output_message", None)
        if message is not None:
            self._answer.take_result((message,), None)
        super()._describe(ending)


def _sampling(
    model: Any, call: dict[str, Any], params: dict[str, Any]
) -> dict[str, AttributeValue]:
    """The parameters of a request that shape its answer."""
    attributes: dict[str, AttributeValue] = {}
    for attribute, names, types in _REQUEST_FIELDS:
        value = _request_value(model, call, params, names)
        if isinstance(value, types) and not isinstance(value, bool):
            attributes[attribute] = value
    stop = call.get("stop") or params.get("ls_stop")
    if stop:
        attributes[semconv.GEN_AI_REQUEST_STOP_SEQUENCES] = (
            [stop] if isinstance(stop, str) else [str(text) for text in stop]
        )
    response_format = call.get("response_format")
    if isinstance(response_format, dict) and "json" in str(response_format.get("type")):
        attributes[semconv.GEN_AI_OUTPUT_TYPE] = "json"
    return attributes


def _request_value(
    model: Any, call: dict[str, Any], params: dict[str, Any], names: tuple[str, ...]
) -> Any:
    """The value a request is sent with: the call's own before the model's."""
    for name in names:
        if (value := call.get(name)) is not None:
            return value
    if (value := params.get(f"ls_{names[0]}")) is not None:
        return value
    for name in names:
        if (value := getattr(model, name, None)) is not None:
            return value
    return None


def _says_itself(cls: type) -> bool:
    known = _OWN_PARAMS.get(cls)
    if known is None:
        owner = next(base for base in cls.__mro__ if "_get_ls_params" in vars(base))
        known = _OWN_PARAMS[cls] = owner.__module__ != "langchain_core.language_models.chat_models"
    return known


def _server(model: Any) -> tuple[str | None, int | None]:
    for name in _URL_FIELDS:
        value = getattr(model, name, None)
        if value is not None:
            value = getattr(value, "base_url", value)
            address, port = classify.server_of(value)
            if address is not None:
                return address, port
    return None, None
